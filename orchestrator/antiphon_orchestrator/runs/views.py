"""Runs, tasks, attempts and events as API messages. Live runs and archived ones go through the same code: an archived
run is its events applied again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableSequence, Sequence
from operator import attrgetter

from antiphon.store.v1 import journal_pb2 as journal
from antiphon.v1 import context_pb2, payload_pb2, run_pb2, run_service_pb2

from ..engine import decide, waits
from ..engine import events as e
from ..engine.failure import Failure
from ..engine.run import Attempt, Run, Task
from ..engine.states import TASK_ASKS, AttemptState, ChildKind, RunState, TaskState
from ..engine.view import chosen
from ..shards import codec

CHILDREN = 16
"""Runs beneath a task that are shown with it."""

SIGNALS = 16
"""Names of signals that are shown of those that a run waits for: a graph can have a thousand."""

_LONGEST = 315_576_000_000_000_000
"""Microseconds that a duration can hold: a sidecar may say that its agent worked longer."""

_STATE = attrgetter("state")
_TOTAL_FIELDS = {state: state.name.lower() for state in TaskState}


def shown(task: Task) -> bool:
    """Whether a task is part of what happened: what would undo another is not, unless it was needed."""
    return task.plan.compensates < 0 or task.state is not TaskState.PENDING


def shown_state(run: Run) -> int:
    """The state of a run as a number of antiphon.v1.RunState: one that is held is PAUSED."""
    return run_pb2.RUN_STATE_PAUSED if run.paused is not None else run.state


def run_message(run: Run, *, payloads: bool = True, totals: bool = True) -> run_pb2.Run:
    submitted = run.submitted
    message = run_pb2.Run(
        run_id=run.run_id,
        namespace=submitted.namespace,
        state=shown_state(run),  # type: ignore[arg-type]
        graph_name=submitted.graph_name,
        graph_version=submitted.graph_version,
        principal=submitted.principal,
        event_seq=run.event_seq,
        labels=submitted.labels,
        parent_attempt_id=submitted.parent_attempt_id,
        traceparent=submitted.traceparent,
        warnings=[*submitted.warnings, *filter(None, (run.warning, run.aside))],
        child_kind=submitted.child_kind,  # type: ignore[arg-type]
        awaited_signals=waits.awaited(run)[:SIGNALS],
    )
    message.create_time.FromMicroseconds(run.create_time)
    message.deadline_time.FromMicroseconds(submitted.deadline_time)
    if run.end_time:
        message.end_time.FromMicroseconds(run.end_time)
    if run.failure is not None:
        codec.put_failure(message.failure, run.failure)
    if run.paused is not None:
        _put_wish(message.paused, run.paused, run.pause_time)
    if run.cancel is not None and run.cancel.principal:  # else its deadline passed
        _put_wish(message.cancelled, run.cancel, run.cancel_time)
    if payloads:
        put_payload(message.input, submitted.input)
        if run.state is RunState.SUCCEEDED:
            put_payload(message.output, run.output)
            message.output.SetInParent()
    if totals:
        put_totals(message.totals, run)
    put_reads(message.output_reads, run, run.found)
    return message


def _put_wish(target: run_pb2.Wish, wish: e.RunPaused | e.CancelRequested, asked: int) -> None:
    target.principal, target.reason = wish.principal, wish.reason
    if asked:  # a snapshot of an earlier version does not know it
        target.create_time.FromMicroseconds(asked)


def put_reads(target: MutableSequence[context_pb2.EntryReference], run: Run, found: Sequence[e.Found] | None) -> None:
    """What expressions read of shared context: which entries at which revisions, not their values."""
    for entry in found or ():
        scope = context_pb2.ContextScope()
        if entry.scope == "run":
            scope.run_id = run.submitted.delegation[0].partition("/")[0] if run.submitted.delegation else run.run_id
        elif entry.scope == "graph":
            scope.graph = run.submitted.graph_name
        target.append(context_pb2.EntryReference(scope=scope, key=entry.key, revision=entry.revision))


def put_payload(target: payload_pb2.Payload, payload: bytes) -> None:
    if payload:
        target.MergeFromString(payload)


def put_totals(target: run_pb2.TaskTotals, run: Run) -> None:
    """Counts members instead of their fan-out; one that waits for a person itself is counted besides."""
    counts: Counter[TaskState] = Counter()
    for node in run.tasks:
        if node.members:
            # Counted in C: a run may have 100,000 members, and whoever waits for it asks again and again.
            counts.update(map(_STATE, node.members))
            if node.state in TASK_ASKS:
                counts[node.state] += 1
        elif shown(node):
            counts[node.state] += 1
    for state, count in counts.items():
        setattr(target, _TOTAL_FIELDS[state], count)
    target.total = sum(counts.values())


def task_message(run: Run, task: Task, *, payloads: bool = True) -> run_pb2.Task:
    message = run_pb2.Task(
        key=run_pb2.TaskKey(task_id=task.plan.id, member=task.member),
        state=task.state,  # type: ignore[arg-type]
        capability=task.plan.capability,
        reason=task.reason or _reason(run, task),
        attempt_count=len(task.attempts),
        member_count=max(0, task.member_count),
        compensates=run.tasks[task.plan.compensates].plan.id if task.plan.compensates >= 0 else "",
        graph="" if task.plan.graph is None else str(task.plan.graph),
        child_count=len(task.children or ()),
    )
    for child in (task.children or ())[-CHILDREN:]:
        _put_child(message.children.add(), child.begun, child.begin_time)
    if task.plan.agree and not task.member:
        _put_agreement(message.agreement, task)
    if task.reused is not None:
        _put_reused(message.reused, task.reused)
    if task.ready_time:
        message.ready_time.FromMicroseconds(task.ready_time)
    if task.end_time:
        message.end_time.FromMicroseconds(task.end_time)
    if task.failure is not None:
        codec.put_failure(message.failure, task.failure)
    put_reads(message.reads, run, run.tasks[task.plan.index].found)
    if payloads:
        _put_payloads(message, run, task)
    return message


def _put_child(target: run_pb2.Child, begun: e.ChildBegun, begin_time: int) -> None:
    target.run_id, target.kind, target.name = begun.run_id, begun.kind, begun.name  # type: ignore[assignment]
    target.attempt, target.call_id = begun.number, begun.call_id
    target.begin_time.FromMicroseconds(begin_time)


def _put_agreement(message: run_pb2.Agreement, node: Task) -> None:
    """Who agreed with whom, and what it took."""
    plan = node.plan
    message.of, message.agree, message.chosen = plan.of, plan.agree, node.answer
    groups: dict[int, list[Task]] = {}
    spent = 0
    for member in sorted(node.members, key=lambda member: (member.end_time, member.member)):
        if member.state is TaskState.SUCCEEDED:
            # Answers of a hedge are not compared, nor those that came in the very moment of the decision.
            groups.setdefault(member.answer or member.member, []).append(member)
        message.failed += member.state is TaskState.FAILED
        message.cancelled += member.state is TaskState.CANCELLED
        if member.member != node.answer:
            spent += sum(a.busy or max(0, a.end_time - a.offer_time) for a in member.attempts)
    for first, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        reason = node.members[first - 1].reason
        message.groups.add(members=[member.member for member in members], reason=reason)
    message.spent_duration.FromMicroseconds(min(spent, _LONGEST))


def _put_reused(message: run_pb2.ReusedResult, reused: e.Reused) -> None:
    message.origin_attempt_id = reused.origin_attempt_id
    message.keep_time.FromMicroseconds(reused.keep_time)
    message.decision.MergeFromString(reused.decision)
    message.release.MergeFromString(reused.policy)


def _put_payloads(message: run_pb2.Task, run: Run, task: Task) -> None:
    """Input and output as the run's principal may have them; what was made of redacted outputs is not shown at all."""
    withheld = []
    if run.redacted and (task.plan.needs or task.member or task.plan.compensates >= 0):
        withheld.append("the input is not shown, because outputs of this run are redacted")
    else:
        put_payload(message.input, task.input)
    agreed = task.plan.agree and not task.member and task.state is TaskState.SUCCEEDED
    source = chosen(task) if agreed else task
    if source.output is not None:
        put_payload(message.output, source.output if source.released is None else source.released)
        message.output.SetInParent()
    if source.released is not None:
        policy = source.reused.policy if source.reused is not None else b""
        if source.attempts and source.reused is None:
            policy = source.attempts[-1].policy
        decision = run_pb2.PolicyDecision.FromString(policy)
        demands = [demand for demand in decision.obligations if demand.startswith("redact")]
        withheld.append(f"the output is redacted as policy demands: {', '.join(demands) or 'redact'}")
    message.withheld = "; ".join(withheld)


