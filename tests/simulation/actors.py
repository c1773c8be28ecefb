"""Those who deal with the orchestrator and write down what they see: sidecars (with the real inflight logic), their
agents, and clients that repeat themselves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from antiphon.store.v1 import journal_pb2
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import AttemptState, RunState
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards import payloads
from antiphon_orchestrator.shards.inputs import RequestIdReused
from antiphon_sidecar.attempts import Attempt, End
from antiphon_sidecar.boxes import Link
from antiphon_sidecar.inflight import Inflight

from tests.fakes.plans import CLIENT, payload, submitted
from tests.simulation.model import AGENT, SECOND, SHARDS, Stream

RETURNED = (End.TOO_LATE, End.AGENT_GONE, End.DRAINING, End.NO_SLOT, End.STALE_EPOCH)


@dataclass
class History:
    """What sidecars and clients saw. `verdicts`: by attempt, in order, with the outcome they are about."""

    executions: Counter[str] = field(default_factory=Counter)
    accepted: dict[str, str] = field(default_factory=dict)
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    replies: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    watched: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def executed(self, attempt_id: str) -> None:
        self.executions[attempt_id] += 1
        assert self.executions[attempt_id] == 1, f"{attempt_id} was executed again"
        task, _, number = attempt_id.rpartition("/")
        done = self.accepted.get(task)
        assert done is None or int(done) > int(number), f"{attempt_id} was executed after {task}/{done} was accepted"

    def verdict(self, attempt_id: str, kind: str, succeeded: bool) -> None:
        self.verdicts.append((attempt_id, kind))
        task, _, number = attempt_id.rpartition("/")
        if kind == "ACCEPTED" and succeeded:
            assert self.accepted.setdefault(task, number) == number, f"two outcomes of {task} were accepted"

    def replied(self, request_id: str, run_id: str, state: str) -> None:
        self.replies.setdefault(request_id, []).append((run_id, state))


@dataclass(eq=False)
class Line:
    """A sidecar's way to one replica: the newest stream, the one that was welcomed last, and the link they share."""

    stream: Stream | None = None
    current: Stream | None = None
    said: dict[str, tuple[int, int]] = field(default_factory=dict)
    link: Link | None = None


