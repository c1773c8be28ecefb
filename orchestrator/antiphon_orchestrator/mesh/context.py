"""Shared context for agents: requests that come up with their attempt's token, asked with the rights of the task.

The token proves that the request comes from whoever was given the attempt; the shard of its run says whether the
attempt is out to that sidecar now, and on whose behalf. What the attempt has read before comes from its sidecar, which
outlives a restart of this process. A bounded number is worked on at once, and a bounded number waits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple

from antiphon.v1 import context_request_pb2 as asked
from antiphon.v1 import payload_pb2
from antiphon.v1.error_pb2 import ErrorReason

from .. import telemetry
from ..api.errors import ApiError, refusal
from ..archive.model import to_micros
from ..context import SharedContext, Standing
from ..engine.run import Attempt, Run, Task
from ..runs.archived import ArchivedRuns
from ..shards import inputs as i
from ..shards.host import Host
from ..shards.turn import principal_kind
from .tokens import AttemptTokens

log = telemetry.logger("context")

QUEUE = 4_096
"""Requests that may wait; more are told to come again."""

WORKERS = 64
"""Requests worked on at once: as many as share a commit of the store."""

MOST_WAITS = 1_024
"""Requests that wait for changes at once."""

PATIENCE = 20.0
"""Seconds such a request waits before it is answered without changes."""


class _Waiting(NamedTuple):
    """A request and who made it. `source` is NAMESPACE/SIDECAR."""

    incarnation: str
    source: str
    request: asked.ContextRequest


class ContextDesk:
    """`answer` and `lose` (incarnation, message) bring messages to a sidecar; set before anything runs."""

    def __init__(self, shared: SharedContext, tokens: AttemptTokens, archived: ArchivedRuns) -> None:
        self._shared = shared
        self._tokens = tokens
        self._archived = archived
        self._host: Host | None = None
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(QUEUE)
        self._waits = 0
        self._group: asyncio.TaskGroup | None = None
        self.answer: Callable[[str, asked.ContextResponse], None] = lambda incarnation, response: None
        self.lose: Callable[[str, asked.ClaimLoss], None] = lambda incarnation, loss: None
        self._kinds: dict[str, Callable[[Standing, Any], Awaitable[Any]]] = {
            "get": shared.get,
            "put": shared.put,
            "delete": shared.delete,
            "list": shared.list,
            "lineage": shared.lineage,
            "watch": lambda who, request: shared.next_changes(who, request, PATIENCE),
            "acquire": shared.acquire,
            "renew": shared.renew,
            "release": shared.release,
        }
        shared.attempts(self._ended, self._run_ended, lambda incarnation, loss: self.lose(incarnation, loss))

    def bind(self, host: Host) -> None:
        """Joins it to the shards; once, before anything runs."""
        self._host = host

    def ask(self, incarnation: str, source: str, request: asked.ContextRequest) -> None:
        """Takes a request in; the answer comes through `answer`."""
        try:
            self._queue.put_nowait(_Waiting(incarnation, source, request))
        except asyncio.QueueFull:
            self._refuse(incarnation, request, ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="shared context"))

    async def run(self) -> None:
        """Answers until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for _ in range(WORKERS):
                group.create_task(self._work(), name="context requests")

    async def _work(self) -> None:
        while True:
            waiting = await self._queue.get()
            if waiting.request.WhichOneof("kind") != "watch":
                await self._serve(waiting)
            elif self._waits >= MOST_WAITS:
                error = ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="watches of shared context")
                self._refuse(waiting.incarnation, waiting.request, error)
            else:
                assert self._group is not None
                self._waits += 1
                self._group.create_task(self._wait(waiting), name="context watch")

    async def _wait(self, waiting: _Waiting) -> None:
        try:
            await self._serve(waiting)
        finally:
            self._waits -= 1

    async def _serve(self, waiting: _Waiting) -> None:
        incarnation, source, request = waiting
        try:
            who = await self._standing(source, request)
            kind = request.WhichOneof("kind")
            assert kind is not None
            answer = await self._kinds[kind](who, getattr(request, kind))
        except i.Moved:
            return  # the sidecar asks whoever claims the shard
        except Exception as error:
            refused = refusal(error)
            if refused is None:  # a bug hurts its own request alone; the log has it
                log.error("context_request_failed", attempt_id=request.attempt_id, exc_info=error)
                refused = ApiError(ErrorReason.ERROR_REASON_INTERNAL, trace_id=request.attempt_id)
            self._refuse(incarnation, request, refused)
            return
        response = asked.ContextResponse(request_id=request.request_id, attempt_id=request.attempt_id)
        getattr(response, kind).CopyFrom(answer)
        self.answer(incarnation, response)

    def _refuse(self, incarnation: str, request: asked.ContextRequest, error: ApiError) -> None:
        response = asked.ContextResponse(request_id=request.request_id, attempt_id=request.attempt_id)
        response.error.CopyFrom(error.to_error())
        self.answer(incarnation, response)

    async def _standing(self, source: str, request: asked.ContextRequest) -> Standing:
        """On whose behalf an attempt asks. Raises ApiError: ATTEMPT_TOKEN_INVALID, ATTEMPT_NOT_FOUND."""
        attempt_id = request.attempt_id
        if not self._tokens.valid(attempt_id, request.attempt_token):
            raise ApiError(ErrorReason.ERROR_REASON_ATTEMPT_TOKEN_INVALID)

        def asks(run: Run) -> Standing | i.Moved | None:
            # Of a run that stands aside not all may be known: who asks for it asks its next owner.
            who = _standing_of(run, source, attempt_id)
            return i.Moved(int(run.run_id[1:5], 16)) if who is None and run.aside else who

        who = await self._read(attempt_id, asks)
        if who is None:
            raise ApiError(ErrorReason.ERROR_REASON_ATTEMPT_NOT_FOUND, attempt_id=attempt_id)
        assert isinstance(who, Standing)
        if who.root_run_id != who.run_id:  # it was called: the graph is that of the run whose calls led here
            root = await self._read(who.root_run_id, lambda run: run.submitted.graph_name)
            who = replace(who, graph=root or "")
        return replace(who, reads=request.reads)

    async def _run_ended(self, run_id: str) -> int | None:
        """See `RunEnded`. The shard first: a run is archived before it is forgotten there."""
        try:
            end_time = await self._read(run_id, lambda run: run.end_time)
        except i.Moved:
            return None  # its owner knows
        if end_time is not None:
            return int(end_time) or None
        summary = await self._archived.summary(run_id)
        if summary is None:
            return 0
        return to_micros(summary.end_time) if summary.end_time is not None else None

    async def _read(self, attempt_id: str, question: Callable[[Run], Any]) -> Any:
        """What the shard of an attempt's run, or of a run, says at release; None where there is none. Raises Moved."""
        assert self._host is not None
        run_id = attempt_id.partition("/")[0]
        shard = self._host.shard_of_run(run_id)
        if shard is None:
            return None
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def sink(value: Any) -> None:
            if answer.done():
                return
            if isinstance(value, i.Moved):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        self._host.put(shard, i.Read(run_id, question, sink, patient=True))
        return await answer

    async def _ended(self, attempt_id: str) -> bool:
        def lives(run: Run) -> bool:
            return run.aside != "" or _running(run, attempt_id) is not None

        try:
            return not await self._read(attempt_id, lives)
        except i.Moved:
            return False  # its owner knows


