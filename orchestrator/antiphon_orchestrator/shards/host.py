"""Runs the shards that this replica owns: each is taken, rebuilt, driven, and let go of, apart from all others.

Which shards those are is decided elsewhere (cluster/). One that another replica has fenced off, or that is handed over,
leaves nothing behind (`leaving.py`); the process goes on.

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
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection

from antiphon.store.v1 import journal_pb2 as journal

from .. import telemetry
from ..engine.events import RunSubmitted
from ..engine.plan import Plan
from ..engine.run import Run, Task
from ..engine.states import RunState
from ..placement.fleet import Fleet, Need, Offered, Waiter
from ..placement.limits import Counter as LimitCounter
from ..store.port import Store, StoreFull
from ..wake import Wake
from . import codec, reading
from . import inputs as i
from .archiver import Archiver
from .aside import MOST as MOST_BLAMED
from .aside import STANDS, UNREAD, culprit, not_begun, unread
from .asking import without_turn
from .audited import AuditPages
from .clock import now
from .leaving import abandon, let_archived_go, turn_away
from .log import Fenced, ShardLog
from .moving import pays
from .recovery import recover_record, remember_requests
from .shard import Shard
from .turn import MAX_INPUTS, REQUEST_KEPT, REQUESTS_KEPT, Graphs, Outbox, Reader, Turn

log = telemetry.logger("shards")

RETAIN_BATCH = 1_000
"""Archived runs whose request ids are written at once."""

RETAIN_DELAY = 2_000_000
"""Microseconds after which a smaller batch is written as well."""

REQUESTS_STORED = 1 << 15
"""Most request ids of archived runs that the store keeps for all shards together, give or take a batch of each; some
100 bytes each. Older ones are in the archive (`remembering.py`)."""

LONG_LOG = 4_096
"""Segments after which the runs that hold the oldest are moved to the head of the log."""

SHORT_LOG = 256
"""The same while the store is filling up."""

STUMBLES = 2
"""Turns that end halfway at a family of runs before it stands aside."""


class NoPlan(Exception):
    """What a PlanLoader raises for a graph that is not there, or does not compile."""


class RecoveryFailed(Exception):
    """A run in the log cannot be taken up. The log is as it was."""


class Stumbled(Exception):
    """A turn of a shard ended halfway, by an exception; nothing of it is in the log. The shard is to be taken anew."""


PlanLoader = Callable[[RunSubmitted], Awaitable[Plan]]


class _Seat:
    """A shard with its log and what the loop needs to know between turns."""

    def __init__(self, shard: Shard, shard_log: ShardLog, audit: AuditPages) -> None:
        self.shard = shard
        self.log = shard_log
        self.audit = audit
        self.wake = Wake()
        self.room = Wake()
        self.room.set()
        self.retain_due = 0
        self.retained: deque[tuple[int, int, int]] = deque()
        """What the store holds of request ids: number of the value, when its last may be forgotten, how many."""
        self.next_retained = 1
        self.trimmed_below = 0
        self.trim_at = LONG_LOG
        self.moving: dict[str, int] = {}
        self.ready = False
        self.remembers = False
        """Whether the request ids of a whole day are here."""
        self.turn: Turn | None = None
        """What is being committed."""
        self.successor_id = ""
        """Whom it is to be handed over to, as soon as the present turn is over."""
        self.over = False
        """Whether it is known to be another's, although nothing was refused yet."""
        self.full: StoreFull | None = None
        """Why the store does not take what the shard has decided."""
        self.log.no_room = self._no_room

    def _no_room(self, full: StoreFull | None) -> None:
        self.full = full
        if full is not None:
            for _ in range(len(self.shard.inbox)):
                if not without_turn(self.shard.runs, item := self.shard.inbox.popleft(), full):
                    self.shard.inbox.append(item)


