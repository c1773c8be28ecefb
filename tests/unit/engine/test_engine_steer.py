"""What people ask of a run under way: each rule in the few lines it takes."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.engine import agreement, decide, steer, waits
from antiphon_orchestrator.engine.events import Event, ResultReused, Reused, SignalReceived
from antiphon_orchestrator.engine.plan import HedgePlan, OnFailure, Plan
from antiphon_orchestrator.engine.run import Run, apply, start
from antiphon_orchestrator.engine.states import AttemptState, RunState, TaskState
from antiphon_orchestrator.shards import codec
from test_engine_rules import FAILURE, SUCCESS, Ports, begun, go_on, offer, settle

from tests.fakes.plans import SECOND, Node, payload, plan, retry


def states(run: Run) -> str:
    return " ".join(task.state.name for task in run.all_tasks())


def take_up(run: Run, index: int, member: int = 0, now: int = 0, expected: int | None = None) -> None:
    go_on(run, steer.retry_task(run, run.task(index, member), expected, "someone", "mended"), now)


def end(run: Run, index: int, member: int = 0, dependents: bool = False) -> None:
    go_on(run, steer.cancel_task(run, run.task(index, member), dependents, "someone", "enough"))


def test_a_paused_run_takes_outcomes_and_begins_nothing_until_it_is_resumed() -> None:
    run = begun(plan(Node(), Node((0,)), Node(wait=SECOND)))
    offer(run, 0)
    go_on(run, steer.pause(run, "someone", "look first"))
    assert steer.pause(run, "another", "") == []
    settle(run, 0, SUCCESS)
    for task in run.tasks:
        go_on(run, decide.on_time(run, task, 10 * SECOND), 10 * SECOND)
    assert states(run) == "SUCCEEDED PENDING WAITING"
    assert [decide.next_due(run, task) for task in run.tasks] == [None, None, None]
    go_on(run, steer.resume(run, "someone", ""), 20 * SECOND)
    assert run.tasks[1].state is TaskState.READY
    assert decide.next_due(run, run.tasks[2]) == SECOND


def test_a_pause_does_not_count_as_waiting_for_an_agent_but_for_deadlines() -> None:
    run = begun(plan(Node(schedule_timeout=5 * SECOND), Node(deadline=30 * SECOND)))
    go_on(run, steer.pause(run, "someone", ""), SECOND)
    assert decide.on_time(run, run.tasks[0], 25 * SECOND) == []
    go_on(run, steer.resume(run, "someone", ""), 25 * SECOND)
    assert decide.next_due(run, run.tasks[0]) == 30 * SECOND
    go_on(run, steer.pause(run, "someone", ""), 26 * SECOND)
    assert decide.next_due(run, run.tasks[1]) == 30 * SECOND
    go_on(run, decide.on_time(run, run.tasks[1], 30 * SECOND), 30 * SECOND)
    assert run.tasks[1].state is TaskState.FAILED


def test_a_paused_run_can_be_cancelled_and_its_deadline_ends_it() -> None:
    run = begun(plan(Node()))
    go_on(run, steer.pause(run, "someone", ""))
    go_on(run, decide.cancel_run(run, "someone", "enough"))
    assert run.state is RunState.CANCELLED
    late = begun(plan(Node()))
    go_on(late, steer.pause(late, "someone", ""))
    go_on(late, decide.on_time(late, None, late.submitted.deadline_time))
    assert late.state is RunState.FAILED


def test_a_cancelled_task_leaves_what_needs_it_to_its_join_or_takes_it_along() -> None:
    nodes = (Node(), Node(), Node((0,)), Node((0, 1), join=1), Node((2, 3), join=1))
    alone = begun(plan(*nodes))
    offer(alone, 0)
    end(alone, 0)
    assert states(alone) == "CANCELLED READY SKIPPED PENDING PENDING"
    assert alone.tasks[0].attempts[0].state is AttemptState.CANCELLED
    offer(alone, 1)
    settle(alone, 1, SUCCESS)
    assert states(alone) == "CANCELLED SUCCEEDED SKIPPED READY PENDING"
    together = begun(plan(*nodes))
    end(together, 0, dependents=True)
    assert states(together) == "CANCELLED READY CANCELLED CANCELLED CANCELLED"
    offer(together, 1)
    settle(together, 1, SUCCESS)
    assert together.state is RunState.SUCCEEDED


def test_a_large_fan_out_is_cancelled_in_bounded_steps_also_while_its_run_is_paused() -> None:
    run = begun(plan(Node(members=250), Node((0,), join=1)))
    go_on(run, steer.pause(run, "someone", ""))
    events = steer.cancel_task(run, run.tasks[0], False, "someone", "enough")
    assert len(events) == 1
    go_on(run, events)
    assert {member.state for member in run.tasks[0].members} == {TaskState.CANCELLED}
    assert (run.tasks[0].state, run.tasks[1].state) == (TaskState.CANCELLED, TaskState.PENDING)
    go_on(run, steer.resume(run, "someone", ""))
    assert run.tasks[1].state is TaskState.SKIPPED


def to_be_cancelled(of: Plan, out: bool = True) -> Run:
    """A run, the cancel of whose first task is accepted, and is not carried out while the turn is full."""
    run = begun(of)
    if out:
        offer(run, 0)
    for event in steer.cancel_task(run, run.tasks[0], False, "someone", "enough"):
        apply(run, event, 0)
    return run


def by_itself(how: str) -> tuple[Run, list[Event]]:
    """A run whose first task is to be cancelled, and what ends it before."""
    if how == "outcome":
        run = to_be_cancelled(plan(Node(), Node((0,))))
        return run, decide.settle(run, run.tasks[0], 1, SUCCESS, 5, Ports())[1]
    if how == "signal":
        run = to_be_cancelled(plan(Node(wait="go"), Node((0,))), out=False)
        return run, waits.receive(run, SignalReceived("go", payload("x"), "someone", "1", b""))
    if how == "time":
        run = to_be_cancelled(plan(Node(wait=SECOND), Node((0,))), out=False)
        return run, decide.on_time(run, run.tasks[0], SECOND)
    if how == "result of before":
        run = to_be_cancelled(plan(Node(cache_ttl=SECOND), Node((0,))), out=False)
        return run, [ResultReused(0, 0, payload("x"), Reused("other/t/0/1", 0, b"", b""), None, None)]
    run = begun(plan(Node(on_failure=OnFailure.ESCALATE), Node((0,))))
    offer(run, 0)
    settle(run, 0, FAILURE)
    for event in steer.cancel_task(run, run.tasks[0], False, "someone", "enough"):
        apply(run, event, 0)
    return run, steer.resolve_task(run, run.tasks[0], payload("x"), "", "someone")


@pytest.mark.parametrize("how", ["outcome", "signal", "time", "result of before", "person"])
def test_a_task_that_ends_by_itself_before_its_cancel_is_carried_out_stays_as_it_ended(how: str) -> None:
    run, events = by_itself(how)
    assert run.frontier == [0]
    go_on(run, events, SECOND)
    assert states(run) == "SUCCEEDED READY"
    assert (run.frontier, run.tasks[0].cancel_reason) == ([], "")


def test_a_task_that_fails_for_good_before_its_cancel_is_carried_out_is_cancelled_and_asks_nobody() -> None:
    run = to_be_cancelled(plan(Node(on_failure=OnFailure.ESCALATE)))
    for event in decide.settle(run, run.tasks[0], 1, FAILURE, 0, Ports())[1]:
        apply(run, event, 0)
    assert states(run) == "ESCALATED"
    go_on(run)
    assert states(run) == "CANCELLED"


def test_a_hedge_that_asks_a_second_agent_before_its_cancel_is_carried_out_is_cancelled() -> None:
    run = begun(plan(Node(agree=1, of=2, hedge=HedgePlan(SECOND, 0.0, 0.1))))
    offer(run, 0, 1)
    for event in steer.cancel_task(run, run.tasks[0], False, "someone", "enough"):
        apply(run, event, 0)
    apply(run, agreement.second(run.tasks[0]), 0)
    go_on(run)
    assert states(run) == "CANCELLED CANCELLED CANCELLED"


def test_a_snapshot_with_the_cancel_of_a_task_that_had_ended_goes_on() -> None:
    run = begun(plan(Node(), Node((0,))))
    offer(run, 0)
    settle(run, 0, SUCCESS)
    message = codec.snapshot(run)
    message.tasks[0].cancel_reason = "cancelled by someone: enough"  # as earlier versions wrote it
    other = start("r", run.plan, run.submitted, 0)
    codec.restore(other, message, run.event_seq)
    go_on(other)
    assert (states(other), other.frontier) == ("SUCCEEDED READY", [])


def test_one_member_can_be_cancelled_and_is_a_hole_in_its_list() -> None:
    run = begun(plan(Node(members=2)))
    end(run, 0, 1)
    offer(run, 0, 2)
    settle(run, 0, SUCCESS, 2)
    assert run.view(run.tasks[0]).output(0) == [b"", SUCCESS.output]
    assert run.state is RunState.SUCCEEDED


def test_cancelling_an_iteration_ends_its_loop() -> None:
    run = begun(plan(Node(iterations=3, most_iterations=3)))
    end(run, 0, 1)
    assert states(run) == "CANCELLED CANCELLED"


def test_a_failed_task_that_is_tried_again_takes_up_what_was_skipped_for_it() -> None:
    run = begun(plan(Node(), Node((0,)), Node((1,)), Node()))
    offer(run, 0)
    settle(run, 0, FAILURE, now=5)
    assert states(run) == "FAILED SKIPPED SKIPPED READY"
    take_up(run, 0, now=7, expected=5)
    assert states(run) == "READY PENDING PENDING READY"
    offer(run, 0)
    settle(run, 0, SUCCESS)
    assert [attempt.number for attempt in run.tasks[0].attempts] == [1, 2]
    for index in (1, 2, 3):
        offer(run, index)
        settle(run, index, SUCCESS)
    assert run.state is RunState.SUCCEEDED


def test_a_task_that_is_tried_again_has_one_attempt_and_its_run_fails_for_what_is_left() -> None:
    run = begun(plan(Node(retry=(retry(2, first=0, longest=0),)), Node(), Node()))
    for index in (0, 0, 1):
        offer(run, index)
        settle(run, index, FAILURE)
        go_on(run, decide.on_time(run, run.tasks[index], 1), 1)
    assert run.first_failure is not None and run.first_failure[0] == "t0"
    take_up(run, 0)
    assert run.first_failure is not None and run.first_failure[0] == "t1"
    offer(run, 0)
    settle(run, 0, FAILURE)
    assert run.tasks[0].state is TaskState.FAILED
    assert len(run.tasks[0].attempts) == 3


def test_what_went_on_without_a_failed_task_is_not_run_again() -> None:
    run = begun(plan(Node(on_failure=OnFailure.CONTINUE), Node((0,)), Node()))
    offer(run, 0)
    settle(run, 0, FAILURE)
    offer(run, 1)
    settle(run, 1, SUCCESS)
    take_up(run, 0)
    assert states(run) == "READY SUCCEEDED READY"
    for index in (0, 2):
        offer(run, index)
        settle(run, index, SUCCESS)
    assert run.state is RunState.SUCCEEDED


def test_a_failed_fan_out_goes_on_with_the_members_that_did_not_succeed() -> None:
    run = begun(plan(Node(members=3), Node((0,)), Node()))
    offer(run, 0, 1)
    settle(run, 0, SUCCESS, 1)
    offer(run, 0, 2)
    settle(run, 0, FAILURE, 2)
    assert states(run) == "FAILED SUCCEEDED FAILED CANCELLED SKIPPED READY"
    with pytest.raises(steer.Conflict, match="retry the task t0"):
        take_up(run, 0, 2)
    take_up(run, 0)
    assert states(run) == "RUNNING SUCCEEDED READY READY PENDING READY"
    for member in (2, 3):
        offer(run, 0, member)
        settle(run, 0, SUCCESS, member)
    assert states(run) == "SUCCEEDED SUCCEEDED SUCCEEDED SUCCEEDED READY READY"


def test_a_member_of_a_tolerant_fan_out_is_tried_again_by_itself() -> None:
    run = begun(plan(Node(members=2, on_failure=OnFailure.SKIP)))
    offer(run, 0, 1)
    settle(run, 0, FAILURE, 1)
    take_up(run, 0, 1)
    assert states(run) == "RUNNING READY READY"


def test_the_iteration_that_failed_is_tried_again_and_its_loop_goes_on() -> None:
    run = begun(plan(Node(iterations=2, most_iterations=2), Node()))
    offer(run, 0, 1)
    settle(run, 0, SUCCESS, 1)
    offer(run, 0, 2)
    settle(run, 0, FAILURE, 2)
    take_up(run, 0)
    offer(run, 0, 2)
    settle(run, 0, SUCCESS, 2)
    assert run.tasks[0].state is TaskState.SUCCEEDED


def test_an_iteration_that_waits_for_a_person_is_tried_again_by_itself() -> None:
    run = begun(plan(Node(iterations=2, most_iterations=2, on_failure=OnFailure.ESCALATE)))
    offer(run, 0, 1)
    settle(run, 0, FAILURE, 1)
    assert states(run) == "RUNNING ESCALATED"
    take_up(run, 0, 1)
    for iteration in (1, 2):
        offer(run, 0, iteration)
        settle(run, 0, SUCCESS, iteration)
    assert run.tasks[0].state is TaskState.SUCCEEDED


def test_what_cannot_be_tried_again_says_why_and_what_is_under_way_stays() -> None:
    run = begun(plan(Node(), Node(iterations=9, most_iterations=1), Node(), Node()))
    take_up(run, 0)
    assert run.tasks[0].state is TaskState.READY
    offer(run, 0)
    settle(run, 0, SUCCESS)
    offer(run, 1, 1)
    settle(run, 1, SUCCESS, 1)
    with pytest.raises(steer.Conflict, match="only what has failed"):
        take_up(run, 0)
    with pytest.raises(steer.Conflict, match="iterations are used up"):
        take_up(run, 1)
    offer(run, 2)
    settle(run, 2, FAILURE, now=5)
    with pytest.raises(steer.Conflict, match="tried since"):
        take_up(run, 2, expected=4)
    go_on(run, decide.cancel_run(run, "someone", "enough"))
    for wish in (steer.pause, steer.resume):
        assert wish(run, "someone", "") == []
    assert steer.retry_task(run, run.tasks[2], None, "someone", "") == []
    assert steer.cancel_task(run, run.tasks[2], True, "someone", "") == []