def _reason(run: Run, task: Task) -> str:
    if task.state is TaskState.PENDING:
        if decide.waits_to_read(task):
            return "reads shared context"
        waits = [run.tasks[i].plan.id for i in task.plan.needs if not run.tasks[i].ended]
        return "waits for " + ", ".join(waits[:8]) + (" …" if len(waits) > 8 else "") if waits else ""
    if task.state is TaskState.QUARANTINED:
        return "whoever works on it dies: antiphon run resolve, or retry once it is mended"
    if task.state is TaskState.ESCALATED:
        return "waits for a person: antiphon run resolve, or retry"
    if task.sub_run:
        return f"waits for run {task.sub_run}"
    if task.state is TaskState.READY and task.plan.graph is not None:
        return f"looks up the graph {task.plan.graph}"
    if task.reused is not None:
        return f"the result of {task.reused.origin_attempt_id} was used again"
    if task.plan.hedge is not None and not task.member and task.answer and len(task.members) > 1:
        return f"the answer of member {task.answer} of 2 came first"
    if task.state is TaskState.READY:
        return f"waits for an agent that offers {task.plan.capability}"
    return ""


def attempt_message(run: Run, task: Task, attempt: Attempt) -> run_pb2.Attempt:
    message = run_pb2.Attempt(
        attempt_id=decide.attempt_id(run.run_id, task, attempt.number),
        number=attempt.number,
        state=attempt.state,  # type: ignore[arg-type]
        agent=attempt.placement.agent,
        instance=attempt.instance,
        decision=run_pb2.RoutingDecision.FromString(attempt.placement.decision),
    )
    message.offer_time.FromMicroseconds(attempt.offer_time)
    if attempt.end_time:
        message.end_time.FromMicroseconds(attempt.end_time)
    if attempt.busy:
        message.busy_duration.FromMicroseconds(min(attempt.busy, _LONGEST))
    if attempt.failure is not None:
        codec.put_failure(message.failure, attempt.failure)
    if not message.decision.summary:
        message.decision.summary = summary(message.decision)
    policy = message.decision.policy
    if policy.permit and not policy.reason:
        policy.reason = "allowed by policy " + ", ".join(policy.policies)
    return message


