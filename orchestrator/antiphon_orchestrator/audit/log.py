"""The chain `calls`: acts and refusals that belong to no run, written by all replicas in turn.

What waits is one commit: its page and the head, compared with the head as it was; another replica that was quicker is
followed, not overwritten. `write` returns when its record is durable, so whoever awaits it before answering has no
answer out without a record. Refusals are not waited for: the queue is bounded, and what finds no room, or is lost with
a full store, is logged with all it would have said.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from .. import telemetry
from ..policy import Decision, Request
from ..shards.log import settle
from ..store import keys
from ..store.port import Compare, Delete, Put, Store, StoreFull, StoreUnavailable, Target, Txn
from . import reading
from .chain import Chain, Fact, page
from .denials import WINDOW, Denials

log = telemetry.logger("audit")

CALLS = "calls"
"""Name of the chain."""

QUEUE = 10_000
BATCH = 100

BEYOND_POLICY = "permitted by policy, but not granted by the certificate, or on a condition that cannot be met here"

CLOSING = 2.0
"""Seconds that the end of a process waits for its last records."""

STAYING = 1000
"""Newest records that stay in the store: whoever must find out whether its own page was written, of a commit whose
answer was lost, finds it there although others wrote on."""


class _Waiting(NamedTuple):
    fact: Fact
    time: int
    done: asyncio.Future[None] | None


class _Step(NamedTuple):
    """What moves the chain on: an operation together with the head, and the chain as it is then."""

    operation: Put | Delete
    head: Put
    unchanged: Compare
    after: Chain


class AuditLog:
    """`load` first, then `run`; `close` writes what is left. `writer`: the replica. A chain that is moved, too."""

    name = CALLS

    def __init__(self, store: Store, writer: str, now: Callable[[], int]) -> None:
        self._store = store
        self._writer = writer
        self._now = now
        self._chain = Chain(CALLS)
        self._turn = asyncio.Lock()
        self.moved_seq = 0
        self._revision = 0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(QUEUE)
        # What was taken from the queue and has no answer yet, and its page once that was sent.
        self._under_way: list[_Waiting] = []
        self._sent: _Step | None = None
        self._denials = Denials()

    async def load(self) -> None:
        """Finds the end of the chain and looks at it; a broken one is an alarm in the log, and goes on."""
        await self._catch_up()
        await look_at(self._store, self._chain)

    def record(self, request: Request, decision: Decision) -> None:
        """Takes what was refused, mostly by this decision, and does not wait. Raises nothing."""
        moment = self._now()
        fact = Fact(
            request.action.value,
            request.namespace,
            request.principal,
            f"{request.resource_kind.value}::{request.namespace}/{request.resource_id}",
            "DENIED",
            decision_id=decision.decision_id,
            policy_epoch=decision.epoch,
            reason=BEYOND_POLICY if decision.allowed else decision.reason,
            details={name: _shown(value) for name, value in request.attributes},
        )
        noted = self._denials.note(fact, moment)
        if noted is not None:
            self.note(noted, moment)

    def note(self, fact: Fact, time: int) -> None:
        """Takes a fact of this time (microseconds since 1970) and does not wait. Raises nothing."""
        try:
            self._queue.put_nowait(_Waiting(fact, time, None))
        except asyncio.QueueFull:
            _log_lost(fact)

    async def write(self, fact: Fact) -> None:
        """Returns when the record is durable. Raises StoreFull, and then whoever asked must not act, or not say so."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Waiting(fact, self._now(), done))
        await done

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(WINDOW / 1e6 if self._denials.open else None):
                    batch = [await self._queue.get()]
            except TimeoutError:
                batch = []
            moment = self._now()
            for fact in self._denials.due(moment):
                self.note(fact, moment)
            self._under_way = self._taken(batch)
            await self._commit()

    @property
    def movable_seq(self) -> int:
        """See `MovableChain.movable_seq`."""
        return self._chain.last_seq - STAYING

    async def drop(self, upto: int) -> None:
        """See `MovableChain.drop`. It compares nothing: what is deleted is in the archive, whoever wrote since."""
        await settle(self._store, Txn(ops=(dropping(self.name, upto),)))

    async def begin_after(self, seq: int, hash: bytes) -> None:
        """See `MovableChain.begin_after`."""
        async with self._turn:
            await self._catch_up()
            while self._chain.trimmed_seq < seq:
                after = self._copy()
                after.trimmed_seq, after.trimmed_hash = seq, hash
                if not await self._make(self._step(dropping(self.name, seq), after)):
                    await self._catch_up()

    async def close(self) -> None:
        """Writes what is left; once, when `run` has ended and nobody adds any more."""
        moment = self._now()
        for fact in self._denials.due(moment + WINDOW):
            self.note(fact, moment)
        try:
            async with asyncio.timeout(CLOSING):
                await self._commit()  # `run` may have been cancelled in the middle of one
                while batch := self._taken([]):
                    self._under_way = batch
                    await self._commit()
        except TimeoutError:
            log.error("audit_not_closed", cause="it took too long", count=len(self._under_way) + self._queue.qsize())

    def _taken(self, batch: list[_Waiting]) -> list[_Waiting]:
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def _commit(self) -> None:
        """Writes what is under way, and answers it; when that was cancelled, another call goes on with it."""
        refusal: StoreFull | None = None
        wait = 0.01
        while self._under_way:
            try:
                async with self._turn:
                    while not await self._append():
                        await self._catch_up()
                break
            except StoreFull as full:
                refusal = full
                break
            except StoreUnavailable as error:
                if wait >= 1.0:
                    telemetry.tell_seldom(log.warning, "audit_waits", cause=str(error), count=len(self._under_way))
            await asyncio.sleep(wait * (0.5 + random.random()))
            wait = min(wait * 2, 1.0)
        batch, self._under_way, self._sent = self._under_way, [], None
        for waiting in batch:
            if waiting.done is None:
                if refusal is not None:
                    _log_lost(waiting.fact)
            elif not waiting.done.done():
                if refusal is not None:
                    waiting.done.set_exception(refusal)
                else:
                    waiting.done.set_result(None)

    async def _append(self) -> bool:
        """Whether what is under way is in the chain now; False when another replica wrote first.

        What was sent once is sent again as it was, until it is known to be there or never to come. Raises StoreFull.
        """
        if self._sent is None:
            after = self._copy()
            raw = [after.add(waiting.fact, waiting.time) for waiting in self._under_way]
            self._sent = self._step(Put(keys.audit(CALLS, self._chain.last_seq + 1), page(raw)), after)
        if await self._make(self._sent):
            return True
        put = self._sent.operation
        found = (await self._store.range(put.key)).kvs
        if isinstance(put, Put) and found and found[0].value == put.value:
            await self._catch_up()  # ours, of a commit whose answer was lost, and another replica wrote on since
            return True
        self._sent = None
        return False

    def _step(self, operation: Put | Delete, after: Chain) -> _Step:
        key = keys.audit_head(CALLS)
        head = Put(key, after.head(self._writer).SerializeToString())
        return _Step(operation, head, Compare(key, Target.MOD_REVISION, self._revision), after)

    async def _make(self, step: _Step) -> bool:
        """Whether the chain is there now; False when another replica wrote first. Raises StoreFull."""
        key = step.head.key
        txn = Txn((step.unchanged,), (step.operation, step.head), (key,))
        result = await settle(self._store, txn, wait_for_space=False)
        if result.succeeded:
            revision = result.revision
        else:
            there = result.observed[key]
            if there is None or there.value != step.head.value:
                return False
            revision = there.mod_revision  # ours, of a commit whose answer was lost
        self._chain, self._revision = step.after, revision
        return True

    def _copy(self) -> Chain:
        """The chain, to be moved on while it is not known whether the store takes that."""
        copy = Chain(CALLS)
        copy.load(self._chain.head(self._writer))
        return copy

    async def _catch_up(self) -> None:
        """Takes the chain as the store has it."""
        found = await reading.head(self._store, CALLS)
        self._chain = Chain(CALLS)
        self._revision = 0
        if found is not None:
            self._chain.load(found[0])
            self._revision = found[1]


def dropping(chain: str, upto: int) -> Delete:
    """What deletes the pages of a chain up to a record."""
    return Delete(keys.audit(chain, 0), keys.audit(chain, upto + 1))


async def look_at(store: Store, chain: Chain) -> None:
    """Raises an alarm in the log when the end of a chain is not what was written. Refuses nothing."""
    try:
        if chain.last_seq == 0:
            prefix = keys.audit_prefix(chain.name)
            found = await store.range(prefix, keys.audit(chain.name, (1 << 64) - 1), limit=1)
            broken = (1, "the head is missing, and there are records") if found.kvs else None
        else:
            broken = await reading.broken_at(store, chain.name, chain.head(""))
    except StoreUnavailable as error:
        log.warning("audit_not_verified", key=chain.name, cause=str(error))
        return
    if broken is not None:
        log.error("audit_chain_broken", key=chain.name, seq=broken[0], cause=broken[1])


def _shown(value: object) -> str:
    return ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def _log_lost(fact: Fact) -> None:
    log.error(
        "audit_record_lost",
        principal=fact.principal,
        action=fact.action,
        source=fact.resource,
        decision_id=fact.decision_id,
        state=fact.outcome,
        cause=fact.reason,
    )
