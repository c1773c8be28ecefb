"""Quorums and hedges: each rule in the few lines it takes."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.engine import agreement, decide, steer
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import HedgePlan, OnFailure
from antiphon_orchestrator.engine.run import Run, start
from antiphon_orchestrator.engine.states import AttemptState, RunState, TaskState
from test_engine_rules import FAILURE, Ports, begun, go_on, offer, settle

from tests.fakes.plans import SECOND, Node, payload, plan, retry, submitted

HEDGE = HedgePlan(SECOND, 0.0, 0.1)
LATER = 10 * SECOND


def answer(text: str) -> Outcome:
    return Outcome(AttemptState.SUCCEEDED, payload(text))


def asked(*nodes: Node, members: int = 3) -> Run:
    """A run whose first task has an attempt out to each of its members."""
    run = begun(plan(*nodes))
    for member in range(1, members + 1):
        offer(run, 0, member)
    return run


def states(run: Run) -> list[str]:
    return [member.state.name for member in run.tasks[0].members]


def test_a_quorum_asks_all_with_one_input_and_answers_the_first_answer_that_enough_agree_on() -> None:
    run = asked(Node(agree=2, of=3), Node((0,)))
    assert {member.input for member in run.tasks[0].members} == {payload("input of 0")}
    settle(run, 0, answer("odd"), 1)
    settle(run, 0, answer("even"), 3)
    assert run.tasks[0].state is TaskState.RUNNING
    settle(run, 0, answer("even"), 2)
    assert run.tasks[0].state is TaskState.SUCCEEDED
    assert run.view(run.tasks[1]).output(0) == payload("even")
    # What the others said stays in the record: 1 agrees with none, 2 with 3, which came before it.
    assert [member.answer for member in run.tasks[0].members] == [1, 3, 3]
    assert run.tasks[1].state is TaskState.READY


def test_once_enough_agree_the_others_are_cancelled_and_what_they_say_later_is_recorded_and_not_used() -> None:
    run = asked(Node(agree=2, of=3), Node((0,)))
    settle(run, 0, answer("even"), 1)
    settle(run, 0, answer("even"), 2)
    assert states(run) == ["SUCCEEDED", "SUCCEEDED", "CANCELLED"]
    late = run.task(0, 3)
    verdict, events = decide.settle(run, late, 1, answer("odd"), LATER, Ports())
    assert verdict == decide.Verdict.STALE
    go_on(run, events, LATER)
    assert late.attempts[0].stale and run.view(run.tasks[1]).output(0) == payload("even")


def test_without_a_quorum_the_task_fails_with_a_kind_of_its_own_that_says_who_answered_what() -> None:
    run = asked(Node(agree=3, of=4), members=4)
    settle(run, 0, answer("odd"), 1)
    settle(run, 0, answer("even"), 2)
    settle(run, 0, FAILURE, 3)
    failure = run.tasks[0].failure
    assert failure is not None and failure.kind is FailureKind.NO_QUORUM and not failure.retryable
    assert failure.message.startswith("3 of 4 must agree; answers that agree: 1, 1; 1 failed (")
    assert states(run) == ["SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED"], "the last could not have changed it"
    assert run.state is RunState.FAILED and run.failure is not None and run.failure.kind is FailureKind.NO_QUORUM


def test_members_are_tried_again_by_themselves_and_only_the_whole_escalates() -> None:
    run = asked(Node(agree=2, of=2, retry=(retry(2, first=0, longest=0),), on_failure=OnFailure.ESCALATE), members=2)
    settle(run, 0, FAILURE, 1)
    go_on(run, decide.on_time(run, run.task(0, 1), 1), 1)
    assert run.task(0, 1).state is TaskState.READY
    offer(run, 0, 1)
    settle(run, 0, FAILURE, 1)
    assert states(run) == ["FAILED", "CANCELLED"]
    assert run.tasks[0].state is TaskState.ESCALATED
    go_on(run, steer.resolve_task(run, run.tasks[0], payload("mine"), "", "olga"))
    assert run.state is RunState.SUCCEEDED
    assert run.view(run.tasks[0]).output(0) == payload("mine")


def test_what_cannot_be_compared_agrees_with_none_and_says_why() -> None:
    run = asked(Node(agree=2, of=2, broken="quorum"), members=2)
    settle(run, 0, answer("even"), 1)
    settle(run, 0, answer("even"), 2)
    assert run.task(0, 2).reason == "cannot be compared with member 1: is broken"
    assert run.tasks[0].failure is not None and run.tasks[0].failure.kind is FailureKind.NO_QUORUM


def test_agents_that_all_answered_and_disagree_are_not_asked_again_by_hand() -> None:
    run = asked(Node(agree=2, of=2, on_failure=OnFailure.ESCALATE), members=2)
    settle(run, 0, answer("odd"), 1)
    settle(run, 0, answer("even"), 2)
    with pytest.raises(steer.Conflict, match="do not agree"):
        steer.retry_task(run, run.tasks[0], None, "olga", "")


def test_a_quorum_that_failed_for_want_of_answers_goes_on_with_those_who_did_not_answer() -> None:
    run = asked(Node(agree=2, of=2, on_failure=OnFailure.ESCALATE), members=2)
    settle(run, 0, answer("even"), 1)
    settle(run, 0, FAILURE, 2)
    assert run.tasks[0].state is TaskState.ESCALATED
    go_on(run, steer.retry_task(run, run.tasks[0], None, "olga", ""))
    assert states(run) == ["SUCCEEDED", "READY"]
    offer(run, 0, 2)
    settle(run, 0, answer("even"), 2)
    assert run.state is RunState.SUCCEEDED


def test_large_inputs_of_a_quorum_come_in_several_steps_and_all_members_get_one() -> None:
    run = begun(plan(Node(agree=16, of=16, input=payload("x" * 60_000))))
    assert len(run.tasks[0].members) == run.tasks[0].member_count == 16
    assert run.event_seq >= 17


def test_the_first_outcome_of_a_hedge_is_used_and_the_other_attempt_is_cancelled() -> None:
    run = asked(Node(agree=1, of=2, hedge=HEDGE), Node((0,)), members=1)
    assert agreement.alone(run, run.tasks[0]) is run.task(0, 1).live
    go_on(run, [agreement.second(run.tasks[0])])
    assert agreement.alone(run, run.tasks[0]) is None, "there is never a third"
    offer(run, 0, 2)
    settle(run, 0, answer("quick"), 2)
    assert states(run) == ["CANCELLED", "SUCCEEDED"]
    assert run.view(run.tasks[1]).output(0) == payload("quick")
    assert decide.idempotency_key("run", run.task(0, 1)) == decide.idempotency_key("run", run.task(0, 2))
    assert decide.attempt_id("run", run.task(0, 1), 1) != decide.attempt_id("run", run.task(0, 2), 1)


def test_the_second_attempt_of_a_hedge_has_what_is_left_of_the_time_of_its_task() -> None:
    run = start("r", plan(Node(agree=1, of=2, hedge=HEDGE, deadline=9 * SECOND)), submitted(), 0)
    go_on(run, now=SECOND)
    go_on(run, [agreement.second(run.tasks[0])], 5 * SECOND)
    assert [decide.task_deadline(run, member) for member in run.tasks[0].members] == [10 * SECOND] * 2


def test_the_second_attempt_of_a_hedge_is_not_tried_again_and_the_first_goes_on() -> None:
    run = asked(Node(agree=1, of=2, hedge=HEDGE, retry=(retry(3),)), members=1)
    go_on(run, [agreement.second(run.tasks[0])])
    offer(run, 0, 2)
    settle(run, 0, FAILURE, 2)
    assert states(run) == ["RUNNING", "FAILED"]
    settle(run, 0, FAILURE, 1)
    assert states(run) == ["WAITING", "FAILED"]
    assert run.tasks[0].state is TaskState.RUNNING


def test_a_hedge_whose_members_all_fail_fails_as_the_first_of_them() -> None:
    run = asked(Node(agree=1, of=2, hedge=HEDGE), members=1)
    go_on(run, [agreement.second(run.tasks[0])])
    offer(run, 0, 2)
    settle(run, 0, FAILURE, 2)
    settle(run, 0, Outcome(AttemptState.FAILED, failure=Failure(FailureKind.BUDGET, "dear", "E7")), 1)
    failure = run.tasks[0].failure
    assert failure is not None
    assert (failure.kind, failure.code, failure.message) == (FailureKind.BUDGET, "E7", "member 1: dear")


def test_nothing_is_hedged_while_a_run_is_held_or_ends() -> None:
    run = asked(Node(agree=1, of=2, hedge=HEDGE), members=1)
    go_on(run, steer.pause(run, "olga", ""))
    assert agreement.alone(run, run.tasks[0]) is None
    go_on(run, steer.resume(run, "olga", ""))
    assert agreement.alone(run, run.tasks[0]) is not None
    go_on(run, decide.cancel_run(run, "olga", ""))
    assert agreement.alone(run, run.tasks[0]) is None


def test_members_that_are_under_way_or_have_answered_keep_others_from_their_agents() -> None:
    run = asked(Node(agree=3, of=3, retry=(retry(3),)), members=2)
    node = run.tasks[0]
    assert agreement.taken(node, 3) == {"a"}
    assert agreement.taken(node, 1) == {"a"}
    settle(run, 0, FAILURE, 1)
    settle(run, 0, answer("even"), 2)
    assert agreement.taken(node, 2) == frozenset(), "one that waits for its next attempt may get another agent"
    assert agreement.taken(node, 3) == {"a"}
