"""Events to bytes and back: antiphon.store.v1.Record for events, RunSnapshot for whole runs.

A record is encoded once, when it is decided; the log, the archive and recovery all hold those very bytes. Hot path:
four records for each step of a chain, so fields are set one by one on the nested message instead of being built apart
and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from antiphon.store.v1 import journal_pb2 as journal
from antiphon.v1 import failure_pb2

from ..admission import in_utf8
from ..engine import events as e
from ..engine.failure import Failure, FailureKind
from ..engine.run import Attempt, Child, Run, Signal, Task, recount
from ..engine.states import AttemptState, ChildKind, RunState, TaskState


def encode(run_id: str, event_seq: int, now: int, event: e.Event) -> bytes:
    """The serialised Record of one event, decided at `now` (microseconds since 1970)."""
    record = journal.Record()
    record.run_id, record.event_seq, record.time = run_id, event_seq, now
    _ENCODERS[type(event)](record, event)
    return record.SerializeToString()


def decode(record: journal.Record) -> e.Event:
    """The event of a record that holds one (not a snapshot, nor retained requests)."""
    kind = record.WhichOneof("event")
    if kind is None or kind not in _DECODERS:
        raise ValueError(f"record {record.run_id}/{record.event_seq} holds no event this version knows")
    return _DECODERS[kind](getattr(record, kind))


def frame(records: Sequence[bytes]) -> bytes:
    """Records as one blob for the archive: a LogSegment with records alone."""
    return journal.LogSegment(records=records).SerializeToString()


def unframe(data: bytes) -> Iterator[journal.Record]:
    for raw in journal.LogSegment.FromString(data).records:
        yield journal.Record.FromString(raw)


def put_failure(target: failure_pb2.Failure, failure: Failure | None) -> None:
    if failure is None:
        return
    target.kind = failure.kind  # type: ignore[assignment]
    target.message = in_utf8(failure.message[:4096])
    target.code = failure.code
    target.retryable = failure.retryable
    target.cause = failure.cause[:16384]
    target.field = failure.field


def get_failure(message: failure_pb2.Failure) -> Failure:
    """An unknown kind of a newer version is read as PERMANENT, the strictest."""
    try:
        kind = FailureKind(message.kind)
    except ValueError:
        kind = FailureKind.PERMANENT
    return Failure(kind, message.message, message.code, message.retryable, message.cause, message.field)


def _failure_in(message: Any) -> Failure | None:
    return get_failure(message.failure) if message.HasField("failure") else None


def _submitted(record: journal.Record, event: e.RunSubmitted) -> None:
    put_submitted(record.run_submitted, event)


def put_submitted(m: journal.RunSubmitted, event: e.RunSubmitted) -> None:
    m.namespace = event.namespace
    m.principal = event.principal
    m.request_id = event.request_id
    m.request_digest = event.request_digest
    m.graph_name = event.graph_name
    m.graph_version = event.graph_version
    if event.graph is not None:
        m.graph.CopyFrom(event.graph)
    m.input = event.input
    if event.labels:
        m.labels.update(event.labels)
    m.deadline_time = event.deadline_time
    m.priority = event.priority
    m.traceparent = event.traceparent
    if event.policy is not None:
        m.policy.CopyFrom(event.policy)
    m.warnings.extend(event.warnings)
    m.parent_attempt_id = event.parent_attempt_id
    m.delegation.extend(event.delegation)
    if event.child_kind:
        m.child_kind = event.child_kind  # type: ignore[assignment]
        m.chain.extend(event.chain)


def get_submitted(m: journal.RunSubmitted) -> e.RunSubmitted:
    return e.RunSubmitted(
        m.namespace,
        m.principal,
        m.request_id,
        m.request_digest,
        m.graph_name,
        m.graph_version,
        m.graph if m.HasField("graph") else None,
        m.input,
        dict(m.labels),
        m.deadline_time,
        m.priority,
        m.traceparent,
        m.policy if m.HasField("policy") else None,
        tuple(m.warnings),
        m.parent_attempt_id,
        tuple(m.delegation),
        # Those from before kinds were told apart are calls.
        ChildKind(m.child_kind or ChildKind.CALL) if m.parent_attempt_id else ChildKind.NONE,
        tuple(m.chain),
    )


def _ready(record: journal.Record, event: e.TaskReady) -> None:
    m = record.task_ready
    m.task = event.task
    if event.member:
        m.member = event.member
    m.input = event.input


def _put_offered(m: journal.AttemptOffered, event: e.AttemptOffered) -> None:
    m.task = event.task
    if event.member:
        m.member = event.member
    m.number = event.number
    placement = event.placement
    m.agent = placement.agent
    m.instance = placement.instance
    m.capability = placement.capability
    m.decision = placement.decision
    m.policy_epoch = placement.policy_epoch
    m.epoch = event.epoch
    if placement.reduced_input is not None:
        m.reduced_input = placement.reduced_input
    if event.input is not None:
        m.input = event.input


def _offered(record: journal.Record, event: e.AttemptOffered) -> None:
    _put_offered(record.attempt_offered, event)


def _get_offered(m: journal.AttemptOffered) -> e.AttemptOffered:
    given = m.input if m.HasField("input") else None
    return e.AttemptOffered(m.task, m.member, m.number, _placement(m), m.epoch, given)


def _placement(m: journal.AttemptOffered) -> e.Placement:
    reduced = m.reduced_input if m.HasField("reduced_input") else None
    return e.Placement(m.agent, m.instance, m.capability, m.decision, m.policy_epoch, reduced)


def _started(record: journal.Record, event: e.AttemptStarted) -> None:
    m = record.attempt_started
    m.task, m.member, m.number = event.task, event.member, event.number


def _ended(record: journal.Record, event: e.AttemptEnded) -> None:
    m = record.attempt_ended
    m.task = event.task
    if event.member:
        m.member = event.member
    m.number = event.number
    m.state = event.state  # type: ignore[assignment]
    m.output = event.output
    m.busy = event.busy
    if event.stale:
        m.stale = True
    if event.failure is not None:
        put_failure(m.failure, event.failure)
    if event.policy:
        m.policy = event.policy
    if event.released is not None:
        m.released_output = event.released


def _get_ended(m: journal.AttemptEnded) -> e.AttemptEnded:
    state = AttemptState(m.state)
    released = m.released_output if m.HasField("released_output") else None
    return e.AttemptEnded(
        m.task, m.member, m.number, state, m.output, _failure_in(m), m.busy, m.stale, m.policy, released
    )


def _waiting(record: journal.Record, event: e.TaskWaiting) -> None:
    m = record.task_waiting
    m.task, m.member, m.until, m.reason = event.task, event.member, event.until, event.reason
    m.in_vain = event.in_vain


def _task_ended(record: journal.Record, event: e.TaskEnded) -> None:
    m = record.task_ended
    m.task, m.member, m.state = event.task, event.member, event.state  # type: ignore[assignment]
    put_failure(m.failure, event.failure) if event.failure is not None else None
    m.reason = event.reason


def _completed(record: journal.Record, event: e.TaskCompleted) -> None:
    m = record.task_completed
    m.task, m.member, m.output, m.signal = event.task, event.member, event.output, event.signal
    m.principal, m.policy = event.principal, event.policy
    if event.released is not None:
        m.released_output = event.released


def _get_completed(m: journal.TaskCompleted) -> e.TaskCompleted:
    released = m.released_output if m.HasField("released_output") else None
    return e.TaskCompleted(m.task, m.member, m.output, m.signal, m.principal, m.policy, released)


def _put_child(m: journal.ChildBegun, event: e.ChildBegun) -> None:
    m.task, m.member, m.run_id, m.kind = event.task, event.member, event.run_id, event.kind  # type: ignore[assignment]
    m.name, m.number, m.call_id, m.tasks, m.busy = event.name, event.number, event.call_id, event.tasks, event.busy


def _get_child(m: journal.ChildBegun) -> e.ChildBegun:
    return e.ChildBegun(m.task, m.member, m.run_id, ChildKind(m.kind), m.name, m.number, m.call_id, m.tasks, m.busy)


def _child_begun(record: journal.Record, event: e.ChildBegun) -> None:
    _put_child(record.child_begun, event)


def _run_grown(record: journal.Record, event: e.RunGrown) -> None:
    record.run_grown.tasks = event.tasks


def _signalled(record: journal.Record, event: e.SignalReceived) -> None:
    _put_signal(record.signal_received, event)


def _put_signal(m: journal.SignalReceived, event: e.SignalReceived) -> None:
    m.signal, m.payload, m.principal = event.signal, event.payload, event.principal
    m.request_id, m.request_digest = event.request_id, event.request_digest


def _get_signal(m: journal.SignalReceived) -> e.SignalReceived:
    return e.SignalReceived(m.signal, m.payload, m.principal, m.request_id, m.request_digest)


def _expanded(record: journal.Record, event: e.TaskExpanded) -> None:
    m = record.task_expanded
    m.task, m.member_count, m.first_member = event.task, event.member_count, event.first_member
    m.inputs.extend(event.inputs)


def _compared(record: journal.Record, event: e.AnswerCompared) -> None:
    m = record.answer_compared
    m.task, m.member, m.agrees_with, m.reason = event.task, event.member, event.agrees_with, event.reason


def _agreed(record: journal.Record, event: e.TaskAgreed) -> None:
    record.task_agreed.task, record.task_agreed.member = event.task, event.member


def _reused(record: journal.Record, event: e.ResultReused) -> None:
    m = record.result_reused
    m.task, m.member, m.output = event.task, event.member, event.output
    if event.input is not None:
        m.input = event.input
    if event.released is not None:
        m.released_output = event.released
    _put_reused(m, event.reused)


def _put_reused(m: journal.ResultReused, reused: e.Reused) -> None:
    m.origin_attempt_id, m.keep_time = reused.origin_attempt_id, reused.keep_time
    m.decision, m.policy = reused.decision, reused.policy


def _reused_in(m: journal.ResultReused) -> e.Reused:
    return e.Reused(m.origin_attempt_id, m.keep_time, m.decision, m.policy)


def _get_reused(m: journal.ResultReused) -> e.ResultReused:
    given = m.input if m.HasField("input") else None
    released = m.released_output if m.HasField("released_output") else None
    return e.ResultReused(m.task, m.member, m.output, _reused_in(m), given, released)


def _context_read(record: journal.Record, event: e.ContextRead) -> None:
    m = record.context_read
    if event.task != e.OUTPUT:
        m.task = event.task
    m.found.extend(_put_found(found) for found in event.found)


def _put_found(found: e.Found) -> journal.FoundEntry:
    return journal.FoundEntry(scope=found.scope, key=found.key, revision=found.revision, value=found.value)


def _get_found(entries: Iterable[journal.FoundEntry]) -> tuple[e.Found, ...]:
    return tuple(e.Found(m.scope, m.key, m.revision, m.value if m.HasField("value") else None) for m in entries)


def _cancel(record: journal.Record, event: e.CancelRequested) -> None:
    record.cancel_requested.principal, record.cancel_requested.reason = event.principal, event.reason
    record.cancel_requested.SetInParent()


def _wish(record: journal.Record, event: e.RunPaused | e.RunResumed) -> None:
    m = record.run_paused if type(event) is e.RunPaused else record.run_resumed
    m.principal, m.reason = event.principal, event.reason
    m.SetInParent()


def _task_cancel(record: journal.Record, event: e.TaskCancelRequested) -> None:
    m = record.task_cancel_requested
    m.task, m.principal, m.reason = event.task, event.principal, event.reason


def _reopened(record: journal.Record, event: e.TaskReopened) -> None:
    m = record.task_reopened
    m.task, m.member, m.principal, m.reason = event.task, event.member, event.principal, event.reason
    m.reads_anew = event.reads_anew


def _escalated(record: journal.Record, event: e.TaskEscalated) -> None:
    m = record.task_escalated
    m.task, m.member = event.task, event.member
    put_failure(m.failure, event.failure)


def _quarantined(record: journal.Record, event: e.TaskQuarantined) -> None:
    m = record.task_quarantined
    m.task, m.member = event.task, event.member
    put_failure(m.failure, event.failure)


def _run_ended(record: journal.Record, event: e.RunEnded) -> None:
    m = record.run_ended
    m.state = event.state  # type: ignore[assignment]
    m.output = event.output
    m.warning = event.warning
    if event.failure is not None:
        put_failure(m.failure, event.failure)


_ENCODERS: dict[type[Any], Callable[[journal.Record, Any], None]] = {
    e.RunSubmitted: _submitted,
    e.TaskReady: _ready,
    e.AttemptOffered: _offered,
    e.AttemptStarted: _started,
    e.AttemptEnded: _ended,
    e.TaskWaiting: _waiting,
    e.TaskEnded: _task_ended,
    e.TaskCompleted: _completed,
    e.TaskExpanded: _expanded,
    e.AnswerCompared: _compared,
    e.TaskAgreed: _agreed,
    e.ResultReused: _reused,
    e.SignalReceived: _signalled,
    e.ContextRead: _context_read,
    e.CancelRequested: _cancel,
    e.RunPaused: _wish,
    e.RunResumed: _wish,
    e.TaskCancelRequested: _task_cancel,
    e.TaskReopened: _reopened,
    e.TaskEscalated: _escalated,
    e.ChildBegun: _child_begun,
    e.RunGrown: _run_grown,
    e.TaskQuarantined: _quarantined,
    e.RunUnwinding: lambda record, event: put_failure(record.run_unwinding.failure, event.failure),
    e.RunEnded: _run_ended,
}

_DECODERS: dict[str, Callable[[Any], e.Event]] = {
    "run_submitted": get_submitted,
    "task_ready": lambda m: e.TaskReady(m.task, m.member, m.input),
    "attempt_offered": _get_offered,
    "attempt_started": lambda m: e.AttemptStarted(m.task, m.member, m.number),
    "attempt_ended": _get_ended,
    "task_waiting": lambda m: e.TaskWaiting(m.task, m.member, m.until, m.reason, m.in_vain),
    "task_ended": lambda m: e.TaskEnded(m.task, m.member, TaskState(m.state), _failure_in(m), m.reason),
    "task_expanded": lambda m: e.TaskExpanded(m.task, m.member_count, m.first_member, list(m.inputs)),
    "task_completed": _get_completed,
    "child_begun": _get_child,
    "run_grown": lambda m: e.RunGrown(m.tasks),
    "answer_compared": lambda m: e.AnswerCompared(m.task, m.member, m.agrees_with, m.reason),
    "task_agreed": lambda m: e.TaskAgreed(m.task, m.member),
    "result_reused": _get_reused,
    "signal_received": _get_signal,
    "context_read": lambda m: e.ContextRead(m.task if m.HasField("task") else e.OUTPUT, _get_found(m.found)),
    "cancel_requested": lambda m: e.CancelRequested(m.principal, m.reason),
    "run_paused": lambda m: e.RunPaused(m.principal, m.reason),
    "run_resumed": lambda m: e.RunResumed(m.principal, m.reason),
    "task_cancel_requested": lambda m: e.TaskCancelRequested(m.task, m.principal, m.reason),
    "task_reopened": lambda m: e.TaskReopened(m.task, m.member, m.principal, m.reason, m.reads_anew),
    "task_escalated": lambda m: e.TaskEscalated(m.task, m.member, get_failure(m.failure)),
    "task_quarantined": lambda m: e.TaskQuarantined(m.task, m.member, get_failure(m.failure)),
    "run_unwinding": lambda m: e.RunUnwinding(get_failure(m.failure)),
    "run_ended": lambda m: e.RunEnded(RunState(m.state), m.output, _failure_in(m), m.warning),
}


def snapshot(run: Run) -> journal.RunSnapshot:
    """The whole state of a live run; `restore` gives it back."""
    result = journal.RunSnapshot(create_time=run.create_time)
    put_submitted(result.submitted, run.submitted)
    if run.paused is not None:
        result.paused.principal, result.paused.reason = run.paused.principal, run.paused.reason
        result.paused.SetInParent()
    result.pause_time, result.resume_time, result.grown = run.pause_time, run.resume_time, run.grown
    result.completed.extend(run.completed)
    if run.unwinding is not None:
        put_failure(result.unwinding, run.unwinding)
    if run.cancel is not None:
        result.cancel.principal, result.cancel.reason = run.cancel.principal, run.cancel.reason
        result.cancel_time = run.cancel_time
        result.cancel.SetInParent()
    if run.first_failure is not None:
        result.first_failed = run.plan.index_of[run.first_failure[0]] + 1
    result.output_found.extend(_put_found(found) for found in run.found or ())
    for signal in run.signals:
        kept = result.signals.add(task=signal.task + 1)
        _put_signal(kept.received, signal.received)
    for task in run.all_tasks():
        _snapshot_task(result.tasks.add(), task)
    return result


def _snapshot_task(m: journal.TaskSnapshot, task: Task) -> None:
    m.task, m.member, m.state = task.plan.index, task.member, task.state  # type: ignore[assignment]
    m.input, m.reason, m.cancel_reason = task.input, task.reason, task.cancel_reason
    m.ready_time, m.end_time, m.wait_until = task.ready_time, task.end_time, task.wait_until
    m.again_time, m.in_vain = task.again_time, task.in_vain
    if task.output is not None:
        m.output = task.output
    if task.released is not None:
        m.released_output = task.released
    if task.failure is not None:
        put_failure(m.failure, task.failure)
    if task.member_count >= 0:
        m.member_count, m.expanded = task.member_count, True
    if task.answer:
        m.answer = task.answer
    if task.reused is not None:
        _put_reused(m.reused, task.reused)
    m.found.extend(_put_found(found) for found in task.found or ())
    for child in task.children or ():
        kept = m.children.add(begin_time=child.begin_time)
        _put_child(kept.begun, child.begun)
    for attempt in task.attempts:
        a = m.attempts.add()
        offered = e.AttemptOffered(
            task.plan.index,
            task.member,
            attempt.number,
            attempt.placement,
            attempt.epoch,
        )
        _put_offered(a.offered, offered)
        a.offer_time, a.state = attempt.offer_time, attempt.state  # type: ignore[assignment]
        a.end_time, a.busy, a.stale = attempt.end_time, attempt.busy, attempt.stale
        a.policy = attempt.policy
        if attempt.failure is not None:
            put_failure(a.failure, attempt.failure)


def restore(run: Run, m: journal.RunSnapshot, event_seq: int) -> None:
    """Gives a run that was just started the state of a snapshot. Counters are derived, not stored."""
    run.create_time, run.event_seq = m.create_time, event_seq
    if m.HasField("paused"):
        run.paused = e.RunPaused(m.paused.principal, m.paused.reason)
    run.pause_time, run.resume_time, run.grown = m.pause_time, m.resume_time, m.grown
    run.completed = list(m.completed)
    run.unwinding = get_failure(m.unwinding) if m.HasField("unwinding") else None
    if m.HasField("cancel"):
        run.cancel, run.cancel_time = e.CancelRequested(m.cancel.principal, m.cancel.reason), m.cancel_time
    run.found = _get_found(m.output_found) or None
    run.signals = tuple(Signal(_get_signal(signal.received), signal.task - 1) for signal in m.signals)
    for t in m.tasks:
        node = run.tasks[t.task]
        if t.member:
            task = Task(node.plan, t.member)
            node.members.append(task)
        else:
            task = node
        _restore_task(task, t)
    run.redacted = any(task.released is not None for task in run.all_tasks())
    if m.first_failed:
        first = run.tasks[m.first_failed - 1]
        assert first.failure is not None
        run.first_failure = (first.plan.id, first.failure)
    recount(run)


def _restore_task(task: Task, t: journal.TaskSnapshot) -> None:
    task.state, task.input, task.reason, task.cancel_reason = TaskState(t.state), t.input, t.reason, t.cancel_reason
    task.ready_time, task.end_time, task.wait_until = t.ready_time, t.end_time, t.wait_until
    task.again_time, task.in_vain = t.again_time, t.in_vain
    task.output = (
        t.output if task.state is TaskState.SUCCEEDED and (t.output or task.member or not task.plan.fan_out) else None
    )
    task.released = t.released_output if t.HasField("released_output") else None
    task.failure = get_failure(t.failure) if t.HasField("failure") else None
    task.member_count = t.member_count if t.expanded else -1
    task.answer = t.answer
    task.reused = _reused_in(t.reused) if t.HasField("reused") else None
    task.found = _get_found(t.found) or None
    task.children = [Child(_get_child(child.begun), child.begin_time) for child in t.children] or None
    for a in t.attempts:
        o = a.offered
        attempt = Attempt(o.number, _placement(o), o.epoch, a.offer_time, AttemptState(a.state))
        attempt.failure = get_failure(a.failure) if a.HasField("failure") else None
        attempt.end_time, attempt.busy, attempt.stale = a.end_time, a.busy, a.stale
        attempt.policy = a.policy
        task.attempts.append(attempt)
