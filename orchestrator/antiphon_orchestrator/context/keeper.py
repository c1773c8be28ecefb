"""What time does to shared context: expired entries, ended claims and old request ids go, in bounded batches.

Nothing waits for it: what has expired is invisible before it is collected. Each delete compares the revision that was
known to have ended, so an entry that was written anew meanwhile stays. The indexes follow the store by a watch, so that
the writes of other replicas count; when it comes too late for that, they are told everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta

from antiphon.store.v1 import records_pb2 as records
from antiphon_certs import Clock

from .. import telemetry
from ..api.storing import settle
from ..archive import ArchiveUnavailable
from ..store import keys
from ..store.port import (
    Compacted,
    Compare,
    Delete,
    EventType,
    KeyValue,
    Store,
    StoreFull,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)
from .claims import Claims, known_claim
from .entries import known_entry
from .index import Index, Known

log = telemetry.logger("context")

LOOK = timedelta(seconds=1)
"""Time between two looks at what has ended."""

BATCH = 100
"""Deletes in one transaction, and keys read at once."""

MOST_REQUESTS = 65_536
"""Request ids that are remembered; above it the oldest go early."""

RUN_KEPT = 3600 * 1_000_000
"""Microseconds for which entries outlive the run whose scope they are in, so that people can look at them."""

RUNS_LOOK = timedelta(minutes=1)
"""Time between two looks at those entries."""

Ended = Callable[[str], Awaitable[bool]]
"""Whether an attempt is over."""

RunEnded = Callable[[str], Awaitable[int | None]]
"""When a run ended, in microseconds since 1970; 0 where there is no such run, None while it goes on and where another
replica has it. Raises ArchiveUnavailable."""


class Keeper:
    """`load` before anything is served, then `run`. `ended` is asked about attempts that hold claims, `run_ended` about
    runs that have entries in their scope."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        entries: Index,
        held: Index,
        requests: Index,
        clock: Clock,
        now: Callable[[], int],
    ) -> None:
        self.entries = entries
        self.held = held
        self.requests = requests
        self.ended: Ended | None = None
        self.run_ended: RunEnded | None = None
        self._store = store
        self._claims = claims
        self._clock = clock
        self._now = now
        self._read_to: list[int] = []
        self._kinds: tuple[tuple[bytes, Index, Callable[[KeyValue], Known]], ...] = (
            (keys.CONTEXT, self.entries, known_entry),
            (keys.CLAIMS, self.held, known_claim),
            (keys.CONTEXT_REQUESTS, self.requests, _known_request),
        )

    async def load(self) -> None:
        """Reads what the store has."""
        self._read_to = [await self._read(*kind) for kind in self._kinds]

    async def _read(self, prefix: bytes, index: Index, known: Callable[[KeyValue], Known]) -> int:
        """Tells an index all that is there, and that the rest is not; the revision from which on it is to follow."""
        start, end, revision = prefix, prefix_end(prefix), 0
        there: set[bytes] = set()
        while True:
            found = await self._store.range(start, end, limit=BATCH)
            revision = revision or found.revision
            for kv in found.kvs:
                index.put(kv.key, known(kv))
                there.add(kv.key)
            if not found.more:
                break
            start = found.kvs[-1].key + b"\0"
        for key in index.keys() - there:
            index.delete(key, revision + 1)  # unless it was put since
        return revision + 1

    async def run(self) -> None:
        """Follows and collects until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind, revision in zip(self._kinds, self._read_to, strict=True):
                group.create_task(self._follow(*kind, revision), name=f"context {kind[0].decode()}")
            group.create_task(self._collect(), name="context collection")
            group.create_task(self._collect_runs(), name="context of runs")

    async def _follow(self, prefix: bytes, index: Index, known: Callable[[KeyValue], Known], revision: int) -> None:
        while True:
            try:
                async with aclosing(self._store.watch(prefix, revision)) as changes:
                    async for batch in changes:
                        for event in batch.events:
                            if index is self.held:
                                self._claims.followed(event)
                            if event.type is EventType.PUT:
                                index.put(event.kv.key, known(event.kv))
                            else:
                                index.delete(event.kv.key, event.kv.mod_revision)
                        revision = batch.revision + 1
            except Compacted:
                log.warning("context_history_compacted", count=len(index))
                revision = await self._read(prefix, index, known)
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "context_not_followed", cause=str(error))
                await self._clock.sleep(LOOK)

    async def _collect(self) -> None:
        while True:
            await self._clock.sleep(LOOK)
            try:
                await self.collect()
            except (StoreUnavailable, StoreFull) as error:
                telemetry.tell_seldom(log.warning, "context_not_collected", cause=str(error))

    async def collect(self) -> None:
        """Removes what has ended by now, and what claims attempts have left behind."""
        now = self._now()
        for index in (self.entries, self.requests):
            while batch := index.due(now, BATCH):
                with index.again_unless_done(batch):
                    await self._remove(index, batch)
        old = self.requests.oldest(MOST_REQUESTS)
        with self.requests.again_unless_done(old):
            for begin in range(0, len(old), BATCH):
                await self._remove(self.requests, old[begin : begin + BATCH])
        ended = self.held.due(now, len(self.held))
        with self.held.again_unless_done(ended):
            for key, _ in ended:
                await self._end_claim(key)
        if self.ended is not None:
            for key, attempt_id in self.held.of_attempts():
                if await self.ended(attempt_id):
                    await self._end_claim_of(key, attempt_id)

    async def _collect_runs(self) -> None:
        while True:
            await self._clock.sleep(RUNS_LOOK)
            try:
                await self.collect_runs()
            except (StoreUnavailable, StoreFull, ArchiveUnavailable) as error:
                telemetry.tell_seldom(log.warning, "context_not_collected", cause=str(error))

    async def collect_runs(self) -> None:
        """Removes entries of runs that ended a while ago; what came to one after its end stays as long."""
        if self.run_ended is None:
            return
        before = self._now() - RUN_KEPT
        for run_id, entries in self.entries.of_runs().items():
            old = [(key, known) for key, known in entries if known.create_time <= before]
            if not old:
                continue
            end_time = await self.run_ended(run_id)
            if end_time is not None and end_time <= before:
                for begin in range(0, len(old), BATCH):
                    await self._remove(self.entries, old[begin : begin + BATCH])

    async def _remove(self, index: Index, batch: list[tuple[bytes, Known]]) -> None:
        if await self._delete(index, batch) or len(batch) == 1:
            return
        for one in batch:  # one of them was written anew: the others are still to go
            await self._delete(index, [one])

    async def _delete(self, index: Index, batch: list[tuple[bytes, Known]]) -> bool:
        compares = tuple(Compare(key, Target.MOD_REVISION, known.revision) for key, known in batch)
        result = await settle(self._store, Txn(compares, tuple(Delete(key) for key, _ in batch)))
        if result.succeeded:
            for key, _ in batch:
                index.delete(key, result.revision)
        return result.succeeded

    async def _end_claim(self, key: bytes) -> None:
        for kv in (await self._store.range(key)).kvs:
            record = records.ClaimRecord.FromString(kv.value)
            if record.expire_time <= self._now() and await self._claims.end(kv):
                self._claims.tell_lost(key, known_claim(kv))

    async def _end_claim_of(self, key: bytes, attempt_id: str) -> None:
        for kv in (await self._store.range(key)).kvs:
            if records.ClaimRecord.FromString(kv.value).attempt_id == attempt_id:
                await self._claims.end(kv)


def _known_request(kv: KeyValue) -> Known:
    return Known(kv.mod_revision, 1, records.ContextRequestRecord.FromString(kv.value).expire_time)