def _running(run: Run, attempt_id: str) -> tuple[Task, Attempt] | None:
    """The task and the attempt, if it is the one that is out now."""
    try:
        _, task_id, member, number = attempt_id.split("/")
        task = run.task(run.plan.index_of[task_id], int(member))
        live = task.live
    except (ValueError, KeyError, IndexError):
        return None
    if live is None or live.number != int(number) or task.member != int(member):
        return None
    return task, live


def _standing_of(run: Run, source: str, attempt_id: str) -> Standing | None:
    """Who an attempt is, if it is out to that sidecar now."""
    found = _running(run, attempt_id)
    namespace, _, sidecar = source.partition("/")
    submitted = run.submitted
    if found is None or namespace != submitted.namespace or not found[1].instance.startswith(f"{sidecar}/"):
        return None
    task, attempt = found
    value = payload_pb2.Payload.FromString(task.input)
    parts = (label for part in value.field_labels for label in part.labels)
    return Standing(
        submitted.principal,
        principal_kind(submitted.principal),
        namespace,
        agent=attempt.placement.agent,
        attempt_id=attempt_id,
        task_id=task.plan.id,
        run_id=run.run_id,
        root_run_id=submitted.delegation[0].partition("/")[0] if submitted.delegation else run.run_id,
        graph=submitted.graph_name,
        input_digest=_digest(value),
        incarnation=attempt.instance.split("/")[1],
        labels=(*value.labels, *parts),
    )


def _digest(value: payload_pb2.Payload) -> str:
    if value.HasField("blob"):
        return value.blob.digest
    return hashlib.sha256(value.inline).hexdigest() if value.HasField("inline") else ""
