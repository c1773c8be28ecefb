"""The runs beneath tasks, by task: what is asked of a task is asked of them.

While a task is tried again its calls go on, since the next attempt finds them by their ids. One that succeeded without
waiting for a call has left it running on purpose. What is left are tasks that are cancelled, or have failed for good:
nobody would take the outcome. A sub-run ends as soon as its task does not wait for it, and is held while its parent
is; a call is part of an attempt that is out, and goes on. Child and parent are in one shard, so that this needs nobody
else.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..engine import steer
from ..engine.run import Run, Task
from ..engine.states import TASK_ASKS, ChildKind, RunState, TaskState
from . import inputs as i
from .turn import Entry, Turn

_IN_VAIN = frozenset({TaskState.CANCELLED, TaskState.FAILED})


class Children:
    """By task, the runs beneath it that have not ended, with their kinds; a task is in it until it ends."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, ChildKind]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, run: Run) -> None:
        """A run has begun; those that are beneath no task are passed over."""
        if run.submitted.parent_attempt_id:
            self._of.setdefault(_caller(run), {})[run.run_id] = run.submitted.child_kind

    def gone(self, run: Run) -> None:
        """A run beneath a task has ended."""
        there = self._of.get(_caller(run))
        if there is not None:
            there.pop(run.run_id, None)
            if not there:
                del self._of[_caller(run)]

    def ended(self, run: Run, task: Task) -> Iterable[i.Cancel]:
        """A task has ended, or waits for a person: what is to be done about the runs beneath it."""
        there = self._of.get(f"{run.run_id}/{task.plan.id}/{task.member}")
        if there is None:
            return ()
        # After an escalation another attempt finds the calls; it would not find a sub-run.
        escalated = task.state in TASK_ASKS
        over = [run_id for run_id, kind in there.items() if not escalated or kind is not ChildKind.CALL]
        if len(over) == len(there):
            del self._of[f"{run.run_id}/{task.plan.id}/{task.member}"]
        else:
            for run_id in over:
                del there[run_id]
        if not escalated and task.state not in _IN_VAIN:
            return ()
        principal = run.cancel.principal if run.cancel is not None else ""
        reason = f"the task that called it is {task.state.name}"
        return [i.Cancel(run_id, principal or run.submitted.principal, reason, _nobody) for run_id in over]

    def held(self, run: Run) -> Iterable[i.Steer]:
        """A run is held, or goes on: so do its sub-runs. Of one that is to end only what undoes goes on."""
        ends = run.cancel is not None
        return [
            as_parent(run, task.sub_run)
            for task in run.all_tasks()
            if task.sub_run and (not ends or task.plan.compensates >= 0)
        ]

    def recover(self, turn: Turn, runs: dict[str, Entry]) -> list[i.Cancel | i.Steer]:
        """Takes up what lives and does not stand aside; what is still to be done about runs whose parent was steered,
        or had ended, before."""
        due: list[i.Cancel | i.Steer] = []
        tasks: dict[str, tuple[Run, Task]] = {}
        for entry in runs.values():
            run = entry.run
            turn.at = run.run_id
            if run.state is RunState.RUNNING and not run.aside and run.submitted.parent_attempt_id:
                self.add(run)
                # A parent that is not here has ended, and what was beneath it was seen to before it was archived.
                if (parent := runs.get(_caller(run).partition("/")[0])) is not None:
                    tasks[_caller(run)] = parent.run, task_of(parent.run, run)
        for run, task in tasks.values():
            turn.at = run.run_id
            if task.ended or task.state in TASK_ASKS:
                due += self.ended(run, task)
        for run in {id(run): run for run, _ in tasks.values()}.values():
            turn.at = run.run_id
            if run.state is RunState.RUNNING:
                for wish in self.held(run):
                    child = runs[wish.run_id].run
                    # One that was let go on by itself since its parent was held stays so.
                    goes_on = run.paused is not None and child.resume_time > run.pause_time
                    if not goes_on and wish.wish(child, 0).events:
                        due.append(wish)
        return due


def task_of(parent: Run, child: Run) -> Task:
    """The task that a run is beneath."""
    _, task_id, member, _ = child.submitted.parent_attempt_id.split("/")
    return parent.task(parent.plan.index_of[task_id], int(member))


def _caller(run: Run) -> str:
    """RUN/TASK/MEMBER of the task that a run is beneath."""
    return run.submitted.parent_attempt_id.rpartition("/")[0]


def as_parent(run: Run, run_id: str) -> i.Steer:
    """What makes a run be held as the one above it is, or go on as that does; not one that somebody holds by itself."""
    because = f"run {run.run_id} above it is held"
    if run.paused is not None:
        who, why = run.paused.principal, f"{because}: {run.paused.reason}"
        return i.Steer(
            run_id, who, "pause", why, {}, lambda child, now: i.Steered(steer.pause(child, who, why), _nobody), _nobody
        )
    principal, reason = run.submitted.principal, f"run {run.run_id} above it goes on"

    def go_on(child: Run, now: int) -> i.Steered:
        with_parent = child.paused is not None and child.paused.reason.startswith(because)
        return i.Steered(steer.resume(child, principal, reason) if with_parent else [], _nobody)

    return i.Steer(run_id, principal, "resume", reason, {}, go_on, _nobody)


def _nobody(answer: object) -> None:
    """Nobody waits for what follows of itself."""
