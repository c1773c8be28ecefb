"""What callers and sidecars can do to runs, in any order and across crashes, against a model of a few sets."""

from __future__ import annotations

from typing import Any

from antiphon_orchestrator.engine import decide
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.shards import inputs as i
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shard_rig import Rig, failed, instance

from tests.fakes.plans import CLIENT, Node, plan

PLANS = {
    "one": plan(Node()),
    "chain": plan(Node(), Node((0,))),
    "fan": plan(Node(members=3), Node((0,))),
    "any": plan(Node(), Node(), Node((0, 1), join=1)),
}
SLOTS = 3


def plan_of(event: Any) -> Plan:
    return PLANS[event.request_id.partition("-")[0]]


class Runs(RuleBasedStateMachine):
    """`requests`: by request id the run and the digest of what was asked first. `out`: attempts that sidecars have.
    `ended`: how each run ended, and its last event. `archived`: runs that memory may have let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, tuple[str, bytes]] = {}
        self.out: set[str] = set()
        self.past: set[str] = set()
        self.ended: dict[str, tuple[RunState, int]] = {}
        self.archived: set[str] = set()
        self.begin(Rig())

    def begin(self, rig: Rig) -> None:
        self.rig = rig
        self.seen = (0, 0)
        rig.fleet.attach(instance(slots=SLOTS))
        self.tell()

    def tell(self, *items: i.Input) -> None:
        """Hands inputs over and notes what left the shard."""
        self.rig.tell(*items)
        offers, cancels = self.seen
        self.out |= set(self.rig.offers[offers:])
        gone = set(self.rig.cancels[cancels:])
        self.out -= gone
        self.past |= gone
        self.seen = len(self.rig.offers), len(self.rig.cancels)
        for run_id, entry in self.rig.shard.runs.items():
            if entry.run.state is not RunState.RUNNING:
                self.ended.setdefault(run_id, (entry.run.state, entry.run.event_seq))

    @rule(kind=st.sampled_from(sorted(PLANS)), number=st.integers(1, 2), other=st.booleans())
    def submit(self, kind: str, number: int, other: bool) -> None:
        request, run_id = f"{kind}-{number}", f"r{len(self.requests)}"
        answers: list[Any] = []
        item = self.rig.submit(run_id, PLANS[kind], answers.append, request_id=request)
        if other:
            item.event.request_digest = b"other content"
        self.tell(item)
        (answer,) = answers
        first, digest = self.requests.setdefault(request, (run_id, item.event.request_digest))
        if digest != item.event.request_digest:
            assert isinstance(answer, i.RequestIdReused)
        else:
            assert (answer if isinstance(answer, str) else answer.run_id) == first

    @precondition(lambda self: self.out or self.past)
    @rule(data=st.data(), succeeds=st.booleans())
    def report(self, data: st.DataObject, succeeds: bool) -> None:
        attempt_id = data.draw(st.sampled_from(sorted(self.out | self.past)))
        expected = attempt_id in self.out
        self.out.discard(attempt_id)
        self.past.add(attempt_id)
        before = len(self.rig.verdicts)
        outcome = None if succeeds else failed(FailureKind.PERMANENT)
        self.tell(self.rig.report(attempt_id, outcome))
        ((reported, verdict),) = self.rig.verdicts[before:]
        assert reported == attempt_id
        assert (verdict == decide.Verdict.ACCEPTED) is expected

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(run_id for run_id, _ in self.requests.values())))
        before = self.ended.get(run_id)
        answers: list[Run | None] = []
        self.tell(i.Cancel(run_id, CLIENT, "enough", answers.append))
        (answer,) = answers
        if answer is None:
            assert run_id in self.archived
        else:
            assert answer.state is (before[0] if before else RunState.CANCELLED)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def archive(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.ended)))
        self.tell(i.Archived({run_id: self.ended[run_id][1]}))
        self.archived.add(run_id)
        assert run_id not in self.rig.shard.runs

    @rule()
    def crash(self) -> None:
        """A new owner reads the log. Sidecars still have what they had."""
        self.begin(self.rig.recovered(plan_of))

    @invariant()
    def what_has_ended_stays_as_it_is_and_nothing_is_lost(self) -> None:
        for run_id, _ in self.requests.values():
            entry = self.rig.shard.runs.get(run_id)
            if entry is None:
                assert run_id in self.archived
            elif run_id in self.ended:
                assert (entry.run.state, entry.run.event_seq) == self.ended[run_id]
            else:
                assert entry.run.state is RunState.RUNNING

    @invariant()
    def what_counts_as_out_is_out(self) -> None:
        live = {
            decide.attempt_id(run_id, task, task.live.number)
            for run_id, entry in self.rig.shard.runs.items()
            for task in entry.run.all_tasks()
            if task.live is not None
        }
        assert live == self.out and len(live) <= SLOTS


Runs.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestRuns = Runs.TestCase
