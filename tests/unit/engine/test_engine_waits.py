"""Tasks that wait, the signals of a run, and loops: each rule in the few lines it takes."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.engine import decide, waits
from antiphon_orchestrator.engine.events import SignalReceived
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState, TaskState
from test_engine_rules import FAILURE, SUCCESS, begun, go_on, offer, settle

from tests.fakes.plans import SECOND, Node, payload, plan, retry


def send(run: Run, name: str, text: str, number: int = 1) -> None:
    go_on(run, waits.receive(run, SignalReceived(name, payload(text), "someone", f"{name} {number}", b"")))


def at(run: Run, now: int) -> None:
    for task in (None, *run.tasks):
        go_on(run, decide.on_time(run, task, now), now)


@pytest.mark.parametrize("wait", [5 * SECOND, -5 * SECOND])
def test_a_task_that_waits_for_a_time_is_done_when_it_comes_and_not_before(wait: int) -> None:
    run = begun(plan(Node(wait=wait), Node((0,))))
    assert decide.next_due(run, run.tasks[0]) == 5 * SECOND
    at(run, 5 * SECOND - 1)
    assert run.tasks[0].state is TaskState.WAITING
    at(run, 5 * SECOND)
    assert (run.tasks[0].state, run.tasks[0].output) == (TaskState.SUCCEEDED, b"")
    assert run.tasks[1].state is TaskState.READY


def test_a_moment_that_cannot_be_evaluated_fails_its_task() -> None:
    run = begun(plan(Node(wait=-SECOND, broken="wait")))
    failure = run.tasks[0].failure
    assert failure is not None and (failure.kind, failure.field) == (FailureKind.INVALID_INPUT, "wait")


def test_a_signal_that_comes_early_is_kept_for_the_task_that_will_wait_for_it() -> None:
    run = begun(plan(Node(), Node((0,), wait="go")))
    send(run, "go", "early")
    assert run.signals[0].task == -1
    offer(run, 0)
    settle(run, 0, SUCCESS)
    assert (run.tasks[1].state, run.tasks[1].output) == (TaskState.SUCCEEDED, payload("early"))
    assert run.signals[0].task == 1
    assert run.state is RunState.SUCCEEDED


def test_each_signal_ends_one_wait_in_the_order_in_which_they_began() -> None:
    run = begun(plan(Node(wait="go"), Node(wait="go"), Node(wait="stop")))
    send(run, "go", "first")
    assert [task.state.name for task in run.tasks] == ["SUCCEEDED", "WAITING", "WAITING"]
    send(run, "stop", "halt")
    send(run, "go", "second", 2)
    assert [task.output for task in run.tasks] == [payload("first"), payload("second"), payload("halt")]
    send(run, "go", "late", 3)
    assert len(run.signals) == 3  # a run that has ended takes none


@pytest.mark.parametrize(("on_failure", "state"), [(OnFailure.FAIL, "FAILED"), (OnFailure.CONTINUE, "SUCCEEDED")])
def test_a_wait_whose_deadline_passes_fails_with_timeout_and_its_graph_says_what_that_means(
    on_failure: OnFailure, state: str
) -> None:
    run = begun(plan(Node(wait="go", deadline=3 * SECOND, on_failure=on_failure)))
    assert decide.next_due(run, run.tasks[0]) == 3 * SECOND
    at(run, 3 * SECOND)
    failure = run.tasks[0].failure
    assert failure is not None and failure.kind is FailureKind.TIMEOUT
    assert run.state.name == state


def test_a_run_takes_so_many_signals_and_keeps_so_many_bytes_and_no_more() -> None:
    run = begun(plan(Node(wait="stop"), Node(wait="go")))
    most = b"x" * waits.MOST_KEPT_BYTES
    assert not waits.exhausted(run, most)
    send(run, "go", "taken by the task that waits")
    assert not waits.exhausted(run, most)
    send(run, "go", "kept", 2)
    assert waits.exhausted(run, most) and not waits.exhausted(run, b"x")
    for number in range(3, waits.MOST_SIGNALS + 1):
        go_on(run, [SignalReceived("go", b"", "someone", str(number), b"")])
    assert waits.exhausted(run, b"")


def test_a_loop_is_done_again_until_its_condition_holds_and_answers_its_last_output() -> None:
    run = begun(plan(Node(iterations=3, most_iterations=5), Node((0,))))
    for number in (1, 2, 3):
        assert len(run.tasks[0].members) == number
        assert run.tasks[1].state is TaskState.PENDING
        offer(run, 0, number)
        settle(run, 0, SUCCESS, number)
    assert run.tasks[0].state is TaskState.SUCCEEDED
    assert run.view(run.tasks[1]).output(0) == payload("done")
    # The first iteration knows of none before it; the others of the output of the one before.
    assert [m.input for m in run.tasks[0].members] == [payload("iteration 1 of 0"), payload("done"), payload("done")]


def test_a_loop_whose_condition_never_holds_fails_after_its_last_iteration() -> None:
    run = begun(plan(Node(iterations=9, most_iterations=2)))
    for number in (1, 2):
        offer(run, 0, number)
        settle(run, 0, SUCCESS, number)
    failure = run.tasks[0].failure
    assert failure is not None and failure.code == "ITERATIONS_EXHAUSTED"
    assert run.failure is not None and "after 2 iterations" in run.failure.message


@pytest.mark.parametrize("on_failure", [OnFailure.FAIL, OnFailure.SKIP, OnFailure.CONTINUE])
def test_an_iteration_is_retried_by_itself_and_one_that_fails_ends_the_loop(on_failure: OnFailure) -> None:
    rule = retry(2, first=0, longest=0)
    run = begun(plan(Node(iterations=3, most_iterations=3, retry=(rule,), on_failure=on_failure)))
    offer(run, 0, 1)
    settle(run, 0, FAILURE, 1)
    go_on(run, decide.on_time(run, run.task(0, 1), 1), 1)
    offer(run, 0, 1)
    settle(run, 0, SUCCESS, 1)
    for _ in range(2):
        offer(run, 0, 2)
        settle(run, 0, FAILURE, 2)
        go_on(run, decide.on_time(run, run.task(0, 2), 1), 1)
    assert [len(member.attempts) for member in run.tasks[0].members] == [2, 2]
    assert run.tasks[0].state is TaskState.FAILED
    assert run.tasks[0].failure is not None and run.tasks[0].failure.message.startswith("iteration 2: ")


def test_a_condition_that_cannot_be_evaluated_fails_the_loop() -> None:
    run = begun(plan(Node(iterations=3, most_iterations=3, broken="until")))
    offer(run, 0, 1)
    settle(run, 0, SUCCESS, 1)
    failure = run.tasks[0].failure
    assert failure is not None and (failure.kind, failure.field) == (FailureKind.INVALID_INPUT, "until")
