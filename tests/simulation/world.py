"""The scheduler of the simulation: one seed decides what happens next, and what breaks. No time passes but here."""

from __future__ import annotations

import random
from collections.abc import Callable

from antiphon.store.v1 import journal_pb2
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import HedgePlan, OnFailure
from antiphon_orchestrator.engine.run import apply, start
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.shards import codec
from antiphon_orchestrator.shards import inputs as i

from tests.fakes.plans import Node, payload, plan, retry
from tests.simulation.actors import Client, History, Sidecar
from tests.simulation.model import SECOND, SHARDS, Disk, Replica, Seat, Stream

START = 1_700_000_000 * SECOND
AGAIN = retry(4, FailureKind.TRANSIENT, FailureKind.LOST, FailureKind.TIMEOUT)
PLANS = {
    "chain": plan(Node(retry=(AGAIN,)), Node((0,), retry=(AGAIN,)), Node((1,))),
    "diamond": plan(
        Node(), Node((0,), on_failure=OnFailure.SKIP), Node((0,), retry=(AGAIN,)), Node((1, 2), join=1, priority=3)
    ),
    "fan": plan(
        Node(),
        Node((0,), members=6, retry=(AGAIN,), deadline=60 * SECOND),
        Node((1,), members=0),
        Node((1, 2), when=True),
        Node((1,), members=3, on_failure=OnFailure.CONTINUE),
    ),
    "reader": plan(
        Node(reads=("a",), retry=(AGAIN,)),
        Node((0,), members=3, reads=("a", "b")),
        Node((0,), reads=("b",)),
        output_reads="a",
    ),
    "above": plan(Node(graph="chain@1"), Node((0,), members=2, graph="wide@1", deadline=90 * SECOND), Node((1,))),
    "several": plan(
        Node(agree=2, of=3, apart="instance", alike=True, retry=(AGAIN,)),
        Node((0,), agree=1, of=2, apart="instance", hedge=HedgePlan(SECOND, 0.5, 0.5), retry=(AGAIN,)),
        Node((1,), members=3, cache_ttl=30 * SECOND, input=payload("same")),
    ),
    "wide": plan(*[Node(priority=n, retry=(AGAIN,), schedule_timeout=40 * SECOND) for n in range(5)]),
}


