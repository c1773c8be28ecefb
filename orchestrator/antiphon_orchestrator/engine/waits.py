"""Tasks that only wait, for a time or for a signal, and the signals of a run.

A signal ends one wait: of the tasks that wait for its name the one that began first, or else the next that begins to.
Signals are part of the run's state from the moment they come until it ends, so that none is lost for coming early, and
so that one that is sent again is known.
"""

from __future__ import annotations

from .events import Event, SignalReceived, TaskCompleted, TaskWaiting
from .plan import WaitPlan
from .run import Run, Signal, Task
from .states import RunState, TaskState

MOST_SIGNALS = 1000
"""Signals that one run may be sent: they stay in its record, and in memory."""

MOST_KEPT_BYTES = 256 * 1024
"""Payload bytes of signals that are kept for one run: they move through the log with it."""


def begin(run: Run, task: Task, wait: WaitPlan, now: int) -> list[Event]:
    """What follows when the needs of a waiting task are done. Raises EvaluationFailed."""
    index = task.plan.index
    if wait.signal:
        began: Event = TaskWaiting(index, 0, 0, f"waits for signal {wait.signal}")
        for place, signal in enumerate(run.signals, 1):
            if signal.task < 0 and signal.received.signal == wait.signal:
                return [began, TaskCompleted(index, 0, signal.received.payload, place)]
        return [began]
    until = now + wait.time if wait.time is not None else run.plan.evaluator.moment(index, run.view(task), now)
    # 0 stands for a signal; a moment before 1970 has passed as well as one just after.
    return [TaskWaiting(index, 0, max(1, until), "waits for its time")]


def receive(run: Run, signal: SignalReceived) -> list[Event]:
    """What follows from a signal that is new to the run."""
    if run.state is not RunState.RUNNING or run.cancel is not None:
        return []
    waiting = [task for task in run.tasks if _waits_for(task, signal.signal)]
    if not waiting:
        return [signal]
    first = min(waiting, key=lambda task: (task.ready_time, task.plan.index))
    return [signal, TaskCompleted(first.plan.index, 0, signal.payload, len(run.signals) + 1)]


def awaited(run: Run) -> list[str]:
    """Names of the signals that tasks of a run wait for now, each once, in order."""
    if not run.plan.signals:
        return []  # as most runs: no task needs to be looked at
    waiting = (task.plan.wait for task in run.tasks if task.state is TaskState.WAITING)
    return sorted({wait.signal for wait in waiting if wait is not None and wait.signal})


def exhausted(run: Run, payload: bytes) -> bool:
    """Whether a run takes no further signal with that payload."""
    kept = sum(len(signal.received.payload) for signal in run.signals)
    return len(run.signals) >= MOST_SIGNALS or kept + len(payload) > MOST_KEPT_BYTES


def known(run: Run, principal: str, request_id: str) -> Signal | None:
    """The signal that a request made before."""
    for signal in run.signals:
        if signal.received.request_id == request_id and signal.received.principal == principal:
            return signal
    return None


def _waits_for(task: Task, signal: str) -> bool:
    wait = task.plan.wait
    return wait is not None and wait.signal == signal and task.state is TaskState.WAITING
