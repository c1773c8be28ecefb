"""What becomes of an output: schema, labels, policy; and whether a task may begin. Plain functions of what is known."""

from __future__ import annotations

from ..engine.decide import Outcome
from ..engine.failure import Failure, FailureKind
from ..engine.run import Attempt, Run, Task
from ..engine.states import AttemptState
from ..placement.fleet import Fleet
from . import payloads


def judge_output(fleet: Fleet, run: Run, principal_kind: str, task: Task, outcome: Outcome) -> Outcome:
    """Schema and release policy of an output; one that does not pass is a failure. It carries the labels of what it
    was made of, and with a permit that demands redaction also what is left of it for the run's principal."""
    attempt = task.attempts[-1]
    label, given = attempt.placement.capability, handed_on(task, attempt)
    return _judge(fleet, run, principal_kind, label, given, outcome.output, outcome.busy)


def judge_answer(fleet: Fleet, run: Run, principal_kind: str, task: Task, output: bytes) -> Outcome:
    """The same of what a person gives in place of an output. One of a task that nobody was asked to do has the schema
    of no version; one of a sub-run, which no capability answers for, carries its labels and is not asked about. In
    place of a fan-out, loop or quorum it may be made of whatever its members got and answered."""
    attempts = [attempt for asked in (task, *task.members) for attempt in asked.attempts]
    given = task.input
    for member in task.members:
        for one in (member.input, member.output or b""):
            if not fleet.labels(one) <= fleet.labels(given):
                given = payloads.inherit_labels(one, given)
    if task.plan.graph is not None and not attempts:
        return Outcome(AttemptState.SUCCEEDED, payloads.inherit_labels(given, output))
    label = attempts[-1].placement.capability if attempts else task.plan.capability
    return _judge(fleet, run, principal_kind, label, given, output, 0)


def _judge(fleet: Fleet, run: Run, principal_kind: str, label: str, given: bytes, output: bytes, busy: int) -> Outcome:
    """An output of `label`, name@version, that was made of `given`."""
    namespace = run.submitted.namespace
    violation = fleet.check_output(namespace, label, output)
    if violation is not None:
        message = f"the output does not fit {label}: {violation.message}"
        failure = Failure(FailureKind.INVALID_OUTPUT, message, field=violation.pointer)
        return Outcome(AttemptState.FAILED, failure=failure, busy=busy)
    output = fleet.label_output(namespace, label, output)
    labels, inherited = fleet.labels(output), fleet.labels(given)
    if inherited:  # also when the output has the same keys: their values may differ
        output, labels = payloads.inherit_labels(given, output), labels | inherited
    return release(fleet, run, principal_kind, label, output, labels, busy)


def release(
    fleet: Fleet, run: Run, principal_kind: str, label: str, output: bytes, labels: frozenset[str], busy: int
) -> Outcome:
    """Release policy of an output of `label`, name@version, which has all its labels."""
    namespace = run.submitted.namespace
    permit = fleet.may_release(run.submitted.principal, principal_kind, namespace, label.partition("@")[0], labels)
    reason = "" if permit.allowed else permit.decision.reason
    released: bytes | None = None
    if permit.redactions and permit.allowed:
        found = fleet.released(permit, namespace, label, output)
        if isinstance(found, str):
            reason = found
        else:
            released = found
    if reason:
        failure = Failure(FailureKind.POLICY, reason, permit.decision.decision_id, retryable=False)
        return Outcome(AttemptState.FAILED, failure=failure, busy=busy, policy=permit.recorded)
    return Outcome(AttemptState.SUCCEEDED, output, busy=busy, policy=permit.recorded, released=released)


def handed_on(task: Task, attempt: Attempt) -> bytes:
    """The input as the agent got it."""
    reduced = attempt.placement.reduced_input
    return task.input if reduced is None else reduced
