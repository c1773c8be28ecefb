"""Undoing what a run did that fails or is cancelled: one task after the other, the last to succeed first.

What undoes a task is a task itself, beyond those of the graph, with attempts and retries of its own. It stays PENDING
unless it is needed. One that fails for good is ESCALATED, and the run does not end before a person has answered: what
was done is never left half undone without somebody knowing.
"""

from __future__ import annotations

from .escalation import escalate
from .events import Event, TaskReady
from .failure import Failure, FailureKind
from .plan import EvaluationFailed
from .run import Run
from .states import TaskState


def go_on(run: Run) -> list[Event] | None:
    """The next step back; empty while one is under way, None when all is undone."""
    for index in reversed(run.completed):
        undoing = run.tasks[run.plan.tasks[index].compensation]
        if undoing.ended:
            continue
        if undoing.state is not TaskState.PENDING:
            return []
        try:
            return [TaskReady(undoing.plan.index, 0, run.plan.evaluator.input(undoing.plan.index, run.view(undoing)))]
        except EvaluationFailed as error:
            failure = Failure(FailureKind.INVALID_INPUT, error.message, retryable=False, field=error.field)
            return escalate(undoing, failure)
    return None


def begun(run: Run) -> bool:
    """Whether all that the graph names has ended, and the run has not because it is being undone."""
    return bool(run.completed) and run.tasks_open == 0 and failing(run) is not None


def failing(run: Run) -> Failure | None:
    """Why the run fails, if it does."""
    return run.unwinding if run.first_failure is None else run.first_failure[1]
