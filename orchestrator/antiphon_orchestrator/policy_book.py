"""Which policies are in force: kept in the store by epoch, activated in one transaction, followed by every replica.

An epoch is a number that only grows; it names one set of files for ever. Activation compares the number in force,
writes the new set and moves the number, all in one commit, so that after an acknowledged change a crash finds it in
force. A replica that hears of another's change by its watch puts it in force as a whole, well within two seconds. What
cannot be read here (a newer replica's annotation) denies everything here until it can: never the former policies.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import policy_pb2

from . import telemetry
from .policy import CedarPolicies, PolicyBundle, PolicyError, PolicyFile, Request, compile_bundle, would_decide
from .policy.rules import Rules
from .shards.log import settle
from .store import keys
from .store.port import Compacted, Compare, Delete, Put, Store, StoreUnavailable, Target, Txn, prefix_end

log = telemetry.logger("policy")

KEPT = 32
"""Epochs that can be read and rolled back to, the one in force included; 1 MiB of text each at most."""

_RETRY = 0.2
"""Seconds, more or less, until the store is asked again; the two seconds of the promise hold while it answers."""

PROFILE = "profile dev"
FOLDER = "folder"


class EpochChanged(Exception):
    """Another epoch is in force than was expected; `current` is the one."""

    def __init__(self, current: int) -> None:
        super().__init__(f"policy epoch {current} is in force")
        self.current = current


class EpochNotFound(Exception):
    """The epoch is not kept."""


class RequestReused(Exception):
    """The request id stands for another change."""


class LocksOut(Exception):
    """Under the new policies whoever activates them could not change them again; the text is the decision's reason."""


