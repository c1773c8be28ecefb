"""What becomes of an output, and of a call: schema, labels, policy. Plain functions of what the fleet knows."""

from __future__ import annotations

from ..engine import decide
from ..engine.decide import Outcome
from ..engine.events import RunSubmitted
from ..engine.failure import Failure, FailureKind
from ..engine.run import Attempt, Run, Task
from ..engine.states import AttemptState
from ..placement.fleet import Fleet
from . import inputs as i
from . import payloads
from .turn import Entry

MAX_DEPTH = 16
"""Attempts above a call; deeper nesting is a loop more often than a plan."""


def judge_output(fleet: Fleet, run: Run, principal_kind: str, task: Task, outcome: Outcome) -> Outcome:
    """Schema and release policy of an output; one that does not pass is a failure. It carries the labels of what it
    was made of, and with a permit that demands redaction also what is left of it for the run's principal."""
    attempt = task.attempts[-1]
    namespace, label = run.submitted.namespace, attempt.placement.capability
    output, given = outcome.output, handed_on(task, attempt)
    violation = fleet.check_output(namespace, label, output)
    if violation is not None:
        message = f"the output does not fit {label}: {violation.message}"
        failure = Failure(FailureKind.INVALID_OUTPUT, message, field=violation.pointer)
        return Outcome(AttemptState.FAILED, failure=failure, busy=outcome.busy)
    output = fleet.label_output(namespace, label, output)
    labels, inherited = fleet.labels(output), fleet.labels(given)
    if inherited:  # also when the output has the same keys: their values may differ
        output, labels = payloads.inherit_labels(given, output), labels | inherited
    return release(fleet, run, principal_kind, label, output, labels, outcome.busy)


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


def called_run(
    fleet: Fleet, entry: Entry, task: Task, attempt: Attempt, call: i.Call, now: int
) -> RunSubmitted | i.CallRefused | i.CallDenied:
    """The run that a call of a running attempt asks for, on behalf of its own run's principal."""
    run, submitted = entry.run, entry.run.submitted
    delegation = (*submitted.delegation, decide.attempt_id(run.run_id, task, attempt.number))
    if len(delegation) > MAX_DEPTH:
        return i.CallRefused(f"calls nest deeper than {MAX_DEPTH}", MAX_DEPTH)
    deadline = min(decide.task_deadline(run, task), attempt.offer_time + task.plan.timeout)
    if call.timeout is not None:
        deadline = min(deadline, now + call.timeout)
    known = handed_on(task, attempt)  # what the caller knows it knows from its own input
    given = payloads.inherit_labels(known, call.input) if fleet.labels(known) else call.input
    decision = fleet.may_call(
        submitted.principal,
        entry.principal_kind,
        submitted.namespace,
        call.plan.tasks[0].capability.partition("@")[0],
        attempt.placement.agent,
        fleet.labels(given),
    )
    if not decision.allowed:
        return i.CallDenied(decision.reason, decision.decision_id)
    return RunSubmitted(
        submitted.namespace,
        submitted.principal,
        # The same call of another attempt of the task is the same run: what was done is not done again.
        f"{run.run_id}/{task.plan.id}/{task.member}#{call.call_id}",
        call.digest,
        call.plan.name,
        "",
        call.graph,
        given,
        {},
        deadline,
        submitted.priority,
        submitted.traceparent,
        fleet.policy_message(decision),
        parent_attempt_id=delegation[-1],
        delegation=delegation,
    )


def handed_on(task: Task, attempt: Attempt) -> bytes:
    """The input as the agent got it."""
    reduced = attempt.placement.reduced_input
    return task.input if reduced is None else reduced