class Sidecar:
    """A sidecar process by the real rules, with an agent that succeeds, fails and dies. A restart is a new one."""

    def __init__(self, name: str, number: int, history: History, rng: random.Random) -> None:
        self.name = name
        self.incarnation = f"{number:016x}"
        self.history = history
        self.rng = rng
        self.inflight = Inflight()
        self.seat = self.inflight.add_seat(AGENT, lambda: None)
        self.lines: dict[int, Line] = {}
        self.generation = 0
        self.inflight.agent_came(self.seat, 2, rng.choice([0, 1, 4]), 0.0)

    def line(self, peer: int) -> Line:
        return self.lines.setdefault(peer, Line())

    def connect(self, peer: int) -> Stream:
        """A new stream; the one before stays until this one is welcomed, if it was not broken."""
        self.generation += 1
        line = self.line(peer)
        line.stream = Stream(peer, self.incarnation, self.generation)
        line.said = self.inflight.hello(self._linked(line))
        line.stream.up.append({"hello": {"sidecar": self.name, "windows": line.said}})
        return line.stream

    def _linked(self, line: Line) -> Link:
        """The link, which outlives its streams while one follows another."""
        if line.link is None:
            line.link = self.inflight.attach(lambda: None)
        return line.link

    def broken(self, stream: Stream) -> None:
        line = self.line(stream.peer)
        if stream is line.stream:
            line.stream = None
        if stream is line.current or line.current is None:
            line.current = None
            if line.link is not None:
                self.inflight.detach(line.link)
                line.link = None

    def receive(self, stream: Stream, now: float) -> bool:
        if not stream.down:
            return False
        message = stream.down.popleft()
        inflight, line = self.inflight, self.line(stream.peer)
        if "welcome" in message and stream is line.stream:
            line.current = stream
            inflight.welcomed(self._linked(line), line.said)
        if stream is not line.current:
            return True
        link = self._linked(line)
        if "claims" in message:
            inflight.claim(link, message["claims"])
        for attempt_id, kind in message.get("verdicts", ()):
            held = inflight.held.get(attempt_id)
            succeeded = held is not None and held.end is End.RESULT and held.result[0]
            self.history.verdict(attempt_id, kind, succeeded)
            inflight.verdict(attempt_id)
        for attempt_id, reason in message.get("cancels", ()):
            inflight.cancel(attempt_id, reason, now)
        for shard, epoch, attempt_id, timeout in message.get("offers", ()):
            inflight.offer(link, AGENT, attempt_id, shard, epoch, None, b"", 1, timeout, now)
        for agent, generation in message.get("window_acks", ()):
            inflight.slots.acknowledged(link, agent, generation)
        for agent, wanted in message.get("demands", ()):
            inflight.slots.demanded(link, agent, wanted)
        return True

    def send(self) -> bool:
        """Writes one message with what waits to one replica, to whichever has something."""
        lines = list(self.lines.values())
        self.rng.shuffle(lines)
        return any(self._send(line) for line in lines)

    def _send(self, line: Line) -> bool:
        """As wire.next_request does."""
        link, stream = line.link, line.current
        if stream is None or link is None or not stream.open:
            return False
        message: dict[str, Any] = {}
        if link.inventories:
            page = link.inventories.popleft()
            held = [*page.attempt_ids, *page.reported_attempt_ids]
            message["inventories"] = [(page.shard, page.epoch, held, page.last)]
        if not link.inventories:
            reports: list[tuple[int, str, Outcome | None]] = []
            while link.started:
                attempt = link.started.popleft()
                if attempt.end is End.NONE:
                    reports.append((attempt.shard, attempt.attempt_id, None))
            for _ in range(min(len(link.reports), self.rng.choice([1, 3, 256]))):
                attempt = link.reports.popleft()
                reports.append((attempt.shard, attempt.attempt_id, outcome_of(attempt)))
            if reports:
                message["reports"] = reports
        if link.agents:
            message["agents"] = list(link.agents.items())
            link.agents = {}
        elif link.windows:
            message["windows"] = [(agent, *window) for agent, window in link.windows.items()]
            link.windows = {}
        if message:
            stream.up.append(message)
        return bool(message)

    def work(self, now: float, healthy: bool) -> bool:
        """The agent takes what it may and answers, or not."""
        taken = self.inflight.take(self.seat, now, 10, 1 << 20)
        for attempt in taken:
            self.history.executed(attempt.attempt_id)
        while self.seat.cancels:
            attempt_id, _ = self.seat.cancels.popleft()
            self.inflight.ended(self.seat, attempt_id, (False, FailureKind.CANCELLED), 1, now)
        running = list(self.seat.running)
        for attempt_id in running:
            if healthy or self.rng.random() < 0.5:
                succeeded = healthy or self.rng.random() < 0.8
                kind = self.rng.choice([FailureKind.TRANSIENT, FailureKind.TRANSIENT, FailureKind.PERMANENT])
                self.inflight.ended(self.seat, attempt_id, (succeeded, kind), 1, now)
        self.inflight.sweep(now)
        return bool(taken or running)


def outcome_of(attempt: Attempt) -> Outcome:
    """What the orchestrator reads from a report."""
    end = attempt.end
    if end is End.RESULT:
        succeeded, kind = attempt.result
        if succeeded:
            return Outcome(AttemptState.SUCCEEDED, payload(f"by {attempt.attempt_id}"), busy=5)
        return Outcome(AttemptState.FAILED, failure=Failure(kind, "the agent failed"))
    if end in RETURNED:
        return Outcome(AttemptState.RETURNED, failure=Failure(FailureKind.TRANSIENT, end.name))
    if end is End.LOST or end is End.LEFT:
        return Outcome(AttemptState.LOST, failure=Failure(FailureKind.LOST, "the agent went away"))
    kind = FailureKind.CANCELLED if end is End.CANCELLED else FailureKind.TIMEOUT
    return Outcome(AttemptState.FAILED, failure=Failure(kind, end.name))


class Door(Protocol):
    """Where clients come in: whatever replica they find there."""

    def put(self, shard: int, item: i.Input) -> None: ...

    def at(self, shard: int) -> Callable[[int, i.Input], None]:
        """One of those whom `put` may meet."""


