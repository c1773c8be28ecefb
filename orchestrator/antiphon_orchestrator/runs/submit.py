"""Admission of one submission: graph, input, policy, size; then it is an input of its shard."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from antiphon.v1 import graph_pb2, run_service_pb2
from antiphon.v1.error_pb2 import ErrorReason

from ..admission import GraphInvalid, SchemaSet
from ..api.errors import ApiError, Violation
from ..api.payload_service import require_payload
from ..audit import AuditLog
from ..blobs import Blobs
from ..engine.events import RunSubmitted
from ..engine.plan import Plan
from ..placement.fleet import Fleet, log_use
from ..policy import PolicyPort, Request
from ..shards import inputs as i
from ..shards import payloads
from ..shards.host import Host
from ..shards.turn import principal_kind
from .catalog import Catalog, GraphNotFound
from .room import StoreRoom

GRAPH_LIMIT = 512 * 1024
"""Bytes of an inline graph: it is one record of the log."""


class Submissions:
    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        policy: PolicyPort,
        audit: AuditLog,
        schemas: SchemaSet,
        blobs: Blobs,
        host: Host,
        room: StoreRoom,
        now: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._policy = policy
        self._audit = audit
        self._schemas = schemas
        self._blobs = blobs
        self._host = host
        self._room = room
        self._now = now
        self._requests: dict[tuple[str, str, str, frozenset[str], int], Request] = {}

    async def prepare(
        self,
        request: run_service_pb2.SubmitRunRequest,
        principal: str,
        namespace: str,
        traceparent: str,
        sink: i.Sink,
    ) -> tuple[int, i.Submit]:
        """The shard and the input of a submission. Raises ApiError."""
        plan, graph_name, graph_version, input_schema = await self._graph(request, namespace)
        wait, request.wait = request.wait, False
        if not request.traceparent:
            request.traceparent = traceparent
        trace = request.traceparent
        request.traceparent = ""  # another attempt of the same call is another span, and the same submission
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        payloads.assert_labels(request.input, principal)
        payload = request.input.SerializeToString() if request.HasField("input") else b""
        await self._check_input(request, namespace, payload, input_schema)
        if input_schema:
            payload = self._schemas.label(input_schema, payload)
        inline = request.inline if request.HasField("inline") else None
        policy = self._permit(principal, namespace, graph_name, self._fleet.labels(payload), request.priority)
        moment = self._now()
        key = payloads.request_key(principal, request.request_id)
        shard = self._host.shard_of(key)
        if not self._host.knows(shard, key) and not self._room.admit(request.ByteSize()):
            raise ApiError(ErrorReason.ERROR_REASON_STORE_FULL, cause=self._room.cause)
        deadline = plan.deadline
        if request.HasField("deadline"):
            deadline = min(deadline, request.deadline.ToMicroseconds())
        event = RunSubmitted(
            namespace,
            principal,
            request.request_id,
            digest,
            graph_name,
            graph_version,
            inline,
            payload,
            dict(request.labels),
            moment + deadline,
            request.priority,
            trace,
            policy,
            (*self._warnings(namespace, plan), *await self._unregistered(namespace, plan)),
        )
        return shard, i.Submit(new_run_id(shard, moment), plan, event, key, wait, sink)

    async def _graph(self, request: run_service_pb2.SubmitRunRequest, namespace: str) -> tuple[Plan, str, str, str]:
        if request.HasField("inline"):
            graph: graph_pb2.Graph = request.inline
            if graph.ByteSize() > GRAPH_LIMIT:
                raise ApiError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, limit=GRAPH_LIMIT)
            try:
                return await self._catalog.inline(graph), graph.name, "", graph.input_schema
            except GraphInvalid as error:
                raise graph_invalid(graph.name, error) from error
        reference = request.registered
        try:
            plan, graph = await self._catalog.registered(namespace, reference.name, reference.version)
        except GraphNotFound as missing:
            raise ApiError(ErrorReason.ERROR_REASON_GRAPH_NOT_FOUND, graph=str(missing)) from missing
        return plan, graph.name, graph.version, graph.input_schema

    async def _check_input(
        self, request: run_service_pb2.SubmitRunRequest, namespace: str, payload: bytes, schema: str
    ) -> None:
        if request.input.HasField("blob"):
            await require_payload(self._blobs, namespace, request.input.blob.digest)
        if not schema and not payload:
            return
        violation = self._schemas.check(schema or "true", payload)
        if violation is not None:
            raise ApiError(
                ErrorReason.ERROR_REASON_INPUT_INVALID,
                violations=[Violation("input" + violation.pointer, violation.message)],
                field="input" + violation.pointer,
                cause=violation.message,
            )

    def _permit(self, principal: str, namespace: str, graph: str, labels: frozenset[str], priority: int) -> object:
        key = (principal, namespace, graph, labels, priority)
        request = self._requests.get(key)
        if request is None:
            if len(self._requests) >= 8192:
                self._requests.clear()
            request = self._requests[key] = Request.submit(
                principal, principal_kind(principal), namespace, graph, labels=labels, priority=priority
            )
        decision = self._policy.decide_batch((request,))[0]
        if not decision.allowed:
            self._audit.record(request, decision)
            raise ApiError(
                ErrorReason.ERROR_REASON_POLICY_DENIED,
                action="submit",
                decision_id=decision.decision_id,
                cause=decision.reason,
            )
        if decision.logged:
            log_use(decision, "submit", graph)
        return self._fleet.policy_message(decision)

    def _warnings(self, namespace: str, plan: Plan) -> tuple[str, ...]:
        wanted = {task.capability for task in plan.tasks if task.capability}
        missing = {name for name in wanted if not self._fleet.offered(namespace, name)}
        return tuple(f"nobody offers {name} yet; tasks that need it wait" for name in sorted(missing))

    async def _unregistered(self, namespace: str, plan: Plan) -> list[str]:
        """Warnings of graphs that tasks are to run and that are not there."""
        missing: list[str] = []
        for wanted in sorted({task.graph for task in plan.tasks if task.graph is not None}):
            try:
                await self._catalog.registered(namespace, wanted.name, wanted.version)
            except GraphNotFound:
                missing.append(f"the graph {wanted} is not registered yet; tasks that run it fail")
        return missing


def new_run_id(shard: int, moment: int) -> str:
    """A run id: its shard, the millisecond it was made in, and chance. It is a name, not a secret."""
    return f"r{shard:04x}{moment // 1000:012x}{random.getrandbits(48):012x}"


def graph_invalid(name: str, error: GraphInvalid) -> ApiError:
    """The refusal that names every mistake of a graph."""
    return ApiError(
        ErrorReason.ERROR_REASON_GRAPH_INVALID,
        violations=[Violation(f"graph.{m.field}" if m.field else "graph", m.message) for m in error.mistakes],
        graph=name,
        count=len(error.mistakes),
    )
