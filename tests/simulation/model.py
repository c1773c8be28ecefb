"""Orchestrators without sockets, disk or clock: real shards, fleet, codec and policy over models of what they need.

`Disk` is what survives: who owns what, logs, request ids, the archive. `Replica` is one process: it mirrors the order
of shards.host and mesh.sessions step by step, but the scheduler of the simulation decides when each step happens,
whether the process is still there for the next, and whether the others believe it is. What clients and agents see is
written down by them, not here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from antiphon.store.v1 import journal_pb2
from antiphon.v1 import capability_pb2, registry_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.engine.events import OUTPUT, Found, RunSubmitted
from antiphon_orchestrator.engine.failure import Failure
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run, Task
from antiphon_orchestrator.engine.states import ATTEMPT_LIVE, RunState
from antiphon_orchestrator.placement.fleet import Fleet, Instance, Offered, Waiter
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.leaving import abandon, turn_away
from antiphon_orchestrator.shards.recovery import recover_record
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.shards.turn import Turn
from antiphon_orchestrator.store.port import MAX_TXN_BYTES

from tests.fakes.plans import payload

SECOND = 1_000_000
SHARDS = 2
LONG_LOG = 6
GRACE = 8 * SECOND
ADOPTION = 5 * SECOND
AGENT = "worker"
POLICY = CedarPolicies(dev_profile())


@dataclass(slots=True)
class Owner:
    """Who owns a shard: the number of a replica, 0 for nobody yet. `heir`: who was named to take it, 0 for nobody."""

    replica: int = 0
    epoch: int = 0
    heir: int = 0


@dataclass
class Disk:
    """What outlives a process. A write is refused when the epoch is not the owner's; no number is written twice."""

    owners: list[Owner] = field(default_factory=lambda: [Owner() for _ in range(SHARDS)])
    logs: list[dict[int, list[bytes]]] = field(default_factory=lambda: [{} for _ in range(SHARDS)])
    retained: list[dict[int, journal_pb2.RequestsRetained]] = field(default_factory=lambda: [{} for _ in range(SHARDS)])
    archive: dict[str, dict[int, bytes]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    changes: int = 0

    def take(self, shard: int, replica: int) -> int:
        """The epoch of the new owner."""
        epoch = self.owners[shard].epoch + 1
        self.owners[shard] = Owner(replica, epoch)
        return epoch

    def hand_over(self, shard: int, epoch: int, heir: int) -> bool:
        if not self.owned(shard, epoch):
            return False
        self.owners[shard].heir = heir
        return True

    def owned(self, shard: int, epoch: int) -> bool:
        """Whether a write of that epoch is accepted."""
        return self.owners[shard].epoch == epoch and not self.owners[shard].heir

    def append(self, shard: int, epoch: int, seq: int, records: list[bytes]) -> bool:
        if not self.owned(shard, epoch):
            return False
        assert self.logs[shard].setdefault(seq, records) is records, "a segment was written twice"
        assert sum(map(len, records)) + 16 * len(records) < MAX_TXN_BYTES, "the store would refuse this segment"
        return True

    def keep(self, run: Run, state: RunState, first: int, records: Sequence[bytes]) -> None:
        """An idempotent write into the archive."""
        events = self.archive.setdefault(run.run_id, {})
        for seq, raw in enumerate(records, first):
            assert events.setdefault(seq, raw) == raw, "the archive was told two histories of one run"
        if state is not RunState.RUNNING:
            self.ended[run.run_id] = state.name


@dataclass(eq=False)
class Stream:
    """Both directions of an Attach stream to replica `peer`, in order. A message is a dict of lists, as on the wire."""

    peer: int
    incarnation: str
    generation: int
    up: deque[dict[str, Any]] = field(default_factory=deque)
    down: deque[dict[str, Any]] = field(default_factory=deque)
    session: Session | None = None
    open: bool = True


@dataclass(eq=False)
class Session:
    """The orchestrator's end of a stream; implements shards.inputs.Reporter."""

    stream: Stream
    sidecar: str
    before: dict[int, frozenset[str]] = field(default_factory=dict)
    claimed: dict[int, int] = field(default_factory=dict)
    demanded: int = 0
    held: dict[int, set[str]] = field(default_factory=dict)
    control: dict[str, list[Any]] = field(default_factory=dict)
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    offers: list[tuple[int, int, Run, Task, int]] = field(default_factory=list)

    def no_verdict(self) -> None:
        """Its sidecar keeps the outcome, and sends it to the new owner."""

    def verdict(self, attempt_id: str, kind: str) -> None:
        self.verdicts.append((attempt_id, kind))

    def add(self, name: str, item: object) -> None:
        self.control.setdefault(name, []).append(item)

    def write(self, now: int) -> bool:
        """Puts what waits into one message; offers that have been overtaken are left out."""
        message: dict[str, Any] = dict(self.control)
        if self.verdicts:
            message["verdicts"] = self.verdicts
        offers = []
        for shard, epoch, run, task, number in self.offers:
            if task.attempts[number - 1].state in ATTEMPT_LIVE:
                attempt_id = f"{run.run_id}/{task.plan.id}/{task.member}/{number}"
                offers.append((shard, epoch, attempt_id, task.plan.timeout / SECOND))
        if offers:
            message["offers"] = offers
        self.control, self.verdicts, self.offers = {}, [], []
        if message:
            self.stream.down.append(message)
        return bool(message)


class Seat:
    """A shard, and its commit under way. `landed`: the segment is on disk, but its writer has no answer yet."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.next_seq = 1
        self.pending: Turn | None = None
        self.landed = False
        self.next_retained = 1
        self.trimmed_below = 0
        self.moving: dict[str, int] = {}


class Archiving:
    """What waits for the archive; implements shards.turn.Archiver."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Run, RunState, int, list[bytes]]] = deque()

    def put(self, shard: int, run: Run, key: bytes, first_seq: int, records: Sequence[bytes]) -> None:
        self.waiting.append((shard, run, run.state, first_seq, list(records)))


class Graphs:
    """What waits to be looked up among the registered graphs; implements shards.turn.Graphs."""

    def __init__(self) -> None:
        self.opening: deque[tuple[int, Run, Task]] = deque()

    def open(self, shard: int, run: Run, task: Task) -> None:
        self.opening.append((shard, run, task))

    def admit(
        self, parent: RunSubmitted, graph: str, input_schema: str, payload: bytes, priority: int
    ) -> tuple[bytes, Any] | Failure:
        return payload, None


class Replica:
    """One process of an orchestrator. Implements shards.turn.Outbox."""

    def __init__(
        self, number: int, disk: Disk, plans: dict[str, Plan], rng: random.Random, wall: Callable[[], int]
    ) -> None:
        self.number = number
        self.disk = disk
        self.plans = plans
        self.rng = rng
        self.wall = wall
        self.fleet = Fleet(POLICY, SchemaSet(Values()))
        self.fleet.deliver = self._deliver
        self.archiver = Archiving()
        self.graphs = Graphs()
        self.seats: dict[int, Seat] = {}
        self.sessions: dict[str, Session] = {}
        self.absent: dict[str, int] = {}
        self.adopting: dict[int, tuple[int, frozenset[str]]] = {}
        self.reading: deque[tuple[int, Run, Sequence[int]]] = deque()

    def put(self, shard: int, item: i.Input) -> None:
        seat = self.seats.get(shard)
        if seat is None:
            turn_away(shard, self.fleet, item)
        else:
            seat.shard.inbox.append(item)

    def _deliver(self, waiter: Waiter, offered: Offered) -> None:
        self.put(waiter.shard, i.Reserved(waiter, offered))

    # Taking a shard and letting go of it, as shards.host and mesh.sessions do it.

    def take(self, n: int) -> None:
        """Becomes the owner, whoever was."""
        disk, moment = self.disk, self.wall()
        seat = Seat(Shard(n, self.fleet, self, self.archiver, self, self.graphs, self.rng.random))
        shard = seat.shard
        shard.epoch = disk.take(n, self.number)
        shard.timers_held = True
        for number, kept in sorted(disk.retained[n].items()):
            for request in kept.requests:
                if request.expire_time > moment:
                    shard.kept[request.key] = (request.run_id, request.digest, request.expire_time)
            seat.next_retained = number + 1
        archived = {run_id for run_id, _, _ in shard.kept.values()}
        for seq, records in sorted(disk.logs[n].items()):
            seat.trimmed_below = seat.trimmed_below or seq
            seat.next_seq = seq + 1
            for raw in records:
                record = journal_pb2.Record.FromString(raw)
                if record.run_id not in archived:
                    recover_record(shard, seq, raw, record, self._plan_of)
        shard.resume()
        self.seats[n] = seat
        for session in self.sessions.values():
            self._claim(session, shard)
        absent = frozenset(shard.incarnations() - self.sessions.keys())
        for incarnation in absent:
            self.absent[incarnation] = max(moment + ADOPTION, self.absent.get(incarnation, 0))
        self.adopting[n] = (moment + ADOPTION, absent)
        self.look_at_absences()

    def _plan_of(self, submitted: RunSubmitted) -> Plan:
        return self.plans[submitted.graph_name]

    # Shared context, which changes all the time.

    def read(self, shard: int, run: Run, tasks: Sequence[int]) -> None:
        self.reading.append((shard, run, tasks))

    def look_up(self) -> bool:
        """Answers one that is to run another graph."""
        if not self.graphs.opening:
            return False
        shard, run, task = self.graphs.opening.popleft()
        assert task.plan.graph is not None
        name = task.plan.graph.name
        plan = replace(self.plans[name], name=name)
        run_id = f"r{shard:04x}{self.rng.getrandbits(48):012x}"
        self.put(shard, i.Opened(run.run_id, task.plan.index, task.member, run_id, plan, ""))
        return True

    def find(self) -> bool:
        """Answers one that reads; whoever asks next finds something else."""
        if not self.reading:
            return False
        shard, run, tasks = self.reading.popleft()
        found: list[tuple[int, tuple[Found, ...] | Failure]] = []
        for task in tasks:
            self.disk.changes += 1
            value = payload(f"change {self.disk.changes}")
            reads = run.plan.output_reads if task == OUTPUT else run.plan.tasks[task].reads
            found.append((task, tuple(Found(*read, self.disk.changes, value) for read in reads)))
        self.put(shard, i.ContextFound(run.run_id, found))
        return True

    def _claim(self, session: Session, shard: Shard) -> None:
        session.add("claims", (shard.index, shard.epoch))
        session.claimed[shard.index] = shard.epoch
        session.held.pop(shard.index, None)
        session.before[shard.index] = shard.live_ids(session.stream.incarnation)

    def let_go(self, n: int) -> None:
        """The shard is another's: nothing of it is kept."""
        seat = self.seats.pop(n)
        self.adopting.pop(n, None)
        for session in self.sessions.values():
            session.offers = [offer for offer in session.offers if offer[0] != n]
        abandon(seat.shard, self.fleet, seat.pending)

    def hand_over(self, n: int, heir: int) -> bool:
        """Between two turns: gives the shard to another, or finds out that it is another's already."""
        if self.seats[n].pending is not None:
            return False
        self.disk.hand_over(n, self.seats[n].shard.epoch, heir)
        self.let_go(n)
        return True

    def told(self) -> None:
        """The watch of the store tells who owns what: what is lost is let go of, whatever was under way."""
        for n, seat in list(self.seats.items()):
            if not self.disk.owned(n, seat.shard.epoch):
                self.let_go(n)

    # The loop of a shard, one step at a time.

    def turn(self, seat: Seat, clock: Callable[[], float]) -> bool:
        """Takes a turn if there is something to do and no commit is under way."""
        now = self.wall()
        if seat.pending is not None or not seat.shard.has_work(now):
            return False
        turn = seat.shard.take_turn(now, clock)
        if turn.records:
            seat.pending, seat.landed = turn, False
        else:
            seat.shard.release(turn, 0)
        return True

    def land(self, seat: Seat) -> bool:
        """The store takes the segment, and its answer is still on the way; or it refuses it, and the shard is lost."""
        if seat.pending is None or seat.landed:
            return False
        if self.disk.append(seat.shard.index, seat.shard.epoch, seat.next_seq, seat.pending.records):
            seat.landed = True
        else:
            self.let_go(seat.shard.index)
        return True

    def release(self, seat: Seat) -> bool:
        """The answer is there."""
        if seat.pending is None or not seat.landed:
            return False
        turn, seq = seat.pending, seat.next_seq
        seat.pending, seat.next_seq = None, seq + 1
        seat.shard.release(turn, seq)
        return True

    # Archive and trimming.

    def archive(self, most: int) -> bool:
        """Writes some of what waits and answers."""
        done: dict[int, dict[str, int]] = {}
        for _ in range(min(most, len(self.archiver.waiting))):
            shard, run, state, first, records = self.archiver.waiting.popleft()
            self.disk.keep(run, state, first, records)
            done.setdefault(shard, {})[run.run_id] = first + len(records) - 1
        for shard, upto in done.items():
            self.put(shard, i.Archived(upto))
        return bool(done)

    def forget(self, seat: Seat, crash: Callable[[], bool]) -> bool:
        """Writes request ids, then trims; the process may end in between. The loop does this between its turns."""
        shard, n = seat.shard, seat.shard.index
        if seat.pending is not None:
            return False
        if not self.disk.owned(n, shard.epoch):
            self.let_go(n)
            return True
        moment = self.wall()
        if shard.retain:
            batch, shard.retain = shard.retain[:3], shard.retain[3:]
            kept = journal_pb2.RequestsRetained()
            for key in batch:
                run_id, digest, expire_time = shard.kept[key]
                kept.requests.add(key=key, run_id=run_id, digest=digest, expire_time=expire_time)
            self.disk.retained[n][seat.next_retained] = kept
            seat.next_retained += 1
            shard.settle_retained(batch, moment)
            if crash():
                return True
        elif seat.next_seq - seat.trimmed_below < LONG_LOG:
            return False
        oldest = shard.oldest_pinned()
        below = oldest[1] if oldest is not None else seat.next_seq
        for seq in [seq for seq in self.disk.logs[n] if seq < below]:
            del self.disk.logs[n][seq]
        seat.trimmed_below = max(seat.trimmed_below, below)
        for run_id, first in list(shard.pinned.items()):
            if seat.next_seq - first < LONG_LOG:
                break
            entry = shard.runs.get(run_id)
            if entry is not None and entry.run.state is RunState.RUNNING and seat.moving.get(run_id) != first:
                seat.moving[run_id] = first
                self.archiver.put(n, entry.run, entry.key, entry.first_seq, entry.records)
        return True

    # Sidecars.

    def offer(self, shard: int, epoch: int, run: Run, task: Task) -> None:
        live = task.live
        assert live is not None
        session = self.sessions.get(live.instance.split("/")[1])
        if session is not None:
            session.offers.append((shard, epoch, run, task, live.number))

    def cancel(self, incarnation: str, attempt_id: str, reason: str) -> None:
        session = self.sessions.get(incarnation)
        if session is not None:
            session.add("cancels", (attempt_id, reason))

    def open(self, stream: Stream, hello: dict[str, Any]) -> None:
        former = self.sessions.get(stream.incarnation)
        if former is not None:
            former.stream.open = False
            self._detach(former)
        session = stream.session = Session(stream, hello["sidecar"])
        self.sessions[stream.incarnation] = session
        self.absent.pop(stream.incarnation, None)
        session.add("welcome", hello["windows"])
        for seat in self.seats.values():
            self._claim(session, seat.shard)
        for agent, said in hello["windows"].items():
            self._attach(session, agent, said.generation, said.slots)
        self.fleet.give_up(stream.incarnation)

    def _attach(self, session: Session, agent: str, generation: int, slots: int) -> None:
        description = registry_pb2.AgentDescription(name=agent, concurrency=2)
        description.capabilities.add(name="text.work", version="1.0", effect=capability_pb2.EFFECT_PURE)
        incarnation = session.stream.incarnation
        principal = f"spiffe://antiphon.internal/ns/demo/sidecar/{session.sidecar}"
        instance_id = f"{session.sidecar}/{incarnation}/{agent}"
        self.fleet.attach(
            Instance(instance_id, "demo", principal, incarnation, description, slots, generation, self.wall())
        )
        session.add("window_acks", (agent, generation))

    def receive(self, stream: Stream) -> bool:
        """Takes in the next message of a stream, its lists in the order of their numbers."""
        if not stream.open or not stream.up:
            return False
        message = stream.up.popleft()
        if "hello" in message:
            self.open(stream, message["hello"])
            return True
        session = stream.session
        assert session is not None
        for shard, epoch, held, last in message.get("inventories", ()):
            if epoch != session.claimed[shard]:
                continue
            session.held.setdefault(shard, set()).update(held)
            if last:
                before, session.before[shard] = session.before[shard], frozenset()
                everything = frozenset(session.held.pop(shard))
                if before:
                    self.put(shard, i.Inventory(stream.incarnation, everything, before))
        source = f"demo/{session.sidecar}"
        for shard, attempt_id, outcome in message.get("reports", ()):
            if outcome is None:
                self.put(shard, i.Started(source, attempt_id))
            else:
                self.put(shard, i.Report(session, source, attempt_id, outcome))
        for agent, generation, slots in message.get("windows", ()):
            if self.fleet.window(f"{session.sidecar}/{stream.incarnation}/{agent}", generation, slots):
                session.add("window_acks", (agent, generation))
        for agent, present in message.get("agents", ()):
            instance_id = f"{session.sidecar}/{stream.incarnation}/{agent}"
            if present:
                known = self.fleet.instance(instance_id)
                self._attach(session, agent, *((known.window_generation, known.slots) if known else (0, 0)))
            else:
                self.fleet.detach(instance_id)
        return True

    def close(self, stream: Stream) -> None:
        session = stream.session
        if session is not None and self.sessions.get(stream.incarnation) is session:
            del self.sessions[stream.incarnation]
            self._detach(session)
            self.absent[stream.incarnation] = self.wall() + GRACE

    def _detach(self, session: Session) -> None:
        for instance in list(self.fleet.instances("demo")):
            if instance.incarnation == session.stream.incarnation:
                self.fleet.detach(instance.instance_id, away=True)

    def look_at_absences(self) -> bool:
        """The clockwork of mesh.sessions: the end of the adoption window, and incarnations that stay away."""
        moment = self.wall()
        over = [n for n, (until, absent) in self.adopting.items() if moment >= until or absent.isdisjoint(self.absent)]
        for n in over:
            del self.adopting[n]
            self.seats[n].shard.timers_held = False
        gone = [incarnation for incarnation, until in self.absent.items() if moment >= until]
        for incarnation in gone:
            del self.absent[incarnation]
            self.fleet.give_up(incarnation)
            for n in self.seats:
                self.put(n, i.SidecarGone(incarnation))
        return self._demand() or bool(over) or bool(gone)

    def _demand(self) -> bool:
        """Says what could be used: more than there is again and again, less only once."""
        said = False
        for instance in self.fleet.instances("demo"):
            session = self.sessions[instance.incarnation]
            wanted = self.fleet.demand(instance)
            if wanted > instance.slots or wanted < session.demanded:
                said |= wanted != session.demanded
                session.demanded = wanted
                session.add("demands", (instance.agent, wanted))
        return said
