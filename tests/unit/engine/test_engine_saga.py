"""Escalation to a person, work that is offered once, and undoing what was done: each rule in the few lines it takes."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.engine import decide, steer
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.events import Event
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import AttemptState, RunState, TaskState
from test_engine_rules import FAILURE, SUCCESS, begun, go_on, offer, settle

from tests.fakes.plans import SECOND, Node, payload, plan, retry

LOST = Outcome(AttemptState.LOST, failure=Failure(FailureKind.LOST, "gone"))
LATE = Outcome(AttemptState.FAILED, failure=Failure(FailureKind.TIMEOUT, "late"))
ANSWER = payload("a person's")


def states(run: Run) -> str:
    return " ".join(task.state.name for task in run.all_tasks())


def resolve(run: Run, index: int, output: bytes | None, failure: str = "", member: int = 0) -> None:
    go_on(run, steer.resolve_task(run, run.task(index, member), output, failure, "someone"))


def do(run: Run, *indices: int, outcome: Outcome = SUCCESS) -> None:
    for index in indices:
        offer(run, index)
        settle(run, index, outcome)


def test_a_task_that_escalates_keeps_its_run_open_until_a_person_gives_its_output() -> None:
    run = begun(plan(Node(on_failure=OnFailure.ESCALATE, deadline=5 * SECOND), Node((0,))))
    do(run, 0, outcome=FAILURE)
    assert states(run) == "ESCALATED PENDING"
    assert decide.next_due(run, run.tasks[0]) is None
    assert decide.on_time(run, run.tasks[0], 9 * SECOND) == []
    resolve(run, 0, ANSWER)
    assert (run.tasks[0].output, run.tasks[0].failure) == (ANSWER, None)
    assert run.tasks[1].state is TaskState.READY
    resolve(run, 0, ANSWER)  # the same answer changes nothing
    with pytest.raises(steer.Conflict):
        resolve(run, 0, payload("another"))


def test_a_person_may_let_it_fail_which_fails_the_run() -> None:
    run = begun(plan(Node(on_failure=OnFailure.ESCALATE), Node((0,))))
    do(run, 0, outcome=FAILURE)
    resolve(run, 0, None, "not worth it")
    assert states(run) == "FAILED SKIPPED"
    assert run.state is RunState.FAILED
    assert run.failure is not None and "not worth it" in run.failure.message


def test_a_person_may_have_it_tried_again() -> None:
    run = begun(plan(Node(on_failure=OnFailure.ESCALATE)))
    do(run, 0, outcome=FAILURE)
    go_on(run, steer.retry_task(run, run.tasks[0], None, "someone", "mended"))
    do(run, 0)
    assert run.state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    "node",
    [
        Node(broken="input", on_failure=OnFailure.ESCALATE),
        Node(broken="when", when=True, on_failure=OnFailure.ESCALATE),
        Node(members=2, broken="for_each", on_failure=OnFailure.ESCALATE),
        Node(wait=-SECOND, broken="wait", on_failure=OnFailure.ESCALATE),
    ],
)
def test_an_expression_that_cannot_be_evaluated_escalates_like_any_failure(node: Node) -> None:
    run = begun(plan(node))
    assert states(run) == "ESCALATED"


def test_members_escalate_one_by_one_and_a_for_each_has_no_output_of_its_own() -> None:
    run = begun(plan(Node(members=2, on_failure=OnFailure.ESCALATE)))
    for member, outcome in ((1, FAILURE), (2, SUCCESS)):
        offer(run, 0, member)
        settle(run, 0, outcome, member)
    assert states(run) == "RUNNING ESCALATED SUCCEEDED"
    resolve(run, 0, ANSWER, member=1)
    assert run.view(run.tasks[0]).output(0) == [ANSWER, SUCCESS.output]
    broken = begun(plan(Node(members=2, broken="for_each", on_failure=OnFailure.ESCALATE)))
    with pytest.raises(steer.Conflict, match="no output of its own"):
        resolve(broken, 0, ANSWER)


def test_a_loop_that_is_used_up_may_get_its_output_from_a_person() -> None:
    run = begun(plan(Node(iterations=9, most_iterations=1, on_failure=OnFailure.ESCALATE)))
    offer(run, 0, 1)
    settle(run, 0, SUCCESS, 1)
    assert states(run) == "ESCALATED SUCCEEDED"
    resolve(run, 0, ANSWER)
    assert run.view(run.tasks[0]).output(0) == ANSWER


@pytest.mark.parametrize("doubt", [LOST, LATE])
def test_what_may_be_done_once_is_not_offered_again_when_nobody_knows_whether_it_was(doubt: Outcome) -> None:
    run = begun(plan(Node(at_most_once=True, retry=(retry(5),), on_failure=OnFailure.CONTINUE)))
    do(run, 0, outcome=doubt)
    assert states(run) == "ESCALATED"


def test_a_deadline_that_passes_while_it_is_worked_on_leaves_the_same_doubt() -> None:
    run = begun(plan(Node(at_most_once=True, deadline=SECOND), Node(at_most_once=True, deadline=SECOND)))
    offer(run, 0)
    for task in run.tasks:
        go_on(run, decide.on_time(run, task, SECOND), SECOND)
    assert states(run) == "ESCALATED FAILED"


def test_what_certainly_was_not_done_is_tried_again_even_at_most_once() -> None:
    run = begun(plan(Node(at_most_once=True, retry=(retry(5),))))
    do(run, 0, outcome=FAILURE)
    assert states(run) == "WAITING"
    returned = begun(plan(Node(at_most_once=True)))
    do(returned, 0, outcome=Outcome(AttemptState.RETURNED))
    assert states(returned) == "READY"


def saga(*, last: Node | None = None) -> Run:
    """Three tasks of which two can be undone, and a fourth that follows them."""
    run = begun(plan(Node(undone=True), Node((0,), undone=True), Node((1,)), last or Node((2,))))
    do(run, 0, 1, 2)
    return run


def test_a_run_that_fails_is_undone_in_the_reverse_order_before_it_ends() -> None:
    run = saga()
    do(run, 3, outcome=FAILURE)
    assert states(run) == "SUCCEEDED SUCCEEDED SUCCEEDED FAILED PENDING READY"
    assert run.tasks[5].input == payload("undo 1")
    do(run, 5)
    assert states(run) == "SUCCEEDED SUCCEEDED SUCCEEDED FAILED READY SUCCEEDED"
    assert run.state is RunState.RUNNING
    do(run, 4)
    assert run.state is RunState.FAILED
    assert run.failure is not None and "task t3: trouble" in run.failure.message


def test_a_run_that_succeeds_undoes_nothing() -> None:
    run = saga()
    do(run, 3)
    assert states(run) == "SUCCEEDED SUCCEEDED SUCCEEDED SUCCEEDED PENDING PENDING"
    assert run.state is RunState.SUCCEEDED


def test_only_what_succeeded_is_undone() -> None:
    run = begun(plan(Node(undone=True), Node((0,), undone=True)))
    do(run, 0)
    do(run, 1, outcome=FAILURE)
    assert states(run) == "SUCCEEDED FAILED READY PENDING"
    do(run, 2)
    assert (run.state, states(run)) == (RunState.FAILED, "SUCCEEDED FAILED SUCCEEDED PENDING")


def test_a_cancelled_run_and_one_whose_deadline_passes_are_undone_too() -> None:
    for cancels, state in ((True, "CANCELLED"), (False, "FAILED")):
        run = saga()
        go_on(run, decide.cancel_run(run, "someone", "") if cancels else timed_out(run))
        assert states(run) == "SUCCEEDED SUCCEEDED SUCCEEDED CANCELLED PENDING READY"
        do(run, 5, 4)
        assert run.state.name == state


def timed_out(run: Run) -> list[Event]:
    return decide.on_time(run, None, run.submitted.deadline_time)


def test_a_run_that_fails_for_its_output_alone_is_undone_as_well() -> None:
    run = begun(plan(Node(undone=True), broken_output=True))
    do(run, 0)
    assert states(run) == "SUCCEEDED READY"
    do(run, 1)
    assert run.state is RunState.FAILED
    assert run.failure is not None and run.failure.kind is FailureKind.INVALID_OUTPUT


def test_what_cannot_be_undone_is_tried_again_then_escalated_and_never_dropped() -> None:
    rule = retry(2, first=0, longest=0)
    run = begun(plan(Node(undone=True, retry=(rule,)), Node((0,))))
    do(run, 0)
    do(run, 1, outcome=FAILURE)
    for now in (1, 2):
        offer(run, 2, now=now)
        settle(run, 2, FAILURE, now=now)
        go_on(run, decide.on_time(run, run.tasks[2], now), now)
    assert states(run) == "SUCCEEDED FAILED ESCALATED"
    go_on(run, timed_out(run))
    go_on(run, decide.cancel_run(run, "someone", "away with it"))
    assert (states(run), run.state) == ("SUCCEEDED FAILED ESCALATED", RunState.RUNNING)
    resolve(run, 2, None, "undone by telephone")
    assert run.state is RunState.CANCELLED


def test_an_input_that_cannot_be_made_for_undoing_escalates() -> None:
    run = begun(plan(Node(undone=True, broken="undo"), Node((0,))))
    do(run, 0)
    do(run, 1, outcome=FAILURE)
    assert states(run) == "SUCCEEDED FAILED ESCALATED"
    resolve(run, 2, ANSWER)
    assert run.state is RunState.FAILED


def test_once_a_run_is_being_undone_nothing_of_it_is_tried_again_or_kept_from_being_undone() -> None:
    run = saga()
    do(run, 3, outcome=FAILURE)
    with pytest.raises(steer.Conflict, match="being undone"):
        steer.retry_task(run, run.tasks[3], None, "someone", "")
    with pytest.raises(steer.Conflict, match="not cancelled"):
        steer.cancel_task(run, run.tasks[5], False, "someone", "")


def test_undoing_has_all_the_time_it_needs() -> None:
    run = saga()
    go_on(run, timed_out(run))
    late = run.submitted.deadline_time + 100 * SECOND
    assert decide.task_deadline(run, run.tasks[5]) > late
    assert decide.on_time(run, run.tasks[5], run.tasks[5].ready_time + SECOND) == []