class Host:
    """The shards of one replica. `inbox_limit` bounds what submitters may queue in one shard: together, and each
    namespace its share of it by weight. `taken` is told each shard once it is rebuilt, `lost` each that was and is not
    here any more; `heir` says which replica, but for some, is to try one that cannot be rebuilt here; `others` waits
    between two turns for what else wants the loop. `now`: microseconds since 1970; what is due goes by it."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        outbox: Outbox,
        archiver: Archiver,
        reader: Reader,
        graphs: Graphs,
        load_plan: PlanLoader,
        *,
        replica_id: str,
        shard_count: int,
        inbox_limit: int,
        metrics: telemetry.Metrics,
        now: Callable[[], int] = now,
    ) -> None:
        self._store = store
        self._now = now
        self._fleet = fleet
        self._outbox = outbox
        self._load_plan = load_plan
        self._replica_id = replica_id
        self._inbox_limit = inbox_limit
        self._metrics = metrics
        self._long_log = LONG_LOG
        self._archiver = archiver
        self._reader = reader
        self._graphs = graphs
        self._stumbles: Counter[str] = Counter()
        """By family of runs, the turns that ended halfway at one of it."""
        self.requests_kept = REQUESTS_KEPT // shard_count
        """Most request ids of archived runs that each shard remembers."""
        self._seats: list[_Seat | None] = [None] * shard_count
        self._count = 0
        archiver.answer = self.put
        fleet.deliver = self._deliver
        fleet.limits.call = self._call_up
        self.taken: Callable[[int], None] = _nobody
        self.lost: Callable[[int], None] = _nobody
        self.heir: Callable[[int, Collection[str]], str | None] = _none
        self.others: Callable[[], Awaitable[None]] = _no_others

    @property
    def shard_count(self) -> int:
        """How many shards there are, here and elsewhere."""
        return len(self._seats)

    @property
    def shards(self) -> list[Shard]:
        """Those that are here and rebuilt."""
        return [seat.shard for seat in self._seats if seat is not None and seat.ready]

    def promised(self) -> int:
        """Bytes that large fan-outs of these shards will still write, about."""
        return sum(shard.promises.size() for shard in self.shards)

    def asking(self) -> int:
        """Tasks that wait for a person. It may be asked from any thread."""
        return sum(entry.run.asking for shard in self.shards for entry in list(shard.runs.values()))

    @property
    def audit(self) -> list[AuditPages]:
        """The audit chains of those shards."""
        return [seat.audit for seat in self._seats if seat is not None and seat.ready]

    def forgetful(self) -> list[int]:
        """Those of them that know the newest request ids only."""
        return [n for n, seat in enumerate(self._seats) if seat is not None and seat.ready and not seat.remembers]

    def remember(self, shard: int, older: dict[bytes, tuple[str, bytes, int]]) -> None:
        """Adds request ids, the oldest first, to a shard that is still here, which has them from then on."""
        seat = self._seats[shard]
        if seat is not None and seat.ready:
            remember_requests(seat.shard, older)
            seat.remembers = True

    @property
    def complete(self) -> bool:
        """Whether every shard is here, as on an embedded store."""
        return self._count == len(self._seats)

    @property
    def held(self) -> list[int]:
        """The numbers of those that are here, or about to be."""
        return [n for n, seat in enumerate(self._seats) if seat is not None]

    def holds(self, shard: int) -> bool:
        """Whether a shard is here, or about to be: what it is asked waits for it."""
        return self._seats[shard] is not None

    def shard(self, number: int) -> Shard:
        """A shard that is here."""
        seat = self._seats[number]
        assert seat is not None
        return seat.shard

    def shard_of(self, key: bytes) -> int:
        """The shard of a request (protocol.md §2)."""
        return zlib.crc32(key) % len(self._seats)

    def knows(self, shard: int, key: bytes) -> bool:
        """Whether a request was accepted before, so that its repetition needs no room."""
        seat = self._seats[shard]
        return seat is not None and (key in seat.shard.requests or key in seat.shard.kept)

    def shard_of_run(self, run_id: str) -> int | None:
        """The shard in a run id, or None when it is not one of ours."""
        try:
            shard = int(run_id[1:5], 16)
        except ValueError:
            return None
        return shard if run_id[:1] == "r" and 0 <= shard < len(self._seats) else None

    def need(self, run: Run, task: Task) -> Need:
        """What a task asks of an agent."""
        number = self.shard_of_run(run.run_id)
        assert number is not None
        return self.shard(number).need(run, task)

    def put(self, shard: int, item: i.Input) -> None:
        """Hands an input to a shard. Inputs that come of accepted work are never refused; their number is bounded.

        A shard that is not here answers Moved.
        """
        seat = self._seats[shard]
        if seat is None:
            turn_away(shard, self._fleet, item)
            return
        if seat.full is not None and without_turn(seat.shard.runs, item, seat.full):
            return
        seat.shard.inbox.append(item)
        seat.wake.set()

    def submit(self, shard: int, item: i.Submit) -> None:
        """Hands a new run to a shard: behind what is there, and among new runs by the weight of its namespace."""
        seat = self._seats[shard]
        if seat is None:
            turn_away(shard, self._fleet, item)
            return
        if seat.shard.backlog.size or len(seat.shard.inbox) >= min(MAX_INPUTS, self._inbox_limit):
            event = item.event
            seat.shard.backlog.push(event.namespace, (-event.priority, event.deadline_time), item)
        else:
            seat.shard.inbox.append(item)
        seat.wake.set()

    async def room(self, shard: int, namespace: str) -> None:
        """Waits until submitters of a namespace may add to a shard: the back-pressure of streams."""
        while (seat := self._seats[shard]) is not None and self.full(shard, namespace):
            seat.room.clear()
            await seat.room.wait()

    def full(self, shard: int, namespace: str) -> bool:
        """Whether unary submitters of a namespace are to be refused: as much waits as may, and it has its share."""
        seat = self._seats[shard]
        if seat is None:
            return False
        backlog = seat.shard.backlog
        if len(seat.shard.inbox) + backlog.size < self._inbox_limit:
            return False
        return backlog.of(namespace) >= backlog.share(namespace, self._inbox_limit)

    def crowded(self, shard: int) -> bool:
        """Whether so much waits that comes of accepted work that no more calls of agents are taken."""
        seat = self._seats[shard]
        return seat is not None and len(seat.shard.inbox) >= self._inbox_limit

    def _call_up(self, waiter: Waiter, counter: LimitCounter | None) -> None:
        self.put(waiter.shard, i.CalledUp(waiter, counter))

    def _deliver(self, waiter: Waiter, offered: Offered) -> None:
        self.put(waiter.shard, i.Reserved(waiter, offered))

    def release_timers(self, shard: int) -> None:
        """Ends the adoption window of a shard: from now on time may fail what nobody claimed."""
        seat = self._seats[shard]
        if seat is not None:
            seat.shard.timers_held = False
            seat.wake.set()

    def time_turned(self) -> None:
        """`now` has leapt: what is due by now is not waited for any longer."""
        self._fleet.limits.woken()
        for seat in self._seats:
            if seat is not None:
                seat.wake.set()

    async def own(self, number: int) -> None:
        """Takes a shard, rebuilds it from its log and drives it, until it is another's or this is cancelled.

        Raises RecoveryFailed, and then another replica that may be able to has it, if there is one. Raises Stumbled, to
        be called again, or what ended a turn, where nobody can be blamed for it (aside.py).
        """
        assert self._seats[number] is None
        started = time.monotonic()
        shard = Shard(
            number,
            self._fleet,
            self._outbox,
            self._archiver,
            self._reader,
            self._graphs,
            random.random,
            self.requests_kept,
        )
        shard_log = ShardLog(self._store, number, self._replica_id)
        audit = AuditPages(self._store, shard_log, shard.audit.chain.name, self._replica_id)
        seat = self._seats[number] = _Seat(shard, shard_log, audit)
        self._count += 1
        failed: RecoveryFailed | None = None
        try:
            try:
                await self._recover_seat(seat)
            except RecoveryFailed as unable:
                failed = unable
            if failed is not None:
                await self._pass_on(seat)
                raise failed
            took = round(time.monotonic() - started, 3)
            log.info("shard_taken", shard=number, epoch=shard.epoch, count=len(shard.runs), duration=took)
            self._resume(seat)
            seat.ready = True
            self.taken(number)
            await self._drive(seat)
            log.info("shard_handed_over", shard=number, epoch=shard.epoch, replica_id=seat.successor_id)
        except Fenced as error:
            log.warning("shard_not_ours", shard=number, cause=str(error))
        finally:
            self._seats[number] = None
            self._count -= 1
            if seat.ready:
                self.lost(number)
            abandon(shard, self._fleet, seat.turn)
            seat.room.set()

    def _resume(self, seat: _Seat) -> None:
        """Takes up what was rebuilt, but for what stands aside. Raises Stumbled, or what nobody can be blamed for."""
        shard = seat.shard
        shard.aside = {run_id: STANDS for run_id, times in self._stumbles.items() if times >= STUMBLES}
        for run_id, error in unread(shard).items():
            shard.aside[run_id] = UNREAD
            log.error("run_set_aside", shard=shard.index, run_id=run_id, exc_info=error)
        try:
            shard.resume()
        except Exception as ended:
            self._blame(seat, ended)
            raise Stumbled(f"shard {shard.index}: it was not taken up to the end") from ended

    async def _pass_on(self, seat: _Seat) -> None:
        """Gives a shard that cannot be rebuilt here to a replica that has not tried it yet."""
        unable = seat.log.unable_with_us()
        heir = self.heir(seat.shard.index, unable)
        if heir is not None:
            with contextlib.suppress(Fenced):
                await seat.log.hand_over(heir, unable)

    def hand_over(self, number: int, successor_id: str) -> None:
        """Gives a shard to another replica, as soon as its present turn is over."""
        seat = self._seats[number]
        if seat is not None:
            seat.successor_id = successor_id
            seat.wake.set()

    def told(self, number: int, epoch: int) -> None:
        """The store names an owner with that epoch: a shard of an older one is let go of, also when it has nothing to
        write that would be refused."""
        seat = self._seats[number]
        if seat is not None and seat.ready and seat.shard.epoch < epoch:
            seat.over = True
            seat.wake.set()

    async def owns(self, number: int) -> bool:
        """Whether a shard that is here is still this replica's, as the store says; if not, it is let go of.

        Whoever is about to say that something is not there asks: the next owner may have it, and only writes are
        refused by themselves. Raises StoreUnavailable.
        """
        seat = self._seats[number]
        if seat is None or not seat.ready:
            return False
        if not await seat.log.owned():
            seat.over = True
            seat.wake.set()
        return not seat.over

    async def _recover_seat(self, seat: _Seat) -> None:
        shard = seat.shard
        await seat.log.take()
        shard.epoch = seat.log.epoch
        await seat.audit.load(shard.audit.chain)
        shard.timers_held = True
        moment = self._now()
        async for n, kept in reading.retained(self._store, shard.index):
            latest = 0
            for request in kept.requests:
                latest = max(latest, request.expire_time)
                if request.expire_time > moment:
                    shard.kept[request.key] = (request.run_id, request.digest, request.expire_time)
            seat.retained.append((n, latest, len(kept.requests)))
            seat.next_retained = n + 1
        archived = {run_id for run_id, _, _ in shard.kept.values()}
        plans: dict[tuple[str, str, str], Plan] = {}
        async for seq, segment in reading.segments(self._store, shard.index):
            seat.log.next_seq = seq + 1
            seat.audit.recover(shard.audit.chain, segment)
            seat.trimmed_below = seat.trimmed_below or seq
            records = [journal.Record.FromString(raw) for raw in segment.records]
            for record in records:
                if record.run_id not in archived:
                    await self._plan(record, plans)
            for raw, record in zip(segment.records, records, strict=True):
                if record.run_id not in archived:
                    recover_record(shard, seq, raw, record, lambda submitted: plans[_graph_of(submitted)])
            await asyncio.sleep(0)  # a long log takes seconds, and leases are kept meanwhile
        if len(failed := unread(shard)) > MOST_BLAMED:
            run_id, error = next(iter(failed.items()))
            raise RecoveryFailed(
                f"runs of {len(failed)} families cannot be rebuilt from the log, as {run_id} ({error!r}); nothing is"
                " lost: start the version that took them"
            ) from error

    async def _plan(self, record: journal.Record, plans: dict[tuple[str, str, str], Plan]) -> None:
        """Loads the graph of a run before the run is rebuilt, which cannot wait."""
        if record.HasField("run_submitted"):
            submitted = codec.get_submitted(record.run_submitted)
        elif record.HasField("run_snapshot"):
            submitted = codec.get_submitted(record.run_snapshot.submitted)
        elif record.HasField("run_part") and record.run_part.number == 1:
            await self._plan(journal.Record.FromString(record.run_part.records[0]), plans)
            return
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

    async def _drive(self, seat: _Seat) -> None:
        """The loop of a shard, until it is handed over. Raises Fenced."""
        shard = seat.shard
        while True:
            moment = self._now()
            if seat.over:
                raise Fenced(f"shard {shard.index}: epoch {shard.epoch} is over")
            if seat.successor_id:
                # What has no page yet is in the log, where the next owner finds it.
                with contextlib.suppress(StoreFull):
                    await seat.audit.write(wait_for_space=False)
                await seat.log.hand_over(seat.successor_id)
                return
            if not shard.has_work(moment):
                await self._idle(seat, moment)
                continue
            if (under_way := self._store.under_way()) is not None:
                await under_way
                continue
            first_audited = shard.audit.chain.last_seq + 1
            try:
                turn = seat.turn = shard.take_turn(moment)
            except Exception as error:
                self._blame(seat, error)
                raise Stumbled(f"shard {shard.index}: a turn ended halfway") from error
            seq = 0
            if turn.records:
                began = time.monotonic()
                seq = await self._append(seat, turn, first_audited)
                self._metrics.commit_duration.observe(time.monotonic() - began)
            self._metrics.turn_inputs.observe(turn.inputs)
            for entry in turn.ended:
                self._metrics.count_run(entry.run.state.name)
            if turn.audit:
                seat.audit.committed(turn.audit, moment)
            self._release(seat, turn, seq)
            await asyncio.sleep(0)  # what was released leaves before the next turn is worked out
            await self.others()
            seat.room.set()  # who finds none after all waits on
            if seat.log.next_seq >= seat.trim_at:
                await self._trim(seat)
            if shard.retain and (len(shard.retain) >= RETAIN_BATCH or moment >= seat.retain_due):
                await self._forget_archived(seat, moment)
            if seat.audit.due is not None and moment >= seat.audit.due:
                await seat.audit.write_due(moment)

    def _release(self, seat: _Seat, turn: Turn, seq: int) -> None:
        """Lets a turn out that is committed. What cannot be let out is for whoever takes the shard next, as after a
        crash. Raises Stumbled."""
        try:
            seat.shard.release(turn, seq)
        except Exception as error:
            self._blame(seat, error)
            raise Stumbled(f"shard {seat.shard.index}: a turn was not let out to the end") from error
        seat.turn = None

    def _blame(self, seat: _Seat, error: Exception) -> None:
        """Tells, or remembers, at whom a turn ended halfway; raises its error where that is nobody, too many, or one
        that stands aside already."""
        shard, turn = seat.shard, seat.shard.turn
        assert turn is not None
        seat.turn = turn
        if not_begun(shard, turn):
            log.error("run_not_begun", shard=shard.index, exc_info=error)
            return
        run_id = culprit(shard)
        many = run_id not in self._stumbles and len(self._stumbles) >= MOST_BLAMED
        if not run_id or many or run_id in shard.aside:
            raise error
        if isinstance(turn.item, i.Asked | i.Report | i.Answered):
            shard.inbox.appendleft(turn.item)  # so that whoever waits for it is told, too
        self._stumbles[run_id] += 1
        aside = self._stumbles[run_id] >= STUMBLES
        log.error("run_set_aside" if aside else "run_stumbled", shard=shard.index, run_id=run_id, exc_info=error)

    def aside(self) -> int:
        """Runs that stand aside here. It may be asked from any thread."""
        return sum(entry.run.aside != "" for shard in self.shards for entry in list(shard.runs.values()))

    async def _append(self, seat: _Seat, turn: Turn, first_audited: int) -> int:
        """Commits what a turn decided. In a full store it makes what room it can, and tries again; raises Fenced."""
        wait = 0.01
        seat.full = None  # if something else found no room, such as a page of audit records, this turn may all the same
        while True:
            try:
                return await seat.log.append(turn.records, turn.audit, first_audited)
            except StoreFull as error:
                cause = str(error)
            if wait >= 1.0:
                telemetry.tell_seldom(log.error, "store_takes_no_writes", cause=cause)
            moment = self._now()
            let_archived_go(seat.shard, moment)
            while seat.shard.retain:
                await self._forget_archived(seat, moment)
            await asyncio.sleep(wait * (0.5 + random.random()))
            wait = min(wait * 2, 1.0)

    def keep_short(self, short: bool) -> None:
        """Whether runs that hold old segments are moved sooner than their number alone would ask for."""
        self._long_log = SHORT_LOG if short else LONG_LOG
        for seat in self._seats:
            if seat is not None:
                seat.trim_at = min(seat.trim_at, seat.log.next_seq + self._long_log // 4)

    async def write_audit(self) -> list[int]:
        """Gives all audit records of these shards that are in their logs a page; for whoever wants to read them.

        Says of which shards that holds. While the store is full, they stay in the log for the time being. All are
        written at once: whoever asks would wait for as many commits as there are shards, and a slow store takes long.
        """
        seats = [seat for seat in self._seats if seat is not None and seat.ready]
        written = await asyncio.gather(*(_write_pages(seat) for seat in seats))
        return [seat.shard.index for seat, done in zip(seats, written, strict=True) if done]

    async def _idle(self, seat: _Seat, moment: int) -> None:
        """Waits for an input, a timer, or the time to write request ids or audit records."""
        seat.wake.clear()
        if seat.successor_id or seat.over:
            return
        times = (seat.shard.next_due(), seat.retain_due if seat.shard.retain else None, seat.audit.due)
        due = [time for time in times if time is not None]
        if not due:
            await seat.wake.wait()
            return
        if seat.shard.retain and seat.retain_due <= moment:
            await self._forget_archived(seat, moment)
            return
        if seat.audit.due is not None and seat.audit.due <= moment:
            await seat.audit.write_due(moment)
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
        seat.retained.append((seat.next_retained, moment + REQUEST_KEPT, len(kept.requests)))
        seat.next_retained += 1
        shard.settle_retained(batch, moment)
        upto = outlived(seat.retained, REQUESTS_STORED // len(self._seats), moment)
        if upto:
            await seat.log.drop_retained(upto)
        await self._trim(seat)

    async def _trim(self, seat: _Seat) -> None:
        """Deletes the log below the oldest run that is still needed, and sees to runs that hold too much of it."""
        oldest = seat.shard.oldest_pinned()
        below = oldest[1] if oldest is not None else seat.log.next_seq
        if below > seat.trimmed_below:
            await seat.audit.write()  # they are nowhere else
            await seat.log.trim(below)
            seat.trimmed_below = below
        seat.trim_at = seat.log.next_seq + self._long_log // 4
        self._move_long_runs(seat)

    def _move_long_runs(self, seat: _Seat) -> None:
        """Archives what a long run has done so far; the answer makes its shard snapshot it at the head of the log."""
        seat.moving = {run_id: first for run_id, first in seat.moving.items() if run_id in seat.shard.runs}
        for run_id, first in list(seat.shard.pinned.items()):
            if seat.log.next_seq - first < self._long_log:
                return
            entry = seat.shard.runs.get(run_id)
            if entry is None or entry.run.state is not RunState.RUNNING or seat.moving.get(run_id) == first:
                continue
            if entry.mark >= 0:
                continue  # the present turn has touched it, and the archive takes nothing before the log
            if pays(entry, seat.log.next_seq - first):
                seat.moving[run_id] = first
                if entry.unread is not None:  # it is copied as it stands, and the archive keeps what it has of it
                    self.put(seat.shard.index, i.Archived({run_id: 0}))
                    continue
                self._archiver.put(seat.shard.index, entry.run, entry.key, entry.first_seq, tuple(entry.records))


def outlived(retained: deque[tuple[int, int, int]], most: int, moment: int) -> int:
    """Takes the oldest values of request ids out: those that are too old, and those beyond which there are `most` ids.

    Returns the number of the last one, or 0.
    """
    upto, left = 0, sum(count for _, _, count in retained)
    while retained and (retained[0][1] <= moment or left - retained[0][2] >= most):
        upto, _, count = retained.popleft()
        left -= count
    return upto


async def _write_pages(seat: _Seat) -> bool:
    """Whether the shard is still ours. Its own loop finds out in its time that it is fenced off, or waits for space."""
    try:
        await seat.audit.write(wait_for_space=False)
    except StoreFull:
        return True
    except Fenced:
        return False
    return True


def _nobody(shard: int) -> None:
    """Nobody wants to know."""


async def _no_others() -> None:
    return


def _none(shard: int, unable: Collection[str]) -> str | None:
    """There is no other replica."""
    return None


def _graph_of(submitted: RunSubmitted) -> tuple[str, str, str]:
    if submitted.graph is not None:
        return "", "", submitted.graph.SerializeToString(deterministic=True).hex()
    return submitted.namespace, submitted.graph_name, submitted.graph_version
