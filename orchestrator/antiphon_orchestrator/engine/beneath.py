"""Runs beneath tasks: what the end of one means for the task that waits for it, and how much there may be.

A task waits for at most one of them, the last that began; calls are waited for by the agent that made them. A run and
the record of it in its parent are committed together, and so is its end with what follows from it: no crash comes
between the two.
"""

from __future__ import annotations

from .escalation import fail_task
from .events import Event, TaskCompleted
from .failure import Failure, FailureKind
from .run import Run, Task
from .states import RunState

MOST_ABOVE = 16
"""Attempts above a run; deeper nesting is a loop more often than a plan."""

MOST_BENEATH = 100_000
"""Tasks of all the runs beneath an outermost run: a few that each make many more would otherwise never end."""

TOO_DEEP, REPEATED, TOO_MUCH = "CALL_TOO_DEEP", "CALL_REPEATED", "TOO_MUCH_BENEATH"
"""Codes of failures, as antiphon.v1.ErrorReason has them."""


def outcome(run: Run, task: Task, child: Run) -> list[Event]:
    """What follows from the end of a child; nothing when the task does not wait for it any more."""
    if run.state is not RunState.RUNNING or task.sub_run != child.run_id:
        return []
    if child.state is RunState.SUCCEEDED:
        return [TaskCompleted(task.plan.index, task.member, child.output)]
    return fail_task(task, failure_of(child))


def failure_of(child: Run) -> Failure:
    """The failure of a task whose sub-run did not succeed. It is not tried again by itself: what is worth that was
    tried again below."""
    if child.failure is None:
        wish = child.cancel
        why = f" by {wish.principal}: {wish.reason}" if wish is not None else ""
        return Failure(FailureKind.CANCELLED, f"run {child.run_id} was cancelled{why}", retryable=False)
    below = child.failure
    return Failure(below.kind, f"run {child.run_id}: {below.message}", below.code, retryable=False)
