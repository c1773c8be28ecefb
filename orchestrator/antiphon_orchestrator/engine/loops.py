"""Bounded loops: a node whose members are its iterations, one after the other, until a condition holds.

A loop is a fan-out whose list is not known beforehand. Everything else is a fan-out's: each iteration has attempts and
retries of its own, is recorded like a member, and one that fails fails the loop.
"""

from __future__ import annotations

from .escalation import fail_task
from .events import Event, TaskEnded, TaskExpanded
from .failure import Failure, FailureKind
from .plan import EvaluationFailed
from .run import Run, Task
from .states import TaskState

EXHAUSTED = "ITERATIONS_EXHAUSTED"
"""Code of the failure of a loop whose condition still is false after the last iteration."""


def go_on(run: Run, node: Task) -> list[Event]:
    """What follows when an iteration has ended well: the end of the loop, or its next iteration."""
    index, number = node.plan.index, len(node.members)
    evaluator, view = run.plan.evaluator, run.view(node)
    output = node.members[-1].output or b""
    try:
        if evaluator.done(index, view, number, output):
            return [TaskEnded(index, 0, TaskState.SUCCEEDED)]
        if number < node.plan.most_iterations:
            return [TaskExpanded(index, number + 1, number + 1, [evaluator.iteration(index, view, number + 1, output)])]
        failure = Failure(
            FailureKind.PERMANENT, f"its condition is false after {number} iterations", EXHAUSTED, retryable=False
        )
    except EvaluationFailed as error:
        failure = Failure(FailureKind.INVALID_INPUT, error.message, retryable=False, field=error.field)
    return fail_task(node, failure)
