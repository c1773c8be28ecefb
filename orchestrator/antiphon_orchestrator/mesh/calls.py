"""Calls between agents: a capability asked for on behalf of a running attempt becomes a run of one task. And graphs
that agents answer with, which become runs as well.

The run lives in the shard of its parent, carries the chain of attempts above it and the parent's principal. That of a
call is found again by the same call id, by another attempt of the task as well unless it ended without success, so an
outcome is worked out once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, graph_pb2
from antiphon.v1.failure_pb2 import FailureKind as Kind
from google.protobuf.message import DecodeError, Message

from .. import telemetry
from ..admission import GraphInvalid, label_keys
from ..api.errors import Violation
from ..archive import ArchiveUnavailable
from ..engine.failure import Failure, FailureKind
from ..engine.plan import Plan
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


class _Late(NamedTuple):
    """A call repeated after its run was archived."""

    incarnation: str
    namespace: str
    run_id: str
    call: i.Call


class Calls:
    """`answer(incarnation, response)` brings an outcome to its sidecar; set before anything runs. `broken` finds the
    rules of the contracts that a message breaks."""

    def __init__(
        self,
        catalog: Catalog,
        archived: ArchivedRuns,
        tokens: AttemptTokens,
        broken: Callable[[Message], Sequence[Violation]],
        now: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._archived = archived
        self._tokens = tokens
        self._broken = broken
        self._now = now
        self._host: Host | None = None
        self._late: asyncio.Queue[_Late] = asyncio.Queue(ARCHIVED_QUEUE)
        self._graphs: asyncio.Queue[tuple[i.Reporter, str, mesh.Report]] = asyncio.Queue()
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
                self.answer(incarnation, _outcome(call_id, attempt_id, value, item.clearance))
            elif isinstance(value, str):
                self._queue_late(_Late(incarnation, source.partition("/")[0], value, item), refuse)
            elif isinstance(value, i.RequestIdReused):
                refuse(
                    Kind.FAILURE_KIND_INVALID_INPUT, f"call {call_id} was made with other content", "REQUEST_ID_REUSED"
                )
            elif isinstance(value, i.CallDenied):
                refuse(Kind.FAILURE_KIND_POLICY, str(value), value.decision_id)
            elif isinstance(value, i.Moved):
                return  # the sidecar asks whoever claims the shard, and finds the same run
            else:
                refuse(Kind.FAILURE_KIND_PERMANENT, str(value), value.code)

        payload = call.input.SerializeToString() if call.HasField("input") else b""
        digest = hashlib.sha256(call.capability.encode() + b"\0" + payload).digest()
        timeout = call.timeout.ToMicroseconds() if call.HasField("timeout") else None
        run_id = new_run_id(shard, self._now())
        item = i.Call(source, attempt_id, call_id, run_id, plan, graph, digest, payload, timeout, sink)
        self._host.put(shard, item)

    def answered(self, reporter: i.Reporter, source: str, report: mesh.Report) -> None:
        """Hands the graph that an agent answered its attempt with to its shard, once it is compiled. What waits for
        that needs no bound of its own: an attempt that is out is in it once."""
        self._graphs.put_nowait((reporter, source, report))

    async def _compile(self) -> None:
        """Compiles what agents have answered, large graphs beside the event loop."""
        while True:
            reporter, source, report = await self._graphs.get()
            given = report.subgraph
            graph, plan = await self._graph(given.graph)
            payload = b""
            if given.HasField("input"):
                given.input.origin_attempt_id = report.attempt_id
                payload = given.input.SerializeToString()
            run_id = new_run_id(report.shard, self._now())
            item = i.Answered(reporter, source, report.attempt_id, run_id, plan, graph, payload, report.busy)
            assert self._host is not None
            self._host.put(report.shard, item)

    async def _graph(self, data: bytes) -> tuple[graph_pb2.Graph, Plan | Failure]:
        graph = graph_pb2.Graph()
        try:
            graph.ParseFromString(data)
            broken = self._broken(graph)
            if broken:
                return graph, _unfit([f"{violation.field}: {violation.message}" for violation in broken])
            return graph, await self._catalog.answered(graph)
        except DecodeError:
            return graph, _unfit(["it is no graph"])
        except GraphInvalid as error:
            return graph, _unfit([f"{mistake.field}: {mistake.message}" for mistake in error.mistakes])
        except Exception as error:  # a bug hurts this attempt alone: its agent would end each life of the process
            log.error("graph_not_compiled", exc_info=error)
            return graph, _unfit([f"it cannot be compiled: {type(error).__name__}: {str(error)[:200]}"])

    def _queue_late(self, late: _Late, refuse: Callable[[Kind.ValueType, str], None]) -> None:
        try:
            self._late.put_nowait(late)
        except asyncio.QueueFull:
            refuse(Kind.FAILURE_KIND_TRANSIENT, "too many repeated calls are waiting; try again")

    async def run(self) -> None:
        """Answers calls whose run is archived, and compiles graphs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._answer_late(), name="calls whose run is archived")
            group.create_task(self._compile(), name="graphs of agents")

    async def _answer_late(self) -> None:
        while True:
            incarnation, namespace, run_id, call = await self._late.get()
            response = agent_service_pb2.CallResponse(call_id=call.call_id, attempt_id=call.attempt_id)
            try:
                run = await self._archived.load(run_id, namespace)
            except ArchiveUnavailable as error:
                log.warning("call_not_answered", run_id=run_id, cause=str(error))
                run = None
            if run is not None and _of_former(run, call):
                shard = self._host.shard_of_run(run_id) if self._host is not None else None
                assert self._host is not None and shard is not None
                call.over = run_id
                self._host.put(shard, call)
                continue
            if run is not None:
                response = _outcome(call.call_id, call.attempt_id, run, call.clearance)
            else:
                response.failure.kind = Kind.FAILURE_KIND_TRANSIENT
                response.failure.message = "the outcome of the call cannot be read now; try again"
                response.failure.retryable = True
            self.answer(incarnation, response)


def _of_former(run: Run, call: i.Call) -> bool:
    """Whether a call is to be made anew: a former attempt made it, without success."""
    return run.state is not RunState.SUCCEEDED and run.submitted.parent_attempt_id != call.attempt_id


def _unfit(mistakes: Sequence[str]) -> Failure:
    """What becomes of an attempt whose agent answered with a graph that is not one."""
    message = f"the graph that the agent answered has {len(mistakes)} mistakes: {'; '.join(mistakes)}"
    if len(mistakes) == 1:
        message = f"the graph that the agent answered has a mistake: {mistakes[0]}"
    return Failure(FailureKind.INVALID_OUTPUT, message[:4096], "GRAPH_INVALID", retryable=False)


def _outcome(call_id: str, attempt_id: str, run: Run, clearance: frozenset[str]) -> agent_service_pb2.CallResponse:
    """What is answered: an output only with labels that the calling capability declares clearance for."""
    response = agent_service_pb2.CallResponse(call_id=call_id, attempt_id=attempt_id)
    if run.state is RunState.SUCCEEDED:
        response.output.SetInParent()
        put_payload(response.output, run.output)
        if beyond := label_keys(response.output) - clearance:
            labels = ", ".join(sorted(beyond))
            response.failure.kind = Kind.FAILURE_KIND_POLICY
            response.failure.message = f"the caller declares no clearance for labels of the answer: {labels}"[:4096]
    elif run.failure is not None:
        codec.put_failure(response.failure, run.failure)
    else:
        response.failure.kind = Kind.FAILURE_KIND_CANCELLED
        response.failure.message = "the call was cancelled"
    return response