class PolicyBook:
    """`changed(epoch)` is told of every epoch that is put in force here; set it before `run`."""

    def __init__(self, store: Store, policies: CedarPolicies, now: Callable[[], int]) -> None:
        self._store = store
        self._policies = policies
        self._now = now
        self._revision = 0
        self.changed: Callable[[int], None] = lambda epoch: None

    async def begin(self, seed: PolicyBundle | None, origin: str) -> None:
        """Puts in force what the store holds; a store without any policy gets `seed` first. Once, before `run`.

        `origin` is PROFILE or FOLDER, whence the seed comes. A profile that nobody has replaced is renewed with us.
        Raises PolicyError when what is in force cannot be read.
        """
        self._revision = (await self._store.range(keys.policy_current())).revision
        epoch, _ = await self._current()
        if seed is not None:
            epoch = await self._seed(epoch, seed, origin)
        if epoch:
            bundle = await self._bundle(epoch)
            self._policies.activate(bundle)
        log.info("policies_in_force" if epoch else "no_policy_in_force", epoch=epoch)

    async def _seed(self, epoch: int, seed: PolicyBundle, origin: str) -> int:
        """The epoch in force once the seed has been looked at."""
        if epoch:
            kept = await self._record(epoch)
            if kept.policy.digest == seed.digest:
                return epoch
            if not (origin == PROFILE == kept.policy.creator):
                log.warning(
                    "policies_of_the_store_are_in_force",
                    epoch=epoch,
                    source=origin,
                    cause=f"the store's policy epoch {epoch} is in force, not the {origin} given at this start; "
                    "to change it, run: antiphon policy activate DIR",
                )
                return epoch
        made = policy_pb2.PolicySet(epoch=epoch + 1, digest=seed.digest, creator=origin)
        bundle = PolicyBundle.of(epoch + 1, seed.files)
        try:
            await self._commit(epoch, made, bundle, compile_bundle(bundle), "", b"")
        except EpochChanged as changed:  # another replica was quicker, with the same seed or a change
            return changed.current
        return epoch + 1

    # Changes.

    async def activate(
        self, principal: str, request_id: str, expected: int, files: Sequence[PolicyFile], admin: Request
    ) -> policy_pb2.PolicySet:
        """Puts a whole set in force. `admin` is the question whether who does it may do it again.

        Raises PolicyError with every mistake, EpochChanged, LocksOut, RequestReused.
        """
        bundle = PolicyBundle.of(expected + 1, files)
        digest = hashlib.sha256(f"activate {expected} {bundle.digest} ".encode())
        digest.update(repr([file.name for file in bundle.files]).encode())
        return await self._change(principal, request_id, digest.digest(), expected, bundle, admin, 0)

    async def roll_back(
        self, principal: str, request_id: str, expected: int, epoch: int, admin: Request
    ) -> policy_pb2.PolicySet:
        """Puts the content of a kept epoch in force again, as a new one. Raises as `activate`, and EpochNotFound."""
        digest = hashlib.sha256(f"roll back {expected} {epoch}".encode()).digest()
        if (made := await self._made(principal, request_id, digest)) is not None:
            return made  # also when the epoch it repeats is kept no longer
        bundle = PolicyBundle.of(expected + 1, (await self._bundle(epoch)).files)
        return await self._change(principal, request_id, digest, expected, bundle, admin, epoch)

    async def _change(
        self,
        principal: str,
        request_id: str,
        digest: bytes,
        expected: int,
        bundle: PolicyBundle,
        admin: Request,
        rolled_back_to: int,
    ) -> policy_pb2.PolicySet:
        if (made := await self._made(principal, request_id, digest)) is not None:
            return made
        rules = compile_bundle(bundle, kept=rolled_back_to > 0)
        decision = would_decide(bundle, rules, admin)
        if not decision.allowed:
            raise LocksOut(decision.reason)
        policy = policy_pb2.PolicySet(
            epoch=bundle.epoch, digest=bundle.digest, creator=principal, rolled_back_to=rolled_back_to
        )
        await self._commit(expected, policy, bundle, rules, request_id, digest)
        self._put_in_force(bundle, rules)
        policy.active = True
        return policy

    async def _made(self, principal: str, request_id: str, digest: bytes) -> policy_pb2.PolicySet | None:
        """What the request has made before, if it has. Raises RequestReused."""
        for kept in await self._records():
            if kept.policy.creator == principal and kept.request_id == request_id:
                if kept.request_digest != digest:
                    raise RequestReused(request_id)
                return await self._shown(kept)
        return None

    async def _commit(
        self,
        expected: int,
        policy: policy_pb2.PolicySet,
        bundle: PolicyBundle,
        rules: Rules,
        request_id: str,
        digest: bytes,
    ) -> None:
        """Writes a set and makes it the one in force. Raises EpochChanged."""
        policy.policy_count = len(rules.by_id)
        policy.create_time.FromMicroseconds(self._now())
        record = records.PolicyRecord(policy=policy, request_id=request_id, request_digest=digest)
        text = records.PolicyText(
            files=[policy_pb2.PolicyFile(name=file.name, text=file.text) for file in bundle.files]
        )
        current, revision = await self._current()
        if current != expected:
            raise EpochChanged(current)
        old = [kept.policy.epoch for kept in await self._records()][: 1 - KEPT]
        value = record.SerializeToString()
        result = await settle(
            self._store,
            Txn(
                (Compare(keys.policy_current(), Target.MOD_REVISION, revision),),
                (
                    Put(keys.policy_current(), records.PolicyCurrent(epoch=policy.epoch).SerializeToString()),
                    Put(keys.policy_epoch(policy.epoch), value),
                    Put(keys.policy_text(policy.epoch), text.SerializeToString()),
                    *(Delete(keys.policy_epoch(epoch)) for epoch in old),
                    *(Delete(keys.policy_text(epoch)) for epoch in old),
                ),
                (keys.policy_current(), keys.policy_epoch(policy.epoch)),
            ),
        )
        there = result.observed.get(keys.policy_epoch(policy.epoch))
        if not result.succeeded and (there is None or there.value != value):
            now = result.observed[keys.policy_current()]
            raise EpochChanged(records.PolicyCurrent.FromString(now.value).epoch if now is not None else 0)

    def _put_in_force(self, bundle: PolicyBundle, rules: Rules) -> None:
        if bundle.epoch > self._policies.epoch:  # the watch may have been quicker
            self._policies.activate(bundle, rules)
            self.changed(bundle.epoch)
            log.info("policies_in_force", epoch=bundle.epoch)

    # Reads.

    async def sets(self) -> list[policy_pb2.PolicySet]:
        """The kept sets without files, the newest first."""
        current, _ = await self._current()
        found = [kept.policy for kept in await self._records()]
        for policy in found:
            policy.active = policy.epoch == current
        return found[::-1]

    async def get(self, epoch: int) -> policy_pb2.PolicySet:
        """A kept set with its files; 0 is the one in force. Raises EpochNotFound."""
        if not epoch:
            epoch, _ = await self._current()
        shown = await self._shown(await self._record(epoch))
        files = (await self._bundle(epoch)).files
        shown.files.extend(policy_pb2.PolicyFile(name=file.name, text=file.text) for file in files)
        return shown

    async def _shown(self, record: records.PolicyRecord) -> policy_pb2.PolicySet:
        current, _ = await self._current()
        record.policy.active = record.policy.epoch == current
        return record.policy

    async def _current(self) -> tuple[int, int]:
        """The epoch in force and the revision of the key that says so; zeros when there is none."""
        found = await self._store.range(keys.policy_current())
        if not found.kvs:
            return 0, 0
        return records.PolicyCurrent.FromString(found.kvs[0].value).epoch, found.kvs[0].mod_revision

    async def _records(self) -> list[records.PolicyRecord]:
        prefix = keys.policy_epochs()
        found = await self._store.range(prefix, prefix_end(prefix))
        return [records.PolicyRecord.FromString(kv.value) for kv in found.kvs]

    async def _record(self, epoch: int) -> records.PolicyRecord:
        found = await self._store.range(keys.policy_epoch(epoch))
        if not found.kvs:
            raise EpochNotFound(str(epoch))
        return records.PolicyRecord.FromString(found.kvs[0].value)

    async def _bundle(self, epoch: int) -> PolicyBundle:
        found = await self._store.range(keys.policy_text(epoch))
        if not found.kvs:
            raise EpochNotFound(str(epoch))
        text = records.PolicyText.FromString(found.kvs[0].value)
        return PolicyBundle.of(epoch, [PolicyFile(file.name, file.text) for file in text.files])

    # Other replicas' changes.

    async def run(self) -> None:
        """Follows the store."""
        lost = False
        while True:
            try:
                if lost:
                    await self._catch_up()
                    lost = False
                async for batch in self._store.watch(keys.POLICIES, self._revision + 1):
                    if batch.events:
                        await self.look()
                    self._revision = batch.revision
            except Compacted:
                lost = True
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "policies_not_followed", cause=str(error))
                await asyncio.sleep(_RETRY * (0.5 + random.random()))

    async def _catch_up(self) -> None:
        """After history was lost: what is in force now, and then the changes after it."""
        self._revision = (await self._store.range(keys.policy_current())).revision
        await self.look()

    async def look(self) -> None:
        """Puts in force what the store says is."""
        epoch, _ = await self._current()
        if epoch <= self._policies.epoch:
            return
        try:
            bundle = await self._bundle(epoch)
            self._put_in_force(bundle, compile_bundle(bundle, kept=True))
        except EpochNotFound:
            return  # it has been replaced meanwhile, and the watch tells of that, too
        except PolicyError as error:
            self._policies.deny(epoch)
            self.changed(epoch)
            log.error("policies_not_readable", epoch=epoch, cause=f"everything is denied; upgrade: {error}")