class Watching:
    """A watcher that checks what it is given: every event once, in order, the same as ever."""

    def __init__(self, run_id: str, seen: dict[int, bytes]) -> None:
        self.run_id = run_id
        self.seen = seen
        self.cursor = max(seen, default=0)
        self.begun = False

    def records(self, records: list[bytes]) -> None:
        for raw in records:
            record = journal_pb2.Record.FromString(raw)
            assert record.run_id == self.run_id
            # Only at its beginning may events be missing: those are read from the archive.
            assert record.event_seq == self.cursor + 1 or (record.event_seq > self.cursor and not self.begun)
            self.begun = True
            self.cursor = record.event_seq
            assert self.seen.setdefault(record.event_seq, raw) == raw, "two watchers saw different events"

    def progress(self, task_id: str, member: int, progress: Any) -> None:
        raise AssertionError("no agent of the model reports progress")

    def partial(self, task_id: str, member: int, piece: Any) -> None:
        raise AssertionError("no agent of the model emits pieces of output")

    def moved(self) -> None:
        """Whoever asks again goes on from the cursor."""

    def ended(self, run: Run) -> None:
        assert run.state is not RunState.RUNNING
        assert self.cursor == run.event_seq, "a watcher was told the end before the last event"


class Client:
    """Submits runs under request ids, repeats itself after silence, cancels, reads and watches."""

    def __init__(self, plans: dict[str, Plan], history: History, rng: random.Random, wall: Callable[[], int]) -> None:
        self.plans = plans
        self.history = history
        self.rng = rng
        self.wall = wall
        self.wanted: dict[str, tuple[str, int]] = {}
        self.answered: dict[str, str] = {}
        self.count = 0

    def submit(self, door: Door, request_id: str | None = None) -> None:
        """A new submission, or the same one again."""
        if request_id is None:
            self.count += 1
            request_id = f"q{self.count}"
            self.wanted[request_id] = (self.rng.choice(sorted(self.plans)), self.rng.choice([0, 0, 5]))
        graph, priority = self.wanted[request_id]
        event = submitted(request_id, deadline_time=self.wall() + 900 * SECOND, priority=priority)
        event.graph_name = graph
        key = payloads.request_key(CLIENT, request_id)
        shard = key[0] % SHARDS
        run_id = f"r{shard:04x}{self.rng.getrandbits(48):012x}"
        wait = self.rng.random() < 0.3

        def sink(answer: Any) -> None:
            self._replied(request_id, answer)

        door.put(shard, i.Submit(run_id, self.plans[graph], event, key, wait, sink))

    def submit_other_content(self, door: Door, request_id: str) -> None:
        """The same request id with something else: never accepted once the first was answered."""
        event = submitted(request_id, deadline_time=self.wall() + 900 * SECOND)
        event.graph_name, event.request_digest = "chain", b"other"
        key = payloads.request_key(CLIENT, request_id)
        answers: list[Any] = []
        shard = key[0] % SHARDS
        run_id = f"r{shard:04x}{self.rng.getrandbits(48):012x}"
        put = door.at(shard)
        put(shard, i.Submit(run_id, self.plans["chain"], event, key, False, answers.append))
        put(shard, i.Read(run_id, lambda run: run, lambda run: self._refused(answers, run)))

    def _refused(self, answers: list[Any], run: Run | None) -> None:
        if isinstance(run, i.Moved) or any(isinstance(answer, i.Moved) for answer in answers):
            return
        assert [type(answer) for answer in answers] == [RequestIdReused]
        assert run is None

    def _replied(self, request_id: str, answer: Any) -> None:
        if isinstance(answer, i.Moved):
            return  # it comes again
        if isinstance(answer, str):
            self.history.replied(request_id, answer, "ARCHIVED")
            self.answered[request_id] = answer
            return
        assert isinstance(answer, Run), answer
        self.history.replied(request_id, answer.run_id, answer.state.name)
        self.answered[request_id] = answer.run_id

    def cancel(self, door: Door, request_id: str) -> None:
        run_id = self.answered[request_id]

        def sink(answer: Any) -> None:
            if isinstance(answer, Run):
                assert answer.state is not RunState.RUNNING
                self.history.replied(request_id, run_id, answer.state.name)

        door.put(int(run_id[1:5], 16), i.Cancel(run_id, CLIENT, "no longer needed", sink))

    def watch(self, door: Door, request_id: str) -> None:
        """Watches from where the last one stopped."""
        run_id = self.answered[request_id]
        watcher = Watching(run_id, self.history.watched.setdefault(run_id, {}))

        door.put(int(run_id[1:5], 16), i.Watch(run_id, watcher.cursor, watcher, lambda answer: None))
