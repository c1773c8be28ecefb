"""Which replicas are there and who owns which shard, as the store says; and that we are there.

`replica/<id>` stands under the lease of this process for as long as that is renewed, on the event loop that does the
work: a loop that is stuck loses its lease. The marker decides when others try to take over, never who owns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

from antiphon.store.v1 import records_pb2 as records

from .. import telemetry
from ..shards.log import settle
from ..store import keys
from ..store.port import (
    Compacted,
    Compare,
    EventType,
    KeyValue,
    LeaseNotFound,
    Put,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)
from .assignment import REST, Member, Owner

log = telemetry.logger("cluster")

LEASE = 5
"""Seconds without a renewal after which this replica counts as gone."""

RENEWAL = 1.25
"""Seconds between renewals, and the time one may take."""

_RETRY = 0.25


class AddressInUse(Exception):
    """Another replica that is there is reached at the address that this one was given."""


async def check_address(store: Store, address: str) -> None:
    """Raises AddressInUse for that of a live replica. One that has crashed stays for as long as its lease, and may have
    been this very one: it is waited for. What was asked before the end of that time decides nothing: the process may
    have been stopped since."""
    until = clock() + 2 * LEASE * 1_000_000
    while True:
        asked = clock()
        other = await _first_at(store, address)
        if other is None:
            return
        if asked > until:
            raise _in_use(address, other)
        await asyncio.sleep(_RETRY)


def clock() -> int:
    """Microseconds that only grow: what `Member.seen` is measured by."""
    return time.monotonic_ns() // 1000


class Membership:
    """`join`, then `run` in the task group; `leave` and `gone` before the store is closed."""

    def __init__(self, store: Store, replica_id: str, version: str, start_time: int) -> None:
        self._store = store
        self.replica_id = replica_id
        self._record = records.ReplicaRecord(version=version, start_time=start_time)
        self._lease = 0
        self._renewed = clock()
        self._lost = False
        """Whether the lease has ended, and who owns which shard was not read since."""
        self._behind = False
        """Whether the store was away for as long as the lease lasts, and what else is kept of it was not read since."""
        self._back = asyncio.Event()
        self._revision = 0
        self.members: dict[str, Member] = {}
        self.owners: dict[int, Owner] = {}
        self.changes = 0
        """Grows with every change."""
        self.returned: Callable[[], None] = _nobody
        """Called when the owners of all shards are known again after the lease had ended, before anything else is."""
        self.read_again: Callable[[], Awaitable[None]] = _nothing
        """Awaited when the store is back that was away: reads anew what is kept of it besides replicas and owners."""
        self._news = asyncio.Event()
        self._followed: dict[bytes, int] = {}

    @property
    def others(self) -> list[Member]:
        """The live replicas besides this one."""
        return [member for member in self.members.values() if member.replica_id != self.replica_id]

    @property
    def leaving(self) -> bool:
        return self._record.leaving

    @property
    def cut_off(self) -> bool:
        """Whether others may have taken what is held here, or changed what is kept: the lease was not renewed for as
        long as it lasts, or it is not known yet what they did meanwhile."""
        return self._away or self._behind

    @property
    def _away(self) -> bool:
        return self._store.shared and (self._lost or clock() - self._renewed > LEASE * 1_000_000)

    def claimant(self, shard: int) -> Member | None:
        """The live replica that answers for a shard, or is about to; None while there is none."""
        owner = self.owners.get(shard)
        return self.members.get(owner.claimant) if owner is not None else None

    async def join(self, address: str, join_address: str) -> None:
        """Says that this replica is there, at that address, and reads who else is; a full store is waited for. Raises
        AddressInUse when another one was there first.

        `join_address`: where one can join here, empty where nobody can.
        """
        self._record.address, self._record.join_address = address, join_address
        if self._store.shared:
            await check_address(self._store, address)
        while True:
            try:
                self._renewed = await self._appear()
                break
            except (StoreFull, LeaseNotFound) as error:  # the lease ends while its marker waits for room
                telemetry.tell_seldom(log.error, "store_takes_no_writes", cause=str(error))
                await asyncio.sleep(RENEWAL)
        for prefix, note in self._kinds():
            await self._read(prefix, note)
        if self._store.shared:
            first = await _first_at(self._store, address)
            if first not in (None, self.replica_id):  # both have looked before either was there
                raise _in_use(address, first)
        # Whoever was there before us has rested.
        self.members = {name: replace(member, seen=member.seen - REST) for name, member in self.members.items()}

    async def leave(self) -> None:
        """Says that this replica is about to end: nobody gives it anything any more."""
        self._record.leaving = True
        await self._put()

    async def gone(self) -> None:
        """Takes the marker away, so that nobody waits for the lease to end."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RENEWAL):
                await self._store.revoke(self._lease)

    async def refresh(self, shard: int) -> None:
        """Reads who owns a shard, without waiting for the watch to tell."""
        for kv in (await self._store.range(keys.shard_owner(shard))).kvs:
            self._note_owner(kv)

    async def run(self) -> None:
        """Renews the lease and follows the store, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew(), name="lease")
            group.create_task(self._return(), name="what has changed meanwhile")
            for prefix, note in self._kinds():
                group.create_task(self._follow(prefix, note), name=f"cluster {prefix.decode()}")

    def _kinds(self) -> tuple[tuple[bytes, Callable[[KeyValue], None]], ...]:
        return (keys.REPLICAS, self._note_replica), (keys.SHARDS, self._note_owner)

    async def change(self, since: int, limit: float) -> None:
        """Returns when `changes` is not `since` any more, or after `limit` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self.changes == since:
                    await self._news.wait()

    # Being there.

    async def _appear(self) -> int:
        """Since when it is there."""
        began = clock()
        self._lease = await self._store.grant(LEASE)
        await self._put()
        return began

    async def _put(self) -> None:
        key, value = keys.replica(self.replica_id), self._record.SerializeToString()
        while True:
            # The compare keeps an earlier one that lands late from undoing what came after it.
            compare = Compare(key, Target.MOD_REVISION, self._revision)
            result = await settle(self._store, Txn((compare,), (Put(key, value, self._lease),), (key,), spare=True))
            if result.succeeded:
                self._revision = result.revision
                return
            found = result.observed[key]
            self._revision = found.mod_revision if found is not None else 0
            if found is not None and (found.value, found.lease) == (value, self._lease):
                return

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            began, away = clock(), self._away
            self._behind = self._behind or away
            try:
                async with asyncio.timeout(RENEWAL):
                    await self._store.keep_alive(self._lease)
                    await self._catch_up()
                self._renewed = began
            except LeaseNotFound:
                telemetry.tell_seldom(log.warning, "lease_lost", cause="others may have taken our shards")
                self._lost = True
                await self._reappear()
            except (StoreUnavailable, TimeoutError) as error:
                cause = str(error) or "the store does not answer in time"
                telemetry.tell_seldom(log.warning, "lease_not_renewed", cause=cause)
            if away and not self._away:
                self._back.set()

    async def _reappear(self) -> None:
        try:
            began = await self._appear()
            await self._catch_up()
            self._renewed = began
        except StoreError as error:
            telemetry.tell_seldom(log.warning, "lease_not_renewed", cause=str(error))

    async def _catch_up(self) -> None:
        """After the lease has ended: who owns which shard now, without waiting for the watch to tell."""
        if self._lost:
            await self._read(keys.SHARDS, self._note_owner)
            self.returned()
            self._lost = False

    async def _return(self) -> None:
        """Once the store is back: what others have changed meanwhile, before watches tell, each in its own time. Beside
        the renewals, since it may be much."""
        while True:
            await self._back.wait()
            self._back.clear()
            try:
                await self.read_again()
                self._behind = self._away or self._back.is_set()
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "cluster_not_followed", cause=str(error))
                self._back.set()
                await asyncio.sleep(_RETRY)

    # Following.

    async def _follow(self, prefix: bytes, note: Callable[[KeyValue], None]) -> None:
        while True:
            try:
                async with aclosing(self._store.watch(prefix, self._followed[prefix])) as changes:
                    async for batch in changes:
                        for event in batch.events:
                            if event.type is EventType.PUT:
                                note(event.kv)
                            else:
                                self._note_gone(event.kv)
                        self._followed[prefix] = batch.revision + 1
            except Compacted:
                await self._read_again(prefix, note)
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "cluster_not_followed", cause=str(error))
                await asyncio.sleep(_RETRY)

    async def _read_again(self, prefix: bytes, note: Callable[[KeyValue], None]) -> None:
        try:
            await self._read(prefix, note)
        except StoreUnavailable as error:
            telemetry.tell_seldom(log.warning, "cluster_not_followed", cause=str(error))
            await asyncio.sleep(_RETRY)

    async def _read(self, prefix: bytes, note: Callable[[KeyValue], None]) -> None:
        found = await self._store.range(prefix, prefix_end(prefix))
        if prefix == keys.REPLICAS:
            there = {keys.parts(kv.key)[1] for kv in found.kvs}
            self.members = {name: member for name, member in self.members.items() if name in there}
        for kv in found.kvs:
            note(kv)
        self._followed[prefix] = found.revision + 1

    def _note_replica(self, kv: KeyValue) -> None:
        name = keys.parts(kv.key)[1]
        record = records.ReplicaRecord.FromString(kv.value)
        known = self.members.get(name)
        seen = known.seen if known is not None else clock()
        self.members[name] = Member(
            name, record.address, record.version, record.start_time, record.leaving, seen, record.join_address
        )
        if known is None:
            log.info("replica_came", replica_id=name, address=record.address)
        self._tell()

    def _note_owner(self, kv: KeyValue) -> None:
        _, number, *rest = keys.parts(kv.key)
        if rest != ["owner"]:
            return
        record = records.ShardOwner.FromString(kv.value)
        shard = int(number, 16)
        known = self.owners.get(shard)
        if known is None or known.revision < kv.mod_revision:
            self.owners[shard] = Owner(
                record.replica_id, record.epoch, record.successor_id, kv.mod_revision, frozenset(record.unable_ids)
            )
            self._tell()

    def _note_gone(self, kv: KeyValue) -> None:
        parts = keys.parts(kv.key)
        if parts[0] == "replica" and self.members.pop(parts[1], None) is not None:
            log.info("replica_went", replica_id=parts[1])
            self._tell()

    def _tell(self) -> None:
        self.changes += 1
        news, self._news = self._news, asyncio.Event()
        news.set()


def _nobody() -> None:
    """Nobody wants to know."""


async def _nothing() -> None:
    """Nothing else is kept."""


async def _first_at(store: Store, address: str) -> str | None:
    """Which of the replicas at an address has been there for longest."""
    found = (await store.range(keys.REPLICAS, prefix_end(keys.REPLICAS))).kvs
    there = [kv for kv in found if records.ReplicaRecord.FromString(kv.value).address == address]
    return keys.parts(min(there, key=lambda kv: kv.create_revision).key)[1] if there else None


def _in_use(address: str, replica_id: str) -> AddressInUse:
    remedy = "give this one an address of its own"
    return AddressInUse(f"advertise: {address} is the address of replica {replica_id}, which is there: {remedy}")