class World:
    """Everything there is, in one hand. `mono` is the clock nobody sets; `wall` may jump. Microseconds."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mono = 0
        self.offset = START
        self.peace = START
        self.history = History()
        self.disk = Disk()
        self.born = 0
        self.replicas: list[Replica] = []
        self.most_replicas = self.rng.choice([1, 2, 2, 3])
        self.presumed_dead: set[int] = set()
        self.streams: list[Stream] = []
        self.join()
        for n in range(SHARDS):
            self.replicas[0].take(n)
        self.started = 0
        self.sidecars = [self._sidecar(f"s{n}") for n in range(2)]
        self.client = Client(PLANS, self.history, self.rng, self.wall)

    def wall(self) -> int:
        return self.mono + self.offset

    def seconds(self) -> float:
        return self.mono / SECOND

    def _sidecar(self, name: str) -> Sidecar:
        self.started += 1
        return Sidecar(name, self.started, self.history, self.rng)

    # What may happen.

    def run(self, steps: int) -> None:
        """Trouble for so many steps, then peace until nothing moves, then the verdict on it all."""
        usual: list[tuple[Callable[[], object], float]] = [
            (self.turn, 30),
            (self.land, 18),
            (self.release, 18),
            (self.up, 20),
            (self.down, 20),
            (self.write, 20),
            (self.send, 20),
            (self.work, 16),
            (self.connect, 6),
            (self.archive, 2),
            (self.forget, 4),
            (self.find, 6),
            (self.look_up, 6),
            (self.absences, 4),
            (self.pass_time, 10),
            (self.submit, 6),
            (self.take, 6),
            (self.join, 1),
        ]
        trouble: list[tuple[Callable[[], object], float]] = [
            (self.crash, self.rng.choice([0, 0.3, 1])),
            (self.break_stream, self.rng.choice([0, 1, 4])),
            (self.succeed_stream, 0.4),
            (self.restart_sidecar, self.rng.choice([0, 0.4])),
            (self.agent_dies, self.rng.choice([0, 0.6])),
            (self.clock_jumps, self.rng.choice([0, 0.3])),
            (self.suspend, 0.2),
            (self.repeat, 2),
            (self.contradict, 0.5),
            (self.cancel, 0.7),
            (self.watch, 1.5),
            (self.hand_over, self.rng.choice([0, 1, 3])),
            (self.stall, self.rng.choice([0, 0.4])),
            (self.wake, 1),
        ]
        moves, weights = zip(*usual, *trouble, strict=True)
        for move in self.rng.choices(moves, weights, k=steps):
            move()
        self.settle(steps)
        self.judge()

    def _seat(self) -> tuple[Replica, Seat] | None:
        """One of all seats there are."""
        seats = [(replica, seat) for replica in self.replicas for seat in replica.seats.values()]
        return self.rng.choice(seats) if seats else None

    def turn(self) -> bool:
        tick = self.rng.choice([0.0, 0.0005, 0.003])
        time = [0.0]

        def clock() -> float:
            time[0] += tick
            return time[0]

        found = self._seat()
        return found is not None and found[0].turn(found[1], clock)

    def land(self) -> bool:
        found = self._seat()
        return found is not None and found[0].land(found[1])

    def release(self) -> bool:
        found = self._seat()
        return found is not None and found[0].release(found[1])

    def _peer(self, stream: Stream) -> Replica | None:
        return next((replica for replica in self.replicas if replica.number == stream.peer), None)

    def up(self) -> bool:
        if not self.streams:
            return False
        stream = self.rng.choice(self.streams)
        replica = self._peer(stream)
        return replica is not None and replica.receive(stream)

    def down(self) -> bool:
        sidecar = self.rng.choice(self.sidecars)
        mine = [s for s in self.streams if s.incarnation == sidecar.incarnation and s.down]
        return bool(mine) and sidecar.receive(self.rng.choice(mine), self.seconds())

    def write(self) -> bool:
        sessions = [session for replica in self.replicas for session in replica.sessions.values()]
        return bool(sessions) and self.rng.choice(sessions).write(self.wall())

    def send(self) -> bool:
        return self.rng.choice(self.sidecars).send()

    def work(self) -> bool:
        return self.rng.choice(self.sidecars).work(self.seconds(), healthy=False)

    def connect(self) -> bool:
        for sidecar in self.sidecars:
            for replica in self.replicas:
                if sidecar.line(replica.number).stream is None:
                    self.streams.append(sidecar.connect(replica.number))
                    return True
        return self._drop_closed()

    def _drop_closed(self) -> bool:
        """Sidecars find out that the other side has ended a stream."""
        closed = [stream for stream in self.streams if not stream.open and not stream.down]
        for stream in closed:
            self._end(stream)
        return bool(closed)

    def _end(self, stream: Stream) -> None:
        stream.open = False
        self.streams.remove(stream)
        for sidecar in self.sidecars:
            if sidecar.incarnation == stream.incarnation:
                sidecar.broken(stream)
        replica = self._peer(stream)
        if replica is not None:
            replica.close(stream)

    def archive(self) -> bool:
        return self.rng.choice(self.replicas).archive(self.rng.choice([1, 100]))

    def forget(self) -> bool:
        found = self._seat()
        return found is not None and found[0].forget(found[1], lambda: self.rng.random() < 0.1)

    def find(self) -> bool:
        return self.rng.choice(self.replicas).find()

    def look_up(self) -> bool:
        return self.rng.choice(self.replicas).look_up()

    def absences(self) -> bool:
        return self.rng.choice(self.replicas).look_at_absences()

    # Who owns what.

    def put(self, shard: int, item: i.Input) -> None:
        """What a client asks comes to a replica that believes it owns the shard, if there is one."""
        self.at(shard)(shard, item)

    def at(self, shard: int) -> Callable[[int, i.Input], None]:
        """One of those; anybody if there is none."""
        believers = [replica for replica in self.replicas if shard in replica.seats]
        return self.rng.choice(believers or self.replicas).put

    def join(self) -> None:
        """One more replica, which has nothing yet."""
        if len(self.replicas) < self.most_replicas:
            self.born += 1
            self.replicas.append(Replica(self.born, self.disk, PLANS, self.rng, self.wall))

    def _seen(self) -> list[Replica]:
        """Those that the others believe to be there."""
        return [replica for replica in self.replicas if replica.number not in self.presumed_dead]

    def take(self) -> bool:
        """A shard that was handed over is taken by its heir; one whose owner, or heir, seems to be gone by anybody."""
        seen = {replica.number: replica for replica in self._seen()}
        for n in self.rng.sample(range(SHARDS), SHARDS):
            owner = self.disk.owners[n]
            claimant = owner.heir or owner.replica
            takers = [seen[claimant]] if claimant in seen and owner.heir else []
            if claimant not in seen:
                takers = [replica for replica in seen.values() if n not in replica.seats]
            if takers:
                self.rng.choice(takers).take(n)
                return True
        return False

    def hand_over(self) -> None:
        found = self._seat()
        others = [replica for replica in self._seen() if found is not None and replica is not found[0]]
        if found is not None and others:
            found[0].hand_over(found[1].shard.index, self.rng.choice(others).number)

    def stall(self) -> None:
        """A replica is not heard of; it goes on, and does not know that it is not."""
        if len(self._seen()) > 1:
            self.presumed_dead.add(self.rng.choice(self._seen()).number)

    def wake(self) -> None:
        """It is heard of again, and told what it has lost meanwhile, or finds out by its next write."""
        for number in list(self.presumed_dead):
            self.presumed_dead.discard(number)
            for replica in self.replicas:
                if replica.number == number and self.rng.random() < 0.5:
                    replica.told()

    def pass_time(self) -> bool:
        self.mono += self.rng.choice([1_000, 20_000, 300_000, 3 * SECOND])
        return False

    def submit(self) -> None:
        if self.client.count < 12:
            self.client.submit(self)

    def repeat(self) -> None:
        if self.client.wanted:
            self.client.submit(self, self.rng.choice(sorted(self.client.wanted)))

    def contradict(self) -> None:
        if self.client.answered:
            self.client.submit_other_content(self, self.rng.choice(sorted(self.client.answered)))

    def cancel(self) -> None:
        if self.client.answered:
            self.client.cancel(self, self.rng.choice(sorted(self.client.answered)))

    def watch(self) -> None:
        if self.client.answered:
            self.client.watch(self, self.rng.choice(sorted(self.client.answered)))

    def suspend(self) -> None:
        suspended = self.rng.random() < 0.3
        for replica in self.replicas:
            replica.fleet.suspend("demo", "worker", suspended)

    # What may break.

    def crash(self) -> None:
        """A process ends; commits under way land, or do not. Its place is taken by a new one, sooner or later."""
        victim = self.rng.choice(self.replicas)
        for seat in list(victim.seats.values()):
            if self.rng.random() < 0.5:
                victim.land(seat)
        for stream in [stream for stream in self.streams if stream.peer == victim.number]:
            self._end(stream)
        self.replicas.remove(victim)
        self.presumed_dead.discard(victim.number)
        if not self.replicas or self.rng.random() < 0.3:
            self.join()

    def break_stream(self) -> None:
        if self.streams:
            self._end(self.rng.choice(self.streams))

    def succeed_stream(self) -> None:
        """A new stream before the old one is broken, as before a certificate expires."""
        sidecar = self.rng.choice(self.sidecars)
        peer = self.rng.choice(self.replicas).number
        line = sidecar.line(peer)
        if line.stream is not None and line.stream is line.current:
            self.streams.append(sidecar.connect(peer))

    def restart_sidecar(self) -> None:
        place = self.rng.randrange(len(self.sidecars))
        old = self.sidecars[place]
        for stream in [s for s in self.streams if s.incarnation == old.incarnation]:
            self._end(stream)
        self.sidecars[place] = self._sidecar(old.name)

    def agent_dies(self) -> None:
        sidecar = self.rng.choice(self.sidecars)
        sidecar.inflight.agent_went(sidecar.seat, self.seconds())
        if self.rng.random() < 0.5:
            sidecar.send()
        sidecar.inflight.agent_came(sidecar.seat, 2, self.rng.choice([0, 1, 4]), self.seconds())

    def clock_jumps(self) -> None:
        self.peace = max(self.peace, self.wall())  # no record of the time of trouble is later than the latest clock
        self.offset += self.rng.choice([-100, -5, 5, 100]) * SECOND

    # Peace.

    def settle(self, steps: int) -> None:
        """All is well from now on: everything has to come to its end."""
        self.presumed_dead.clear()
        for replica in self.replicas:
            replica.fleet.suspend("demo", "worker", False)
            replica.told()
        while self.take():
            pass
        self.peace = max(self.peace, self.wall())
        for request_id in self.client.wanted.keys() - self.client.answered.keys():
            self.client.submit(self, request_id)
        for _ in range(4000):
            if not self._once():
                if self._over():
                    return
                self.mono += SECOND // 2
        raise AssertionError(f"it does not come to rest: {self._left()}")

    def _once(self) -> bool:
        moved = False
        for replica in self.replicas:
            for seat in list(replica.seats.values()):
                moved |= replica.turn(seat, lambda: 0.0)
                moved |= replica.land(seat)
                moved |= replica.release(seat)
                moved |= replica.forget(seat, lambda: False)
        moved |= self.connect()
        for stream in list(self.streams):
            peer = self._peer(stream)
            while peer is not None and peer.receive(stream):
                moved = True
        for session in [session for replica in self.replicas for session in replica.sessions.values()]:
            moved |= session.write(self.wall())
        for sidecar in self.sidecars:
            for stream in [s for s in self.streams if s.incarnation == sidecar.incarnation]:
                while sidecar.receive(stream, self.seconds()):
                    moved = True
            moved |= sidecar.work(self.seconds(), healthy=True)
            moved |= sidecar.send()
        for replica in self.replicas:
            moved |= replica.archive(100) | replica.find() | replica.look_up()
            moved |= replica.look_at_absences()
        return moved

    def _over(self) -> bool:
        seats = [seat for replica in self.replicas for seat in replica.seats.values()]
        idle = all(not seat.shard.runs and seat.pending is None for seat in seats)
        return idle and all(not sidecar.inflight.held for sidecar in self.sidecars)

    def _left(self) -> str:
        runs = [
            (run_id, [(t.plan.id, t.member, t.state.name) for t in entry.run.all_tasks() if not t.ended])
            for replica in self.replicas
            for seat in replica.seats.values()
            for run_id, entry in seat.shard.runs.items()
        ]
        held = [(attempt.attempt_id, attempt.state.name) for s in self.sidecars for attempt in s.inflight.held.values()]
        fleet = [(n.instance_id, n.slots, n.in_use) for r in self.replicas for n in r.fleet.instances()]
        return f"runs {runs[:3]}, held {held[:3]}, fleet {fleet}"

    # The verdict.

    def judge(self) -> None:
        """What was seen from outside against what is on record."""
        disk, history = self.disk, self.history
        assert set(history.replies) == set(self.client.wanted), "a submission was never answered"
        run_ids = {request_id: {run_id for run_id, _ in seen} for request_id, seen in history.replies.items()}
        for request_id, found in run_ids.items():
            assert len(found) == 1, f"{request_id} became more than one run"
        everything = [run_id for found in run_ids.values() for run_id in found]
        assert len(everything) == len(set(everything))
        beneath = [child for run_id in everything for child in self._judge_beneath(run_id)]
        assert sorted(disk.ended) == sorted(everything + beneath), "a run exists that nobody asked for, or one was lost"
        for request_id, seen in history.replies.items():
            for run_id, state in seen:
                assert state in ("RUNNING", "ARCHIVED", disk.ended[run_id]), f"{request_id} was told another end"
        for run_id, events in disk.archive.items():
            self._judge_run(run_id, events)
        for run_id, watched in history.watched.items():
            for seq, raw in watched.items():
                assert disk.archive[run_id][seq] == raw, "a watcher saw what is not on record"
        for instance in [instance for replica in self.replicas for instance in replica.fleet.instances()]:
            assert instance.in_use == 0, f"{instance.instance_id} has {instance.in_use} slots that nobody uses"

    def _judge_beneath(self, run_id: str) -> list[str]:
        """The runs beneath a run; what they ended with is what their tasks did."""
        events = self.disk.archive[run_id]
        records = [journal_pb2.Record.FromString(events[seq]) for seq in sorted(events)]
        begun = {record.child_begun.run_id: record.child_begun for record in records if record.HasField("child_begun")}
        done = {
            (record.task_completed.task, record.task_completed.member)
            for record in records
            if record.HasField("task_completed")
        }
        for child, how in begun.items():
            ended, task = self.disk.ended[child], (how.task, how.member)
            assert task not in done or ended == "SUCCEEDED", f"{child} has {ended}, and its task has succeeded"
        return list(begun)

    def _judge_run(self, run_id: str, events: dict[int, bytes]) -> None:
        assert sorted(events) == list(range(1, len(events) + 1)), "the record of a run has a hole"
        records = [journal_pb2.Record.FromString(events[seq]) for seq in sorted(events)]
        submitted = codec.get_submitted(records[0].run_submitted)
        run = start(run_id, PLANS[submitted.graph_name], submitted, records[0].time)
        for record in records[1:]:
            assert run.state is RunState.RUNNING, "something was recorded after the end"
            apply(run, codec.decode(record), record.time)
            late = record.time > self.peace + 30 * SECOND
            assert not late or record.task_ended.failure.kind != FailureKind.NO_AGENT.value, (
                "agents were free all the time"
            )
        assert run.state.name == self.disk.ended[run_id]
        for task in run.tasks:
            if task.plan.reads and task.attempts:
                assert task.found is not None and task.input == task.found[0].value, "it saw what is not on record"
        if run.found is not None and run.state is RunState.SUCCEEDED:
            assert run.output == run.found[0].value
        for task, number in self.history.accepted.items():
            if task.startswith(run_id + "/"):
                _, task_id, member = task.split("/")
                found = run.task(run.plan.index_of[task_id], int(member)).attempts[int(number) - 1]
                assert found.state.name == "SUCCEEDED", f"{task}/{number} was accepted and is not on record"
