"""The runs that calls of tasks became: what a task asked for ends with it, when it ends without a result.

While a task is tried again its calls go on, since the next attempt finds them by their ids. One that succeeded without
waiting for a call has left it running on purpose. What is left are tasks that are cancelled, or have failed for good:
nobody would take the outcome. Child and parent are in one shard, so that this needs nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.run import Run, Task
from ..engine.states import RunState, TaskState
from . import inputs as i
from .turn import Entry

_IN_VAIN = frozenset({TaskState.CANCELLED, TaskState.FAILED})


class Children:
    """By task, the runs of its calls; a task is in it until it ends."""

    def __init__(self) -> None:
        self._of: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, run: Run) -> None:
        """A run has begun; those that no attempt called are passed over."""
        if run.submitted.parent_attempt_id:
            self._of.setdefault(_caller(run), []).append(run.run_id)

    def ended(self, run: Run, task: Task) -> Iterable[i.Cancel]:
        """A task has ended: what is to be done about its calls."""
        children = self._of.pop(f"{run.run_id}/{task.plan.id}/{task.member}", ())
        if not children or task.state not in _IN_VAIN:
            return ()
        principal = run.cancel.principal if run.cancel is not None else ""
        reason = f"the task that called it is {task.state.name}"
        return [i.Cancel(child, principal or run.submitted.principal, reason, _nobody) for child in children]

    def recover(self, runs: dict[str, Entry]) -> list[i.Cancel]:
        """Takes up what lives; what is still to be done about calls whose task had ended before."""
        due: list[i.Cancel] = []
        tasks: dict[str, tuple[Run, Task]] = {}
        for entry in runs.values():
            run = entry.run
            if run.state is RunState.RUNNING and run.submitted.parent_attempt_id:
                self.add(run)
                # A parent that is not here has ended, and its calls were seen to before it was archived.
                if (parent := runs.get(_caller(run).partition("/")[0])) is not None:
                    tasks[_caller(run)] = parent.run, _task(parent.run, _caller(run))
        for run, task in tasks.values():
            if task.ended:
                due += self.ended(run, task)
        return due


def _caller(run: Run) -> str:
    """RUN/TASK/MEMBER of the task that called for a run."""
    return run.submitted.parent_attempt_id.rpartition("/")[0]


def _task(run: Run, caller: str) -> Task:
    _, task_id, member = caller.split("/")
    return run.task(run.plan.index_of[task_id], int(member))


def _nobody(answer: object) -> None:
    """Nobody waits for the end of a call that nobody wants."""
