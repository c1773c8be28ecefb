"""The scheduler of the simulation: one seed decides what happens next, and what breaks. No time passes but here."""

from __future__ import annotations

import random
from collections.abc import Callable

from antiphon.store.v1 import journal_pb2
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import apply, start
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.shards import codec

from tests.fakes.plans import Node, plan, retry
from tests.simulation.actors import Client, History, Sidecar
from tests.simulation.model import SECOND, Disk, Replica, Stream

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
        self.replica = Replica(self.disk, PLANS, self.rng, self.wall)
        self.streams: list[Stream] = []
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
            (self.absences, 4),
            (self.pass_time, 10),
            (self.submit, 6),
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
        ]
        moves, weights = zip(*usual, *trouble, strict=True)
        for move in self.rng.choices(moves, weights, k=steps):
            move()
        self.settle(steps)
        self.judge()

    def turn(self) -> bool:
        tick = self.rng.choice([0.0, 0.0005, 0.003])
        time = [0.0]

        def clock() -> float:
            time[0] += tick
            return time[0]

        return self.replica.turn(self.rng.choice(self.replica.seats), clock)

    def land(self) -> bool:
        return self.replica.land(self.rng.choice(self.replica.seats))

    def release(self) -> bool:
        return self.replica.release(self.rng.choice(self.replica.seats))

    def up(self) -> bool:
        return bool(self.streams) and self.replica.receive(self.rng.choice(self.streams))

    def down(self) -> bool:
        sidecar = self.rng.choice(self.sidecars)
        mine = [s for s in self.streams if s.incarnation == sidecar.incarnation and s.down]
        return bool(mine) and sidecar.receive(self.rng.choice(mine), self.seconds())

    def write(self) -> bool:
        sessions = list(self.replica.sessions.values())
        return bool(sessions) and self.rng.choice(sessions).write(self.wall())

    def send(self) -> bool:
        return self.rng.choice(self.sidecars).send()

    def work(self) -> bool:
        return self.rng.choice(self.sidecars).work(self.seconds(), healthy=False)

    def connect(self) -> bool:
        for sidecar in self.sidecars:
            if sidecar.stream is None:
                self.streams.append(sidecar.connect())
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
        self.replica.close(stream)

    def archive(self) -> bool:
        return self.replica.archive(self.rng.choice([1, 100]))

    def forget(self) -> bool:
        return self.replica.forget(self.rng.choice(self.replica.seats), lambda: self.rng.random() < 0.1)

    def find(self) -> bool:
        return self.replica.find()

    def absences(self) -> bool:
        return self.replica.look_at_absences()

    def pass_time(self) -> bool:
        self.mono += self.rng.choice([1_000, 20_000, 300_000, 3 * SECOND])
        return False

    def submit(self) -> None:
        if self.client.count < 12:
            self.client.submit(self.replica)

    def repeat(self) -> None:
        if self.client.wanted:
            self.client.submit(self.replica, self.rng.choice(sorted(self.client.wanted)))

    def contradict(self) -> None:
        if self.client.answered:
            self.client.submit_other_content(self.replica, self.rng.choice(sorted(self.client.answered)))

    def cancel(self) -> None:
        if self.client.answered:
            self.client.cancel(self.replica, self.rng.choice(sorted(self.client.answered)))

    def watch(self) -> None:
        if self.client.answered:
            self.client.watch(self.replica, self.rng.choice(sorted(self.client.answered)))

    def suspend(self) -> None:
        self.replica.fleet.suspend("demo", "worker", self.rng.random() < 0.3)

    # What may break.

    def crash(self) -> None:
        """The process ends; commits under way land, or do not."""
        for seat in self.replica.seats:
            if self.rng.random() < 0.5:
                self.replica.land(seat)
        for stream in list(self.streams):
            self._end(stream)
        self.replica = Replica(self.disk, PLANS, self.rng, self.wall)

    def break_stream(self) -> None:
        if self.streams:
            self._end(self.rng.choice(self.streams))

    def succeed_stream(self) -> None:
        """A new stream before the old one is broken, as before a certificate expires."""
        sidecar = self.rng.choice(self.sidecars)
        if sidecar.stream is not None and sidecar.stream is sidecar.current:
            self.streams.append(sidecar.connect())

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
        self.replica.fleet.suspend("demo", "worker", False)
        self.peace = max(self.peace, self.wall())
        for request_id in self.client.wanted.keys() - self.client.answered.keys():
            self.client.submit(self.replica, request_id)
        for _ in range(4000):
            if not self._once():
                if self._over():
                    return
                self.mono += SECOND // 2
        raise AssertionError(f"it does not come to rest: {self._left()}")

    def _once(self) -> bool:
        replica, moved = self.replica, False
        for seat in replica.seats:
            moved |= replica.turn(seat, lambda: 0.0)
            moved |= replica.land(seat)
            moved |= replica.release(seat)
            moved |= replica.forget(seat, lambda: False)
        moved |= self.connect()
        for stream in list(self.streams):
            while replica.receive(stream):
                moved = True
        for session in list(replica.sessions.values()):
            moved |= session.write(self.wall())
        for sidecar in self.sidecars:
            for stream in [s for s in self.streams if s.incarnation == sidecar.incarnation]:
                while sidecar.receive(stream, self.seconds()):
                    moved = True
            moved |= sidecar.work(self.seconds(), healthy=True)
            moved |= sidecar.send()
        moved |= replica.archive(100) | replica.find()
        return moved | replica.look_at_absences()

    def _over(self) -> bool:
        idle = all(not seat.shard.runs and seat.pending is None for seat in self.replica.seats)
        return idle and all(not sidecar.inflight.held for sidecar in self.sidecars)

    def _left(self) -> str:
        runs = [
            (run_id, [(t.plan.id, t.member, t.state.name) for t in entry.run.all_tasks() if not t.ended])
            for seat in self.replica.seats
            for run_id, entry in seat.shard.runs.items()
        ]
        held = [(attempt.attempt_id, attempt.state.name) for s in self.sidecars for attempt in s.inflight.held.values()]
        fleet = [(n.instance_id, n.slots, n.in_use) for n in self.replica.fleet.instances()]
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
        assert set(disk.ended) == set(everything), "a run exists that nobody asked for, or one was lost"
        for request_id, seen in history.replies.items():
            for run_id, state in seen:
                assert state in ("RUNNING", "ARCHIVED", disk.ended[run_id]), f"{request_id} was told another end"
        for run_id, events in disk.archive.items():
            self._judge_run(run_id, events)
        for run_id, watched in history.watched.items():
            for seq, raw in watched.items():
                assert disk.archive[run_id][seq] == raw, "a watcher saw what is not on record"
        for instance in self.replica.fleet.instances():
            assert instance.in_use == 0, f"{instance.instance_id} has {instance.in_use} slots that nobody uses"

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
