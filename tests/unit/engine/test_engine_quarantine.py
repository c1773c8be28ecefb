"""Tasks that take their agents with them: who is suspected, who is tried alone, who is set aside."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.engine import decide, quarantine, steer
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run, apply
from antiphon_orchestrator.engine.states import AttemptState, RunState, TaskState
from test_engine_rules import FAILURE, SUCCESS, begun, go_on, offer, settle

from tests.fakes.plans import SECOND, Node, payload, plan, retry


def lost(code: str) -> Outcome:
    return Outcome(AttemptState.LOST, failure=Failure(FailureKind.LOST, "gone", code))


AGENT, SIDECAR, UNKNOWN, STOPPED = lost("AGENT_DIED"), lost("SIDECAR_DIED"), lost("SIDECAR_GONE"), lost("")
RETURNED = Outcome(AttemptState.RETURNED, failure=Failure(FailureKind.TRANSIENT, "came back"))


def tried(node: Node, *outcomes: Outcome) -> tuple[Run, str]:
    """A run of that one task after these outcomes, and which of its attempts were made alone: `.` not, `a` alone."""
    run, how = begun(plan(node)), ""
    for outcome in outcomes:
        task = run.tasks[0]
        if task.state is TaskState.WAITING:
            go_on(run, decide.on_time(run, task, task.wait_until))
        assert task.state is TaskState.READY, f"{task.state.name} before {outcome.state.name}"
        offer(run, 0)
        how += "a" if quarantine.alone(task, len(task.attempts)) else "."
        settle(run, 0, outcome)
    return run, how


@pytest.mark.parametrize(
    ("attempts", "outcomes", "alone", "state"),
    [
        (9, [AGENT, AGENT, AGENT], "..a", TaskState.QUARANTINED),
        (9, [AGENT, SIDECAR, AGENT], "..a", TaskState.QUARANTINED),
        # The last try of what was lost once is made alone; so nobody is blamed for a death that he only watched.
        (2, [AGENT, AGENT], ".a", TaskState.QUARANTINED),
        (3, [UNKNOWN, UNKNOWN, SIDECAR], "..a", TaskState.QUARANTINED),
        (4, [FAILURE, UNKNOWN, FAILURE, AGENT], "...a", TaskState.QUARANTINED),
        (9, [AGENT, RETURNED, AGENT, RETURNED, AGENT], "...aa", TaskState.QUARANTINED),
        # What does not die alone is no poison, and has its ordinary ways to end.
        (9, [AGENT, AGENT, SUCCESS], "..a", TaskState.SUCCEEDED),
        (9, [AGENT, AGENT, FAILURE], "..a", TaskState.WAITING),
        (3, [AGENT, AGENT, FAILURE], "..a", TaskState.FAILED),
        # Deaths of which nobody knows whether it had begun accuse it only when its tries are used up.
        (9, [UNKNOWN, UNKNOWN, UNKNOWN], "...", TaskState.WAITING),
        # One that is to be alone is known to begin. If it is not, it died waiting for its turn, of another.
        (3, [SIDECAR, SIDECAR, UNKNOWN, UNKNOWN, SUCCESS], "..aaa", TaskState.SUCCEEDED),
        (3, [UNKNOWN] * 6, "..aaaa", TaskState.QUARANTINED),
        # An agent that was stopped in an orderly way has not died of anything.
        (3, [STOPPED, STOPPED, STOPPED], "...", TaskState.FAILED),
        (4, [AGENT, STOPPED, AGENT, STOPPED], "...a", TaskState.FAILED),
        # One try proves nothing.
        (1, [AGENT], ".", TaskState.FAILED),
    ],
)
def test_a_task_is_set_aside_when_it_dies_alone(
    attempts: int, outcomes: list[Outcome], alone: str, state: TaskState
) -> None:
    run, how = tried(Node(retry=(retry(attempts),)), *outcomes)
    assert (how, run.tasks[0].state) == (alone, state)


def test_a_quarantined_task_keeps_its_run_open_until_a_person_answers() -> None:
    run, _ = tried(Node(retry=(retry(3),), deadline=9 * SECOND), AGENT, AGENT, AGENT)
    task = run.tasks[0]
    assert run.state is RunState.RUNNING and task.failure == AGENT.failure
    assert decide.next_due(run, task) is None
    assert decide.on_time(run, task, 99 * SECOND) == []
    go_on(run, steer.resolve_task(run, task, payload("a person's"), "", "someone"))
    assert (task.state, task.output, run.state) == (TaskState.SUCCEEDED, payload("a person's"), RunState.SUCCEEDED)


def test_a_person_may_let_it_fail() -> None:
    run, _ = tried(Node(retry=(retry(3),)), AGENT, AGENT, AGENT)
    go_on(run, steer.resolve_task(run, run.tasks[0], None, "it never worked", "someone"))
    assert run.state is RunState.FAILED
    assert run.failure is not None and "it never worked" in run.failure.message


def test_one_that_a_person_has_tried_again_is_still_suspected_and_tried_alone() -> None:
    run, _ = tried(Node(retry=(retry(3),)), AGENT, AGENT, AGENT)
    task = run.tasks[0]
    go_on(run, steer.retry_task(run, task, None, "someone", "mended"))
    offer(run, 0)
    assert quarantine.alone(task, 4)
    settle(run, 0, AGENT)
    assert task.state is TaskState.QUARANTINED
    go_on(run, steer.retry_task(run, task, None, "someone", "really mended"))
    offer(run, 0)
    settle(run, 0, SUCCESS)
    assert run.state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("on_failure", "state", "end"),
    [
        (OnFailure.FAIL, TaskState.QUARANTINED, RunState.RUNNING),
        (OnFailure.ESCALATE, TaskState.QUARANTINED, RunState.RUNNING),
        (OnFailure.SKIP, TaskState.FAILED, RunState.SUCCEEDED),
        (OnFailure.CONTINUE, TaskState.FAILED, RunState.SUCCEEDED),
    ],
)
def test_a_graph_that_goes_on_without_the_task_does_so(on_failure: OnFailure, state: TaskState, end: RunState) -> None:
    run, _ = tried(Node(retry=(retry(3),), on_failure=on_failure), AGENT, AGENT, AGENT)
    task = run.tasks[0]
    assert (task.state, run.state) == (state, end)
    assert task.failure is not None
    assert task.failure.code == ("POISON" if state is TaskState.FAILED else "AGENT_DIED")


def test_work_that_is_offered_at_most_once_escalates_at_the_first_death() -> None:
    run, _ = tried(Node(retry=(retry(3),), at_most_once=True), AGENT)
    assert run.tasks[0].state is TaskState.ESCALATED


def test_a_cancel_ends_a_quarantined_task() -> None:
    run, _ = tried(Node(retry=(retry(3),)), AGENT, AGENT, AGENT)
    go_on(run, decide.cancel_run(run, "someone", "enough"))
    assert (run.tasks[0].state, run.state) == (TaskState.CANCELLED, RunState.CANCELLED)


def test_the_code_of_a_dead_sidecar_says_whether_the_attempt_was_known_to_have_begun() -> None:
    run = begun(plan(Node()))
    offer(run, 0)
    task = run.tasks[0]
    assert quarantine.sidecar_died(task).code == "SIDECAR_GONE"
    for event in decide.started(run, task, 1):
        apply(run, event, 0)
    assert quarantine.sidecar_died(task).code == "SIDECAR_DIED"
