"""What people ask of a run that is under way, decided by the engine and carried out by the run's shard.

A wish is a plain function of the run. The shard calls it between two inputs, so that what it looks at cannot change
before its events are committed; of a run that has ended, perhaps archived, it makes an answer and no events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from antiphon.v1 import payload_pb2, run_pb2
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError, Violation, request_invalid
from ..api.payload_service import require_payload
from ..blobs import Blobs
from ..engine import steer, waits
from ..engine.events import Event, SignalReceived, TaskCompleted
from ..engine.failure import Failure, FailureKind
from ..engine.run import Run, Task
from ..engine.states import RunState
from ..placement.fleet import Fleet
from ..shards import payloads
from ..shards.inputs import Steered
from ..shards.judging import judge_answer
from ..shards.turn import principal_kind
from . import views

NULL = payload_pb2.Payload(inline=b"null").SerializeToString()
"""An output that a person gives and that is null: b"" could not be told from none."""

Wish = Callable[[Run, int], Steered]


def refused(error: Exception) -> Steered:
    """Nothing, but the reason why."""
    return Steered([], lambda run: error)


def ended(run: Run) -> ApiError:
    """The refusal of what nobody can ask of a run that has ended, or is about to."""
    state = run.state.name if run.state is not RunState.RUNNING else RunState.CANCELLED.name
    return ApiError(ErrorReason.ERROR_REASON_RUN_ENDED, run_id=run.run_id, state=state)


def task_of(run: Run, key: run_pb2.TaskKey) -> Task:
    """The task of that name. Raises ApiError."""
    index = run.plan.index_of.get(key.task_id)
    if index is None or key.member > len(run.tasks[index].members):
        task_id = key.task_id + (f"[{key.member}]" if key.member else "")
        raise ApiError(ErrorReason.ERROR_REASON_TASK_NOT_FOUND, run_id=run.run_id, task_id=task_id)
    return run.task(index, key.member)


def about_run(decide: Callable[[Run], list[Event]]) -> Wish:
    """A wish whose answer is the run."""

    def wish(run: Run, now: int) -> Steered:
        return refused(ended(run)) if steer.over(run) else Steered(decide(run), views.run_message)

    return wish


def about_task(key: run_pb2.TaskKey, decide: Callable[[Run, Task], list[Event]]) -> Wish:
    """A wish whose answer is the task."""

    def wish(run: Run, now: int) -> Steered:
        task = task_of(run, key)
        if steer.over(run, task):
            return refused(ended(run))
        try:
            return Steered(decide(run, task), lambda run: views.task_message(run, task))
        except steer.Conflict as conflict:
            reason = ErrorReason.ERROR_REASON_TASK_STATE_CONFLICT
            return refused(ApiError(reason, task_id=key.task_id, state=task.state.name, cause=str(conflict)))

    return wish


async def resolve(request: api.ResolveTaskRequest, principal: str, namespace: str, blobs: Blobs, fleet: Fleet) -> Wish:
    """A person's answer to an escalation, whose answer is the task. An output is held to what one of an agent is: its
    schema, the labels of what it was made of, and its release. Raises ApiError."""
    if not request.HasField("output"):
        return about_task(
            request.key, lambda run, task: steer.resolve_task(run, task, None, request.failure, principal)
        )
    output = await _received(request.output, principal, namespace, blobs) or NULL

    def decided(run: Run, task: Task) -> list[Event]:
        judged = judge_answer(fleet, run, principal_kind(run.submitted.principal), task, output)
        given = output if judged.failure is not None else judged.output
        events = steer.resolve_task(run, task, given, "", principal)
        if events and judged.failure is not None:
            raise _unfit(judged.failure)
        for event in events:
            if isinstance(event, TaskCompleted):
                event.policy, event.released = judged.policy, judged.released
        return events

    return about_task(request.key, decided)


def _unfit(failure: Failure) -> ApiError:
    """The refusal of an output that an agent could not have given either."""
    if failure.kind is FailureKind.POLICY:
        reason = ErrorReason.ERROR_REASON_POLICY_DENIED
        return ApiError(reason, action="release", decision_id=failure.code, cause=failure.message)
    return request_invalid([Violation("output", failure.message)])


async def _received(payload: payload_pb2.Payload, principal: str, namespace: str, blobs: Blobs) -> bytes:
    """What somebody sends, serialised, with labels that they vouch for. Raises ApiError."""
    payloads.assert_labels(payload, principal)
    if payload.HasField("blob"):
        await require_payload(blobs, namespace, payload.blob.digest)
    return payload.SerializeToString()


async def signal(request: api.SignalRunRequest, principal: str, namespace: str, blobs: Blobs) -> Wish:
    """A signal, whose answer is a SignalRunResponse. Raises ApiError."""
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    payload = await _received(request.payload, principal, namespace, blobs)
    received = SignalReceived(request.signal, payload, principal, request.request_id, digest)

    def wish(run: Run, now: int) -> Steered:
        before = waits.known(run, principal, request.request_id)
        if before is not None and before.received.request_digest != digest:
            return refused(ApiError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, request_id=request.request_id))
        if before is not None:
            return Steered([], answer)
        if steer.over(run):
            return refused(ended(run))
        if request.signal not in run.plan.signals:
            expected = ", ".join(sorted(run.plan.signals)[:8]) or "none"
            return refused(
                ApiError(
                    ErrorReason.ERROR_REASON_SIGNAL_NOT_EXPECTED,
                    signal=request.signal,
                    run_id=run.run_id,
                    expected=expected,
                )
            )
        if waits.exhausted(run, payload):
            limit = f"{waits.MOST_SIGNALS} signals, or {waits.MOST_KEPT_BYTES} bytes that no task took,"
            return refused(ApiError(ErrorReason.ERROR_REASON_SIGNALS_EXHAUSTED, run_id=run.run_id, limit=limit))
        return Steered(waits.receive(run, received), answer)

    def answer(run: Run) -> api.SignalRunResponse:
        sent = waits.known(run, principal, request.request_id)
        response = api.SignalRunResponse()
        if sent is not None and sent.task >= 0:
            response.key.CopyFrom(run_pb2.TaskKey(task_id=run.plan.tasks[sent.task].id))
        return response

    return wish