def summary(decision: run_pb2.RoutingDecision) -> str:
    """One sentence on why an attempt went where it went."""
    others = decision.considered - 1
    busy = sum(r.count for r in decision.refusals if r.reason == "no_slot")
    if decision.considered <= 1:
        why = "the only one that fits"
    elif busy == others:
        why = f"the only one of {decision.considered} with a free slot"
    else:
        why = f"the lowest expected time of {decision.considered}: {decision.score:.3f} s"
        if decision.others:
            why += f", next {decision.others[0].score:.3f} s"
    return f"{decision.chosen} for {decision.capability}: {why}"


def tasks_in_order(run: Run) -> list[Task]:
    return list(run.all_tasks())


def dependencies(run: Run, task: Task) -> Iterable[run_service_pb2.Dependency]:
    for index in task.plan.needs:
        need = run.tasks[index]
        yield run_service_pb2.Dependency(task_id=need.plan.id, state=need.state)  # type: ignore[arg-type]


def event_message(run: Run, raw: bytes) -> run_pb2.RunEvent:
    """One record as watchers see it. `run` gives the names of tasks; its state is not looked at."""
    record = journal.Record.FromString(raw)
    event = codec.decode(record)
    message = run_pb2.RunEvent(event_seq=record.event_seq)
    message.event_time.FromMicroseconds(record.time)
    if isinstance(event, e.RunSubmitted):
        message.run_state = run_pb2.RUN_STATE_RUNNING
    elif isinstance(event, e.RunEnded):
        message.run_state = event.state  # type: ignore[assignment]
        _failure(message, event.failure)
    elif isinstance(event, e.SignalReceived):
        message.signal = event.signal
        message.reason = f"signal from {event.principal}"
    elif isinstance(event, e.CancelRequested):
        message.reason = event.reason or "cancelled"
    elif isinstance(event, e.RunGrown):
        message.reason = f"a run with {event.tasks} tasks began further below"
    elif isinstance(event, e.RunUnwinding):
        message.reason = "what was done is undone"
        _failure(message, event.failure)
    elif isinstance(event, e.RunPaused):
        message.run_state = run_pb2.RUN_STATE_PAUSED
        message.reason = _wished("paused", event)
    elif isinstance(event, e.RunResumed):
        message.run_state = run_pb2.RUN_STATE_RUNNING
        message.reason = _wished("resumed", event)
    elif isinstance(event, e.ContextRead):
        if event.task != e.OUTPUT:
            message.key.task_id = run.plan.tasks[event.task].id
        message.reason = "read shared context"
        put_reads(message.reads, run, event.found)
    else:
        plan = run.plan.tasks[event.task]
        message.key.task_id = plan.id
        if isinstance(event, e.TaskCancelRequested):
            message.reason = _wished("cancelled", event)
            return message
        if isinstance(event, e.TaskAgreed):
            message.task_state = run_pb2.TASK_STATE_SUCCEEDED
            message.reason = f"the answer of member {event.member} is used"
            return message
        if isinstance(event, e.TaskExpanded):
            message.member_count = event.member_count
            message.task_state = run_pb2.TASK_STATE_RUNNING
            return message
        message.key.member = event.member
        if isinstance(event, e.ChildBegun):
            _child_event(message, event, record.time)
        else:
            _task_event(message, event)
    return message


