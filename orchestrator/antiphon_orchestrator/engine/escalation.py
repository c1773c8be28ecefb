"""How a task that did not succeed ends: FAILED, or ESCALATED to a person, whose answer settles it."""

from __future__ import annotations

from .events import Event, TaskCompleted, TaskEnded, TaskEscalated
from .failure import Failure, FailureKind
from .plan import OnFailure
from .run import Task
from .states import TaskState

DOUBTFUL = frozenset({FailureKind.LOST, FailureKind.TIMEOUT})
"""Kinds of failure after which nobody knows whether the work was done."""


def fail_task(task: Task, failure: Failure) -> list[Event]:
    """The final failure of a task. That of a member spreads to its fan-out in later steps; of a quorum or hedge only
    the whole can escalate."""
    if task.plan.on_failure is OnFailure.ESCALATE and not (task.member and task.plan.agree):
        return escalate(task, failure)
    return [TaskEnded(task.plan.index, task.member, TaskState.FAILED, failure)]


def escalate(task: Task, failure: Failure) -> list[Event]:
    """The task waits for a person."""
    return [TaskEscalated(task.plan.index, task.member, failure)]


def resolve(task: Task, output: bytes | None, failure: str, principal: str) -> list[Event]:
    """A person's answer to a task that waits for one: an output (never b"", which looks like none), or a failure."""
    index, member = task.plan.index, task.member
    if output is not None:
        return [TaskCompleted(index, member, output, principal=principal)]
    before = task.failure.kind if task.failure is not None else FailureKind.PERMANENT
    return [TaskEnded(index, member, TaskState.FAILED, Failure(before, failure, retryable=False), f"by {principal}")]


def same(task: Task, output: bytes | None, failure: str) -> bool:
    """Whether a task has already ended with that answer."""
    if output is not None:
        return task.state is TaskState.SUCCEEDED and task.output == output
    return task.state is TaskState.FAILED and task.failure is not None and task.failure.message == failure
