"""Runs the shards of one replica: ownership, recovery, the live loop, trimming.

Order of a run's end, each step safe to repeat: its end is committed → it is upserted into the archive → its request id
is written beside the log → the log below the oldest run still needed is deleted. A crash between two steps repeats the
first one that has not been seen. The log is trimmed from its beginning only, so that a run whose first record is still
there is there as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import zlib
from collections.abc import Awaitable, Callable

from antiphon.store.v1 import journal_pb2 as journal

from .. import telemetry
from ..engine.events import RunSubmitted
from ..engine.plan import Plan
from ..engine.run import Run, Task
from ..engine.states import RunState
from ..placement.fleet import Fleet, Need, Offered, Waiter
from ..store.port import Store, StoreFull
from . import codec, reading
from . import inputs as i
from .archiver import Archiver
from .audited import AuditPages
from .log import Fenced, ShardLog
from .recovery import recover_record
from .shard import REQUEST_KEPT, REQUESTS_KEPT, Shard
from .turn import Outbox, Reader

log = telemetry.logger("shards")

RETAIN_BATCH = 1_000
"""Archived runs whose request ids are written at once."""

RETAIN_DELAY = 2_000_000
"""Microseconds after which a smaller batch is written as well."""

LONG_LOG = 4_096
"""Segments after which the runs that hold the oldest are moved to the head of the log."""


class NoPlan(Exception):
    """What a PlanLoader raises for a graph that is not there, or does not compile."""


class RecoveryFailed(Exception):
    """A run in the log cannot be taken up. The log is as it was."""


PlanLoader = Callable[[RunSubmitted], Awaitable[Plan]]


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class _Seat:
    """A shard with its log and what the loop needs to know between turns."""

    def __init__(self, shard: Shard, shard_log: ShardLog, audit: AuditPages) -> None:
        self.shard = shard
        self.log = shard_log
        self.audit = audit
        self.wake = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.retain_due = 0
        self.retained: list[tuple[int, int]] = []
        self.next_retained = 1
        self.trimmed_below = 0
        self.trim_at = LONG_LOG
        self.moving: dict[str, int] = {}


class Host:
    """All shards of one replica. `inbox_limit` bounds what submitters may queue in one shard, `audit_max_records` its
    audit chain."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        outbox: Outbox,
        archiver: Archiver,
        reader: Reader,
        load_plan: PlanLoader,
        *,
        replica_id: str,
        shard_count: int,
        inbox_limit: int,
        audit_max_records: int,
    ) -> None:
        self._store = store
        self._load_plan = load_plan
        self._inbox_limit = inbox_limit
        self._archiver = archiver
        self._seats = []
        for n in range(shard_count):
            shard = Shard(n, fleet, outbox, archiver, reader, random.random, REQUESTS_KEPT // shard_count)
            shard_log = ShardLog(store, n, replica_id)
            audit = AuditPages(store, shard_log, shard.audit.chain.name, replica_id, audit_max_records)
            self._seats.append(_Seat(shard, shard_log, audit))
        archiver.answer = self.put
        fleet.deliver = self._deliver
        self.recovered = asyncio.Event()

    @property
    def shards(self) -> list[Shard]:
        return [seat.shard for seat in self._seats]

    def shard_of(self, key: bytes) -> int:
        """The shard of a request (protocol.md §2)."""
        return zlib.crc32(key) % len(self._seats)

    def knows(self, shard: int, key: bytes) -> bool:
        """Whether a request was accepted before, so that its repetition needs no room."""
        return key in self._seats[shard].shard.requests or key in self._seats[shard].shard.kept

    def shard_of_run(self, run_id: str) -> int | None:
        """The shard in a run id, or None when it is not one of ours."""
        try:
            shard = int(run_id[1:5], 16)
        except ValueError:
            return None
        return shard if run_id[:1] == "r" and 0 <= shard < len(self._seats) else None

    def need(self, run: Run, task: Task) -> Need:
        """What a task asks of an agent."""
        return self._seats[0].shard.need(run, task)

    def put(self, shard: int, item: i.Input) -> None:
        """Hands an input to a shard. Inputs that come of accepted work are never refused; their number is bounded."""
        seat = self._seats[shard]
        seat.shard.inbox.append(item)
        seat.wake.set()

    async def room(self, shard: int) -> None:
        """Waits until submitters may add to a shard: the back-pressure of streams."""
        seat = self._seats[shard]
        while len(seat.shard.inbox) >= self._inbox_limit:
            seat.room.clear()
            await seat.room.wait()

    def full(self, shard: int) -> bool:
        """Whether unary submitters are to be refused."""
        return len(self._seats[shard].shard.inbox) >= self._inbox_limit

    def _deliver(self, waiter: Waiter, offered: Offered) -> None:
        self.put(waiter.shard, i.Reserved(waiter, offered))

    def release_timers(self) -> None:
        """Ends the adoption window: from now on time may fail what nobody claimed."""
        for seat in self._seats:
            seat.shard.timers_held = False
            seat.wake.set()

    async def recover(self) -> None:
        """Takes every shard and rebuilds it from its log."""
        started = time.monotonic()
        for seat in self._seats:
            await self._recover_seat(seat)
        runs = sum(len(shard.runs) for shard in self.shards)
        log.info("shards_recovered", count=runs, duration=round(time.monotonic() - started, 3))
        for seat in self._seats:
            seat.shard.resume()
        self.recovered.set()

    async def _recover_seat(self, seat: _Seat) -> None:
        shard = seat.shard
        await seat.log.take()
        shard.epoch = seat.log.epoch
        await seat.audit.load(shard.audit.chain)
        shard.timers_held = True
        moment = now()
        async for n, kept in reading.retained(self._store, shard.index):
            latest = 0
            for request in kept.requests:
                latest = max(latest, request.expire_time)
                if request.expire_time > moment:
                    shard.kept[request.key] = (request.run_id, request.digest, request.expire_time)
            seat.retained.append((n, latest))
            seat.next_retained = n + 1
        archived = {run_id for run_id, _, _ in shard.kept.values()}
        plans: dict[tuple[str, str, str], Plan] = {}
        async for seq, segment in reading.segments(self._store, shard.index):
            seat.log.next_seq = seq + 1
            seat.audit.recover(shard.audit.chain, segment)
            seat.trimmed_below = seat.trimmed_below or seq
            records = [journal.Record.FromString(raw) for raw in segment.records]
            for record in records:
                await self._plan(record, plans)
            for raw, record in zip(segment.records, records, strict=True):
                if record.run_id not in archived:
                    recover_record(shard, seq, raw, record, lambda submitted: plans[_graph_of(submitted)])

    async def _plan(self, record: journal.Record, plans: dict[tuple[str, str, str], Plan]) -> None:
        """Loads the graph of a run before the run is rebuilt, which cannot wait."""
        if record.HasField("run_submitted"):
            submitted = codec.get_submitted(record.run_submitted)
        elif record.HasField("run_snapshot"):
            submitted = codec.get_submitted(record.run_snapshot.submitted)
        else:
            return
        key = _graph_of(submitted)
        if key in plans:
            return
        try:
            plans[key] = await self._load_plan(submitted)
        except NoPlan as error:
            raise RecoveryFailed(
                f"run {record.run_id} goes on with graph {submitted.graph_name}, which cannot be loaded ({error});"
                " nothing is lost: start the version that took it, let the run end or cancel it, then start this one"
            ) from error

    async def run(self) -> None:
        """Drives all shards until cancelled. Call after `recover`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._archiver.run(), name="archiver")
            for seat in self._seats:
                group.create_task(self._drive(seat), name=f"shard-{seat.shard.index}")

    async def _drive(self, seat: _Seat) -> None:
        shard = seat.shard
        while True:
            moment = now()
            if not shard.has_work(moment):
                await self._idle(seat, moment)
                continue
            first_audited = shard.audit.chain.last_seq + 1
            turn = shard.take_turn(moment)
            seq = await seat.log.append(turn.records, turn.audit, first_audited) if turn.records else 0
            if turn.audit:
                seat.audit.committed(turn.audit, moment)
            shard.release(turn, seq)
            await asyncio.sleep(0)  # what was released leaves before the next turn is worked out
            if not seat.room.is_set() and len(shard.inbox) < self._inbox_limit:
                seat.room.set()
            if seat.log.next_seq >= seat.trim_at:
                await self._trim(seat)
            if shard.retain and (len(shard.retain) >= RETAIN_BATCH or moment >= seat.retain_due):
                await self._forget_archived(seat, moment)
            if seat.audit.due is not None and moment >= seat.audit.due:
                await seat.audit.write()

    async def write_audit(self) -> None:
        """Gives all audit records of these shards that are in their logs a page; for whoever wants to read them."""
        for seat in self._seats:
            # The shard's own loop finds out in its time that it is fenced off, or waits for space.
            with contextlib.suppress(Fenced, StoreFull):
                await seat.audit.write(wait_for_space=False)

    async def _idle(self, seat: _Seat, moment: int) -> None:
        """Waits for an input, a timer, or the time to write request ids or audit records."""
        seat.wake.clear()
        times = (seat.shard.next_due(), seat.retain_due if seat.shard.retain else None, seat.audit.due)
        due = [time for time in times if time is not None]
        if not due:
            await seat.wake.wait()
            return
        if seat.shard.retain and seat.retain_due <= moment:
            await self._forget_archived(seat, moment)
            return
        if seat.audit.due is not None and seat.audit.due <= moment:
            await seat.audit.write()
            return
        handle = asyncio.get_running_loop().call_later(max(0, min(due) - moment) / 1e6, seat.wake.set)
        try:
            await seat.wake.wait()
        finally:
            handle.cancel()

    async def _forget_archived(self, seat: _Seat, moment: int) -> None:
        """Writes the request ids of archived runs; then the log may forget them."""
        shard = seat.shard
        batch, shard.retain = shard.retain[:RETAIN_BATCH], shard.retain[RETAIN_BATCH:]
        seat.retain_due = moment + RETAIN_DELAY
        kept = journal.RequestsRetained()
        for key in batch:
            if (known := shard.kept.get(key)) is not None:
                kept.requests.add(key=key, run_id=known[0], digest=known[1], expire_time=known[2])
        await seat.log.retain(seat.next_retained, kept)
        seat.retained.append((seat.next_retained, moment + REQUEST_KEPT))
        seat.next_retained += 1
        shard.settle_retained(batch, moment)
        expired = [n for n, latest in seat.retained if latest <= moment]
        if expired:
            await seat.log.drop_retained(expired)
            seat.retained = [(n, latest) for n, latest in seat.retained if latest > moment]
        await self._trim(seat)

    async def _trim(self, seat: _Seat) -> None:
        """Deletes the log below the oldest run that is still needed, and sees to runs that hold too much of it."""
        oldest = seat.shard.oldest_pinned()
        below = oldest[1] if oldest is not None else seat.log.next_seq
        if below > seat.trimmed_below:
            await seat.audit.write()  # they are nowhere else
            await seat.log.trim(below)
            seat.trimmed_below = below
        seat.trim_at = seat.log.next_seq + LONG_LOG // 4
        self._move_long_runs(seat)
        await seat.audit.trim()

    def _move_long_runs(self, seat: _Seat) -> None:
        """Archives what a long run has done so far; the answer makes its shard snapshot it at the head of the log."""
        seat.moving = {run_id: first for run_id, first in seat.moving.items() if run_id in seat.shard.runs}
        for run_id, first in list(seat.shard.pinned.items()):
            if seat.log.next_seq - first < LONG_LOG:
                return
            entry = seat.shard.runs.get(run_id)
            if entry is not None and entry.run.state is RunState.RUNNING and seat.moving.get(run_id) != first:
                seat.moving[run_id] = first
                self._archiver.put(seat.shard.index, entry.run, entry.key, entry.first_seq, tuple(entry.records))


def _graph_of(submitted: RunSubmitted) -> tuple[str, str, str]:
    if submitted.graph is not None:
        return "", "", submitted.graph.SerializeToString(deterministic=True).hex()
    return submitted.namespace, submitted.graph_name, submitted.graph_version