def _child_event(message: run_pb2.RunEvent, event: e.ChildBegun, time: int) -> None:
    _put_child(message.child, event, time)
    if event.kind is not ChildKind.CALL:
        message.task_state = run_pb2.TASK_STATE_RUNNING
    if event.kind is ChildKind.ANSWER:
        message.attempt.number = event.number
        message.attempt.state = run_pb2.ATTEMPT_STATE_SUCCEEDED


def _task_event(
    message: run_pb2.RunEvent,
    event: e.TaskReady
    | e.AttemptOffered
    | e.AttemptStarted
    | e.AttemptEnded
    | e.TaskWaiting
    | e.TaskEnded
    | e.TaskCompleted
    | e.AnswerCompared
    | e.ResultReused
    | e.TaskReopened
    | e.TaskEscalated
    | e.TaskQuarantined,
) -> None:
    if isinstance(event, e.TaskReady):
        message.task_state = run_pb2.TASK_STATE_READY
    elif isinstance(event, e.TaskWaiting):
        message.task_state = run_pb2.TASK_STATE_WAITING
        message.reason = event.reason
    elif isinstance(event, e.TaskReopened):
        message.task_state = run_pb2.TASK_STATE_READY if event.member else run_pb2.TASK_STATE_PENDING
        message.reason = _wished("taken up again", event)
    elif isinstance(event, e.TaskEscalated):
        message.task_state = run_pb2.TASK_STATE_ESCALATED
        message.reason = "waits for a person"
        _failure(message, event.failure)
    elif isinstance(event, e.AnswerCompared):
        told = "agrees with none before" if event.agrees_with == event.member else f"agrees with {event.agrees_with}"
        message.reason = f"{told}; {event.reason}" if event.reason else told
    elif isinstance(event, e.ResultReused):
        message.task_state = run_pb2.TASK_STATE_SUCCEEDED
        message.origin_attempt_id = event.reused.origin_attempt_id
        message.reason = f"the result of {event.reused.origin_attempt_id} was used again"
    elif isinstance(event, e.TaskQuarantined):
        message.task_state = run_pb2.TASK_STATE_QUARANTINED
        message.reason = "whoever works on it dies; it waits for a person"
        _failure(message, event.failure)
    elif isinstance(event, e.TaskCompleted):
        message.task_state = run_pb2.TASK_STATE_SUCCEEDED
        message.reason = f"its output was given by {event.principal}" if event.principal else ""
    elif isinstance(event, e.TaskEnded):
        message.task_state = event.state  # type: ignore[assignment]
        message.reason = event.reason
        _failure(message, event.failure)
    elif isinstance(event, e.AttemptOffered):
        message.task_state = run_pb2.TASK_STATE_RUNNING
        change = message.attempt
        change.number, change.agent, change.instance = event.number, event.placement.agent, event.placement.instance
        change.state = run_pb2.ATTEMPT_STATE_OFFERED
    elif isinstance(event, e.AttemptStarted):
        message.attempt.number = event.number
        message.attempt.state = run_pb2.ATTEMPT_STATE_RUNNING
    else:
        message.attempt.number = event.number
        message.attempt.state = event.state  # type: ignore[assignment]
        message.attempt.stale = event.stale
        _failure(message, event.failure)
        if event.state is AttemptState.SUCCEEDED and not event.stale:
            message.task_state = run_pb2.TASK_STATE_SUCCEEDED
        elif event.state is AttemptState.RETURNED and not event.stale:
            message.task_state = run_pb2.TASK_STATE_READY


def _wished(what: str, event: e.RunPaused | e.RunResumed | e.TaskCancelRequested | e.TaskReopened) -> str:
    return f"{what} by {event.principal}" + (f": {event.reason}" if event.reason else "")


def _failure(message: run_pb2.RunEvent, failure: Failure | None) -> None:
    if failure is not None:
        codec.put_failure(message.failure, failure)


def records_after(records: Sequence[bytes], cursor: int) -> Iterable[bytes]:
    """Records with an event_seq above the cursor."""
    for raw in records:
        if journal.Record.FromString(raw).event_seq > cursor:
            yield raw
