"""Tasks that take their agents, or whole sidecars, with them: who is suspected, who is tried alone, who is QUARANTINED.

An attempt that a process died of says so in the code of its failure. Whoever was on the same sidecar at that moment has
the same code, so a death accuses nobody. What is lost twice while it had begun is tried alone, and so is what is lost
once and has one try left: its sidecar begins nothing else meanwhile. What dies alone is poison, what does not is not.
One that is to be alone may wait beside another for its turn, and go down with that one's sidecar. It is not known to
have begun then, as would be known at once, so it is not judged, and may be tried more often than its rule allows.

Suspicion is read off the attempts, so it needs no records of its own, and a new owner of a shard suspects the same.
"""

from __future__ import annotations

from typing import Final

from .escalation import fail_task
from .events import Event, TaskQuarantined
from .failure import Failure, FailureKind
from .plan import OnFailure
from .run import Task
from .states import AttemptState

AGENT_DIED: Final = "AGENT_DIED"
"""Code of the failure of an attempt whose agent went away without a word while it was working on it."""

SIDECAR_DIED: Final = "SIDECAR_DIED"
"""The same for its sidecar; the attempt was known to have begun."""

SIDECAR_GONE: Final = "SIDECAR_GONE"
"""The same, when nobody knows whether the attempt had begun."""

POISON: Final = "POISON"
"""Code of the failure of a task that was found to be poison, when its graph says that the run goes on without it."""

PATIENCE: Final = 2
"""By what the tries of a rule are multiplied for a task whose sidecars die while it waits to be alone."""

BEGUN: Final = frozenset({AGENT_DIED, SIDECAR_DIED})
DEATHS: Final = frozenset({AGENT_DIED, SIDECAR_DIED, SIDECAR_GONE})


def alone(task: Task, number: int) -> bool:
    """Whether an attempt is, or was, made alone: as its task was suspected by the attempts before it."""
    begun = deaths = tries = 0
    for attempt in task.attempts[: number - 1]:
        if attempt.state is not AttemptState.RETURNED:
            tries += 1
        if died(attempt.failure):
            deaths += 1
            begun += attempt.failure is not None and attempt.failure.code in BEGUN
    if begun >= 2:
        return True
    return deaths > 0 and tries + 1 >= _most_attempts(task)


def died(failure: Failure | None) -> bool:
    """Whether a failure says that a process died."""
    return failure is not None and failure.kind is FailureKind.LOST and failure.code in DEATHS


def sidecar_died(task: Task) -> Failure:
    """Why the attempt that is out is lost with its sidecar."""
    live = task.live
    code = SIDECAR_DIED if live is not None and live.state is AttemptState.RUNNING else SIDECAR_GONE
    return Failure(FailureKind.LOST, "its sidecar went away without an outcome", code)


def _most_attempts(task: Task) -> int:
    for rule in task.plan.retry:
        if FailureKind.LOST in rule.kinds:
            return rule.max_attempts
    return 1


def quarantine(task: Task, failure: Failure) -> list[Event]:
    """A task that died alone is never offered again by itself: it waits for a person, unless its graph says that its
    run goes on without it."""
    if task.plan.on_failure in (OnFailure.FAIL, OnFailure.ESCALATE):
        return [TaskQuarantined(task.plan.index, task.member, failure)]
    message = f"poison: alone on its sidecar, {failure.message}"
    return fail_task(task, Failure(FailureKind.LOST, message, POISON, retryable=False, cause=failure.cause))
