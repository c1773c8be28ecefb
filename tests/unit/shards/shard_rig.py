"""A shard with everything around it in plain sight: a real fleet and policy, an outbox and archiver that keep lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from antiphon.store.v1 import journal_pb2
from antiphon.v1 import registry_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run, Task
from antiphon_orchestrator.engine.states import AttemptState
from antiphon_orchestrator.placement.fleet import Fleet, Instance, Offered, Waiter
from antiphon_orchestrator.placement.limits import Counter
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards import payloads
from antiphon_orchestrator.shards.recovery import recover_record
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.shards.turn import Turn

from tests.fakes.plans import SECOND, payload, submitted

POLICY = CedarPolicies(dev_profile())
START = 1_000_000 * SECOND
SOURCE = "demo/s"


def fleet() -> Fleet:
    return Fleet(POLICY, SchemaSet(Values()))


def instance(name: str = "a", slots: int = 1, **settings: Any) -> Instance:
    """An instance of an agent behind sidecar s; `settings` are those of its description, or of its only capability."""
    incarnation = settings.pop("incarnation", "i")
    labels = settings.pop("labels", {})
    concurrency = settings.pop("concurrency", max(1, slots))
    description = registry_pb2.AgentDescription(name=name, concurrency=concurrency, labels=labels)
    for capability in settings.pop("capabilities", ("text.work",)):
        version = settings.get("version", "1.0")
        rest = {key: value for key, value in settings.items() if key != "version"}
        description.capabilities.add(name=capability, version=version, **rest)
    principal = "spiffe://antiphon.internal/ns/demo/sidecar/s"
    return Instance(f"s/{incarnation}/{name}", "demo", principal, incarnation, description, slots, 1, START)


class Rig:
    """Drives one shard turn by turn. Implements its outbox, archiver, reader, graphs and reporter. `denied`: why no
    run may begin beneath another."""

    def __init__(self, of: Fleet | None = None) -> None:
        self.fleet = of or fleet()
        self.fleet.deliver = self._deliver
        self.fleet.limits.call = self._call_up
        self.shard = Shard(0, self.fleet, self, self, self, self, lambda: 0.5)
        self.shard.epoch = 1
        self.now = START
        self.log: list[tuple[int, list[bytes]]] = []
        self.offers: list[str] = []
        self.broken = ""
        """A run whose offers raise."""
        self.cancels: list[str] = []
        self.verdicts: list[tuple[str, str]] = []
        self.unanswered = 0
        self.archived: list[tuple[str, int, int]] = []
        self.turns: list[Turn] = []
        self.reads: list[tuple[str, list[int]]] = []
        self.opened: list[tuple[str, str, int]] = []
        self.denied: Failure | None = None

    def offer(self, shard: int, epoch: int, run: Run, task: Task) -> None:
        live = task.live
        assert live is not None
        if run.run_id == self.broken:
            raise ZeroDivisionError("a bug")
        self.offers.append(f"{run.run_id}/{task.plan.id}/{task.member}/{live.number}")

    def cancel(self, incarnation: str, attempt_id: str, reason: str) -> None:
        self.cancels.append(attempt_id)

    def read(self, shard: int, run: Run, tasks: Sequence[int]) -> None:
        self.reads.append((run.run_id, list(tasks)))

    def open(self, shard: int, run: Run, task: Task) -> None:
        self.opened.append((run.run_id, task.plan.id, task.member))

    def admit(
        self, parent: RunSubmitted, graph: str, input_schema: str, payload: bytes, priority: int
    ) -> tuple[bytes, Any] | Failure:
        return self.denied or (payload, None)

    def put(self, shard: int, run: Run, key: bytes, first_seq: int, records: Sequence[bytes]) -> None:
        self.archived.append((run.run_id, first_seq, first_seq + len(records) - 1))

    def no_verdict(self) -> None:
        self.unanswered += 1

    def verdict(self, attempt_id: str, kind: str) -> None:
        self.verdicts.append((attempt_id, kind))

    def _deliver(self, waiter: Waiter, offered: Offered) -> None:
        self.shard.inbox.append(i.Reserved(waiter, offered))

    def _call_up(self, waiter: Waiter, counter: Counter | None) -> None:
        self.shard.inbox.append(i.CalledUp(waiter, counter))

    def tell(self, *items: i.Input) -> None:
        """Hands inputs over and works until nothing is left to do now."""
        self.shard.inbox.extend(items)
        for _ in range(10_000):
            if not self.shard.has_work(self.now):
                return
            self.turn()
        raise AssertionError("the shard finds no rest")

    def turn(self, clock: Callable[[], float] = lambda: 0.0) -> Turn:
        turn = self.shard.take_turn(self.now, clock)
        self.turns.append(turn)
        if turn.records:
            self.log.append((len(self.log) + 1, turn.records))
        self.shard.release(turn, len(self.log))
        return turn

    def submit(
        self,
        run_id: str,
        of: Plan,
        sink: i.Sink = lambda answer: None,
        *,
        wait: bool = False,
        **how: Any,
    ) -> i.Submit:
        how.setdefault("deadline_time", self.now + 3600 * SECOND)
        event: RunSubmitted = submitted(how.pop("request_id", run_id), **how)
        return i.Submit(run_id, of, event, payloads.request_key(event.principal, event.request_id), wait, sink)

    def report(self, attempt_id: str, outcome: Outcome | None = None) -> i.Report:
        return i.Report(self, SOURCE, attempt_id, outcome or Outcome(AttemptState.SUCCEEDED, payload("done")))

    def run(self, run_id: str) -> Run:
        return self.shard.runs[run_id].run

    def states(self, run_id: str) -> list[str]:
        return [task.state.name for task in self.run(run_id).all_tasks()]

    def taken(self, plan_of: Callable[[RunSubmitted], Plan]) -> Rig:
        """A new owner that has read the log and holds its timers, as it does on a mesh."""
        return self.recovered(plan_of, timers_held=True)

    def recovered(self, plan_of: Callable[[RunSubmitted], Plan], timers_held: bool = False) -> Rig:
        """A new owner that has read the log."""
        other = Rig()
        other.shard.timers_held = timers_held
        other.now, other.log = self.now, list(self.log)
        for seq, records in self.log:
            for raw in records:
                recover_record(other.shard, seq, raw, journal_pb2.Record.FromString(raw), plan_of)
        other.shard.resume()
        return other


def failed(kind: FailureKind = FailureKind.TRANSIENT, message: str = "trouble") -> Outcome:
    return Outcome(AttemptState.FAILED, failure=Failure(kind, message))


def returned() -> Outcome:
    return Outcome(AttemptState.RETURNED, failure=Failure(FailureKind.TRANSIENT, "came back"))
