"""What people may ask of a run that is under way, besides its end: hold it, let it go on, end a task, try one again.

Each function looks at the run and answers events, like `decide`; none when there is nothing to do. What cannot be done
is a Conflict, which says why.
"""

from __future__ import annotations

from . import compensation
from .decide import cancelled
from .escalation import resolve, same
from .events import Event, RunPaused, RunResumed, TaskCancelRequested, TaskReopened
from .loops import EXHAUSTED
from .run import Run, Task
from .states import TASK_ASKS, RunState, TaskState

_NOT_ANSWERED = frozenset({TaskState.FAILED, TaskState.CANCELLED})


class Conflict(Exception):
    """The task is not in a state in which that can be asked of it; the text says why."""


def over(run: Run, task: Task | None = None) -> bool:
    """Whether a run has ended, or is about to because somebody wished it: nothing can be asked of it then, but of a
    `task` that undoes another."""
    if run.state is not RunState.RUNNING:
        return True
    return run.cancel is not None and (task is None or task.plan.compensates < 0)


def pause(run: Run, principal: str, reason: str) -> list[Event]:
    """Nothing begins from now on."""
    return [] if over(run) or run.paused is not None else [RunPaused(principal, reason)]


def resume(run: Run, principal: str, reason: str) -> list[Event]:
    """The run goes on."""
    return [] if over(run) or run.paused is None else [RunResumed(principal, reason)]


def cancel_task(run: Run, task: Task, dependents: bool, principal: str, reason: str) -> list[Event]:
    """The end of a task, and with `dependents` of all that need it; `advance` carries it out, large ones in steps.

    Raises Conflict."""
    if over(run, task):
        return []
    if task.plan.compensates >= 0:
        raise Conflict("what undoes a task is not cancelled; resolve it once it is ESCALATED or QUARANTINED")
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
    if over(run, task):
        return []
    node = run.tasks[task.plan.index]
    open_ = not task.ended and task.state not in TASK_ASKS
    again = expected is not None and expected != task.end_time
    if open_ or (again and task.state is TaskState.SUCCEEDED):
        return []  # it is under way, or was and went well
    if task.state is not TaskState.FAILED and task.state not in TASK_ASKS:
        raise Conflict("only what has failed, is escalated or quarantined can be tried again")
    if task.plan.compensates < 0 and compensation.begun(run):
        raise Conflict("the run has failed, and what it did is being undone")
    if again:
        raise Conflict("it was tried since, and has failed again")
    if task.failure is not None and task.failure.code == EXHAUSTED:
        raise Conflict("its iterations are used up, and none of them has failed")
    if task.plan.agree and not task.member and not any(member.state in _NOT_ANSWERED for member in task.members):
        raise Conflict("all its agents have answered, and do not agree; resolve it, or submit the run again")
    failed = task.plan.most_iterations and task.state is TaskState.FAILED  # and with it the loop, in a moment
    if task.member and (node.ended or node.failure is not None or failed):
        raise Conflict(f"its whole has failed; retry the task {task.plan.id}")
    return [TaskReopened(task.plan.index, task.member, principal, reason)]


def resolve_task(run: Run, task: Task, output: bytes | None, failure: str, principal: str) -> list[Event]:
    """A person's answer to an ESCALATED or QUARANTINED task: an output (not b""), or a failure. Raises Conflict."""
    if over(run, task) or same(task, output, failure):
        return []
    if task.state not in TASK_ASKS:
        raise Conflict("only what is escalated or quarantined can be resolved")
    of_members = task.plan.fan_out and not task.member and not task.plan.most_iterations and not task.plan.agree
    if output is not None and of_members:
        raise Conflict("a for_each has no output of its own; have it tried again, or let it fail")
    return resolve(task, output, failure, principal)
