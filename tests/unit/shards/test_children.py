"""Calls between agents end with the task that made them, when that ends without a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.shards import inputs as i
from shard_rig import SOURCE, Rig, failed, instance

from tests.fakes.plans import SECOND, Node, payload, plan, retry

ONE = plan(Node())


def call(attempt_id: str, run_id: str, call_id: str = "c", sink: i.Sink = lambda answer: None) -> i.Call:
    return i.Call(SOURCE, attempt_id, call_id, run_id, ONE, None, b"digest", payload("x"), None, sink)


def calling(of: Plan = ONE, slots: int = 9) -> Rig:
    """A run r1 whose first task has called for c1, whose task has called for c2."""
    rig = Rig()
    rig.fleet.attach(instance(slots=slots))
    rig.tell(rig.submit("r1", of))
    rig.tell(call("r1/t0/0/1", "c1"))
    rig.tell(call("c1/t0/0/1", "c2"))
    assert rig.run("c2").state is RunState.RUNNING
    return rig


def test_calls_end_with_the_run_that_is_cancelled_as_deep_as_they_go() -> None:
    rig = calling()
    rig.tell(i.Cancel("r1", "spiffe://x/ns/demo/client/me", "enough", lambda answer: None))
    assert [rig.run(run_id).state for run_id in ("r1", "c1", "c2")] == [RunState.CANCELLED] * 3
    assert sorted(rig.cancels) == ["c1/t0/0/1", "c2/t0/0/1", "r1/t0/0/1"]
    cancelled = rig.run("c2").cancel
    assert cancelled is not None and cancelled.principal == "spiffe://x/ns/demo/client/me"
    assert cancelled.reason == "the task that called it is CANCELLED"
    assert not rig.shard._children


@pytest.mark.parametrize(
    ("of", "happens"),
    [
        (plan(Node(deadline=5 * SECOND)), lambda rig: None),  # its deadline passes
        (ONE, lambda rig: rig.report("r1/t0/0/1", failed())),
        (ONE, lambda rig: i.SidecarGone("i")),
    ],
    ids=["deadline", "failure", "loss"],
)
def test_calls_end_with_a_task_that_fails_for_good(of: Plan, happens: Callable[[Rig], i.Input | None]) -> None:
    rig = calling(of)
    rig.now += 6 * SECOND
    item = happens(rig)
    rig.tell(*([item] if item is not None else []))
    assert rig.run("r1").state is RunState.FAILED
    assert {rig.run(run_id).state for run_id in ("c1", "c2")} <= {RunState.CANCELLED, RunState.FAILED}


def test_calls_go_on_while_their_task_is_tried_again_and_when_it_succeeds_without_them() -> None:
    rig = calling(plan(Node(retry=(retry(3, FailureKind.TRANSIENT),))))
    rig.tell(rig.report("r1/t0/0/1", failed()))
    rig.now += 5 * SECOND
    rig.tell()
    found: list[Any] = []
    rig.tell(call("r1/t0/0/2", "c3", sink=found.append))
    assert "c3" not in rig.shard.runs, "the next attempt finds the same run"
    rig.tell(rig.report("c2/t0/0/1"), rig.report("c1/t0/0/1"))
    assert isinstance(found[0], Run) and found[0].state is RunState.SUCCEEDED
    rig.tell(call("r1/t0/0/2", "c4", "another"))
    rig.tell(rig.report("r1/t0/0/2"))
    assert (rig.run("r1").state, rig.run("c4").state) == (RunState.SUCCEEDED, RunState.RUNNING)
    assert not rig.shard._children


def test_a_new_owner_ends_calls_whose_task_had_ended_when_the_last_one_died() -> None:
    rig = calling()
    rig.shard.inbox.append(i.Cancel("r1", "me", "enough", lambda answer: None))
    rig.turn()
    while rig.run("r1").state is RunState.RUNNING:
        rig.turn()
    last = max(n for n, (_, records) in enumerate(rig.log) if any(b"r1" in raw for raw in records))
    del rig.log[last + 1 :]  # what followed was never committed
    other = rig.recovered(lambda submitted: ONE)
    other.tell()
    assert [other.run(run_id).state for run_id in ("r1", "c1", "c2")] == [RunState.CANCELLED] * 3
