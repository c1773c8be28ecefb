"""Calls between agents: a capability asked for on behalf of a running attempt becomes a run of one task.

The run lives in the shard of its parent, carries the chain of attempts above it and the parent's principal, and is
found again by the same call id from any attempt of the task, so an outcome is worked out once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from antiphon.v1 import agent_service_pb2, graph_pb2
from antiphon.v1.failure_pb2 import FailureKind as Kind

from .. import telemetry
from ..admission import GraphInvalid
from ..archive import ArchiveUnavailable
from ..engine.run import Run
from ..engine.states import RunState
from ..runs.archived import ArchivedRuns
from ..runs.catalog import Catalog
from ..runs.submit import new_run_id
from ..runs.views import put_payload
from ..shards import codec
from ..shards import inputs as i
from ..shards.host import Host
from .tokens import AttemptTokens

log = telemetry.logger("calls")

ARCHIVED_QUEUE = 1_000
"""Calls repeated after their run was archived that wait to be read; more are told to try again."""


class Calls:
    """`answer(incarnation, response)` brings an outcome to its sidecar; set before anything runs."""

    def __init__(self, catalog: Catalog, archived: ArchivedRuns, tokens: AttemptTokens, now: Callable[[], int]) -> None:
        self._catalog = catalog
        self._archived = archived
        self._tokens = tokens
        self._now = now
        self._host: Host | None = None
        self._late: asyncio.Queue[tuple[str, str, str, str, str]] = asyncio.Queue(ARCHIVED_QUEUE)
        self.answer: Callable[[str, agent_service_pb2.CallResponse], None] = lambda incarnation, response: None

    def bind(self, host: Host) -> None:
        self._host = host

    def make(self, incarnation: str, source: str, call: agent_service_pb2.CallRequest) -> None:
        """Hands a call to the shard of its attempt; the outcome comes through `answer`."""
        call_id, attempt_id = call.call_id, call.attempt_id

        def refuse(kind: Kind.ValueType, message: str, code: str = "") -> None:
            response = agent_service_pb2.CallResponse(call_id=call_id, attempt_id=attempt_id)
            response.failure.kind, response.failure.message, response.failure.code = kind, message, code
            self.answer(incarnation, response)

        assert self._host is not None
        shard = self._host.shard_of_run(attempt_id.partition("/")[0])
        if shard is None or not self._tokens.valid(attempt_id, call.attempt_token):
            refuse(Kind.FAILURE_KIND_POLICY, "the attempt token is not valid", "ATTEMPT_TOKEN_INVALID")
            return
        if self._host.crowded(shard):
            refuse(Kind.FAILURE_KIND_TRANSIENT, "the orchestrator has more to do than it can; try again", "OVERLOADED")
            return
        graph = graph_pb2.Graph(name="call")
        graph.tasks.add(id="call", capability=call.capability, input='"${input}"')
        graph.output = '"${tasks.call.output}"'
        try:
            plan = self._catalog.small(graph)
        except GraphInvalid as error:
            refuse(Kind.FAILURE_KIND_INVALID_INPUT, error.mistakes[0].message, "REQUEST_INVALID")
            return

        def sink(value: Any) -> None:
            if isinstance(value, Run):
                self.answer(incarnation, _outcome(call_id, attempt_id, value))
            elif isinstance(value, str):
                self._queue_late(incarnation, source.partition("/")[0], value, call_id, attempt_id, refuse)
            elif isinstance(value, i.RequestIdReused):
                refuse(
                    Kind.FAILURE_KIND_INVALID_INPUT, f"call {call_id} was made with other content", "REQUEST_ID_REUSED"
                )
            elif isinstance(value, i.CallDenied):
                refuse(Kind.FAILURE_KIND_POLICY, str(value), value.decision_id)
            elif isinstance(value, i.Moved):
                return  # the sidecar asks whoever claims the shard, and finds the same run
            else:
                code = "CALL_TOO_DEEP" if value.depth else "ATTEMPT_NOT_FOUND"
                refuse(Kind.FAILURE_KIND_PERMANENT, str(value), code)

        payload = call.input.SerializeToString() if call.HasField("input") else b""
        digest = hashlib.sha256(call.capability.encode() + b"\0" + payload).digest()
        timeout = call.timeout.ToMicroseconds() if call.HasField("timeout") else None
        run_id = new_run_id(shard, self._now())
        item = i.Call(source, attempt_id, call_id, run_id, plan, graph, digest, payload, timeout, sink)
        self._host.put(shard, item)

    def _queue_late(
        self,
        incarnation: str,
        namespace: str,
        run_id: str,
        call_id: str,
        attempt_id: str,
        refuse: Callable[[Kind.ValueType, str], None],
    ) -> None:
        try:
            self._late.put_nowait((incarnation, namespace, run_id, call_id, attempt_id))
        except asyncio.QueueFull:
            refuse(Kind.FAILURE_KIND_TRANSIENT, "too many repeated calls are waiting; try again")

    async def run(self) -> None:
        """Answers calls whose run is archived."""
        while True:
            incarnation, namespace, run_id, call_id, attempt_id = await self._late.get()
            response = agent_service_pb2.CallResponse(call_id=call_id, attempt_id=attempt_id)
            try:
                run = await self._archived.load(run_id, namespace)
            except ArchiveUnavailable as error:
                log.warning("call_not_answered", run_id=run_id, cause=str(error))
                run = None
            if run is not None:
                response = _outcome(call_id, attempt_id, run)
            else:
                response.failure.kind = Kind.FAILURE_KIND_TRANSIENT
                response.failure.message = "the outcome of the call cannot be read now; try again"
                response.failure.retryable = True
            self.answer(incarnation, response)


def _outcome(call_id: str, attempt_id: str, run: Run) -> agent_service_pb2.CallResponse:
    response = agent_service_pb2.CallResponse(call_id=call_id, attempt_id=attempt_id)
    if run.state is RunState.SUCCEEDED:
        response.output.SetInParent()
        put_payload(response.output, run.output)
    elif run.failure is not None:
        codec.put_failure(response.failure, run.failure)
    else:
        response.failure.kind = Kind.FAILURE_KIND_CANCELLED
        response.failure.message = "the call was cancelled"
    return response
