"""What people may ask of a run that is under way, besides its end: hold it, let it go on, end a task, try one again.

Each function looks at the run and answers events, like `decide`; none when there is nothing to do. What cannot be done
is a Conflict, which says why.
"""

from __future__ import annotations

from .decide import cancelled
from .events import Event, RunPaused, RunResumed, TaskCancelRequested, TaskReopened
from .loops import EXHAUSTED
from .run import Run, Task
from .states import RunState, TaskState


class Conflict(Exception):
    """The task is not in a state in which that can be asked of it; the text says why."""


def over(run: Run) -> bool:
    """Whether a run has ended, or is about to because somebody wished it: nothing else can be asked of it."""
    return run.state is not RunState.RUNNING or run.cancel is not None


def pause(run: Run, principal: str, reason: str) -> list[Event]:
    """Nothing begins from now on."""
    return [] if over(run) or run.paused is not None else [RunPaused(principal, reason)]


def resume(run: Run, principal: str, reason: str) -> list[Event]:
    """The run goes on."""
    return [] if over(run) or run.paused is None else [RunResumed(principal, reason)]


def cancel_task(run: Run, task: Task, dependents: bool, principal: str, reason: str) -> list[Event]:
    """The end of a task, and with `dependents` of all that need it; `advance` carries it out, large ones in steps."""
    if over(run):
        return []
    if task.member and not task.plan.most_iterations:
        return [] if task.ended else cancelled(task, f"cancelled by {principal}: {reason}")
    wanted = {task.plan.index}
    if dependents:
        waiting = [task.plan.index]
        while waiting:
            fresh = [index for index in run.plan.tasks[waiting.pop()].dependents if index not in wanted]
            wanted.update(fresh)
            waiting += fresh
    nodes = [run.tasks[index] for index in sorted(wanted)]
    return [
        TaskCancelRequested(node.plan.index, principal, reason)
        for node in nodes
        if not node.ended and not node.cancel_reason
    ]


def retry_task(run: Run, task: Task, expected: int | None, principal: str, reason: str) -> list[Event]:
    """A task that has failed is taken up again. `expected`: when it had ended as the caller saw it, None for any time.

    Raises Conflict."""
    if over(run):
        return []
    node = run.tasks[task.plan.index]
    again = expected is not None and expected != task.end_time
    if not task.ended or (again and task.state is TaskState.SUCCEEDED):
        return []  # it is under way, or was and went well
    if task.state is not TaskState.FAILED:
        raise Conflict("only what has failed can be tried again")
    if again:
        raise Conflict("it was tried since, and has failed again")
    if task.failure is not None and task.failure.code == EXHAUSTED:
        raise Conflict("its iterations are used up, and none of them has failed")
    if task.member and (node.ended or node.failure is not None or task.plan.most_iterations):
        raise Conflict(f"its whole has failed; retry the task {task.plan.id}")
    return [TaskReopened(task.plan.index, task.member, principal, reason)]
