"""An orchestrator double: the public services over real mutual TLS, with answers a test decides.

Runs end at once unless `hold` is set. `refusals` are answered first, one a call, whatever is called.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import grpc
from antiphon.v1 import (
    error_pb2,
    graph_service_pb2,
    graph_service_pb2_grpc,
    identity_service_pb2,
    identity_service_pb2_grpc,
    payload_pb2,
    payload_service_pb2,
    payload_service_pb2_grpc,
    registry_pb2,
    registry_service_pb2,
    registry_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from antiphon_certs import Authority, Credential, Identity, Kind, new_key_and_csr

from tests.fakes.agent_socket import refuse

DOMAIN = "mesh.test"
CLIENT = Identity(DOMAIN, "team-a", Kind.CLIENT, "alice")


def credential(authority: Authority, identity: Identity = CLIENT, *, now: datetime | None = None) -> Credential:
    """A credential that is valid for an hour from now on."""
    key_pem, csr_pem = new_key_and_csr(identity)
    return Credential.from_pem(key_pem, authority.issue(csr_pem, identity, now=now), authority.bundle_pem)


class Orchestrator(
    run_service_pb2_grpc.RunServiceServicer,
    graph_service_pb2_grpc.GraphServiceServicer,
    payload_service_pb2_grpc.PayloadServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    identity_service_pb2_grpc.IdentityServiceServicer,
):
    def __init__(self, authority: Authority) -> None:
        self.credential = credential(authority, Identity(DOMAIN, "system", Kind.ORCHESTRATOR, "one"))
        self.port = 0
        self.refusals: deque[tuple[error_pb2.ErrorReason.ValueType, dict[str, Any]]] = deque()
        self.errors: dict[str, error_pb2.Error] = {}
        """Answer to a submission of the stream, by graph name; each is given once."""
        self.hold: asyncio.Event | None = None
        self.expired = False
        """Whether the next stream of submissions ends for its certificate, in place of its next answer."""
        self.submissions: list[run_service_pb2.SubmitRunRequest] = []
        self.batches: list[int] = []
        self.unanswered = 0
        self.most_unanswered = 0
        self.calls: list[tuple[dict[str, str], float | None, str]] = []
        """Metadata, seconds to the deadline and peer certificate's fingerprint of each call."""
        self.events: list[run_pb2.RunEvent] = []
        self.more = asyncio.Event()
        self.blobs: dict[str, bytes] = {}
        self.break_download_at = 0
        self._server: grpc.aio.Server | None = None
        self._news = asyncio.Condition()

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        run_service_pb2_grpc.add_RunServiceServicer_to_server(self, self._server)
        graph_service_pb2_grpc.add_GraphServiceServicer_to_server(self, self._server)
        payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(self, self._server)
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(self, self._server)
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(self, self._server)
        own = self.credential
        tls = grpc.ssl_server_credentials([(own.key_pem, own.chain_pem)], own.bundle_pem, require_client_auth=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", tls)
        await self._server.start()

    async def stop(self) -> None:
        """As when it is killed: every call breaks."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when calls have made `condition` true."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(condition)

    def emit(self, count: int) -> None:
        """Add events to the history of the one run there is; watchers see them."""
        for _ in range(count):
            self.events.append(run_pb2.RunEvent(event_seq=len(self.events) + 1))
        self.more.set()

    def run(self, request_id: str, ended: bool) -> run_pb2.Run:
        state = run_pb2.RUN_STATE_SUCCEEDED if ended else run_pb2.RUN_STATE_RUNNING
        run = run_pb2.Run(run_id=f"run-of-{request_id}", state=state, namespace="team-a")
        if ended:
            run.output.inline = b'{"answer":42}'
        return run

    async def _enter(self, context: Any) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        certificate = next(iter(context.auth_context()["x509_pem_cert"]))
        self.calls.append((metadata, context.time_remaining(), hashlib.sha256(certificate).hexdigest()))
        async with self._news:
            self._news.notify_all()
        if self.refusals:
            reason, settings = self.refusals.popleft()
            await refuse(context, reason, **settings)

    # Runs

    async def SubmitRun(self, request: Any, context: Any) -> Any:
        self.submissions.append(request)
        await self._enter(context)
        if request.wait and self.hold is not None:
            await self.hold.wait()
        return run_service_pb2.SubmitRunResponse(run=self.run(request.request_id, request.wait))

    async def SubmitRuns(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        async for request in request_iterator:
            self.batches.append(len(request.submissions))
            self.submissions.extend(request.submissions)
            self.unanswered += len(request.submissions)
            self.most_unanswered = max(self.most_unanswered, self.unanswered)
            async with self._news:
                self._news.notify_all()
            if self.hold is not None:
                await self.hold.wait()
            if self.expired:
                self.expired = False
                await refuse(context, error_pb2.ERROR_REASON_CERTIFICATE_EXPIRED)
            response = run_service_pb2.SubmitRunsResponse()
            for one in request.submissions:
                error = self.errors.pop(one.registered.name, None)
                if error is not None:
                    response.results.add(request_id=one.request_id, error=error)
                else:
                    response.results.add(request_id=one.request_id, run=self.run(one.request_id, one.wait))
            self.unanswered -= len(request.submissions)
            yield response

    async def GetRun(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        if self.hold is not None:
            await self.hold.wait()
        return run_service_pb2.GetRunResponse(run=run_pb2.Run(run_id=request.run_id))

    async def ListRuns(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        start, size = int(request.page_token or 0), request.page_size or 50
        runs = [run_pb2.Run(run_id=str(number)) for number in range(start, min(start + size, 7))]
        token = str(start + size) if start + size < 7 else ""
        return run_service_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def ListTasks(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return run_service_pb2.ListTasksResponse(tasks=[run_pb2.Task(key=run_pb2.TaskKey(task_id="a"))])

    async def GetTask(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return run_service_pb2.GetTaskResponse(task=run_pb2.Task(key=request.key))

    async def ListAttempts(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return run_service_pb2.ListAttemptsResponse(attempts=[run_pb2.Attempt(number=1), run_pb2.Attempt(number=2)])

    async def CancelRun(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        run = run_pb2.Run(run_id=request.run_id, state=run_pb2.RUN_STATE_CANCELLED)
        return run_service_pb2.CancelRunResponse(run=run)

    async def ExplainTask(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return run_service_pb2.ExplainTaskResponse(task=run_pb2.Task(key=request.key))

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        cursor = request.cursor
        while True:
            self.more.clear()
            news, ended = self.events[cursor:], self.hold is None
            cursor = len(self.events)
            if news:
                yield run_service_pb2.WatchRunResponse(events=news)
            if ended:
                yield run_service_pb2.WatchRunResponse(run=self.run(request.run_id, True))
                return
            await self.more.wait()

    # Graphs

    async def RegisterGraph(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        registered = graph_service_pb2.RegisteredGraph(graph=request.graph)
        return graph_service_pb2.RegisterGraphResponse(graph=registered)

    async def ValidateGraph(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        mistake = graph_service_pb2.GraphMistake(field="tasks[0].when", message="no", code="expression")
        return graph_service_pb2.ValidateGraphResponse(mistakes=[mistake])

    async def GetGraph(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        registered = graph_service_pb2.RegisteredGraph()
        registered.graph.name, registered.graph.version = request.name, request.version or "9"
        return graph_service_pb2.GetGraphResponse(graph=registered)

    async def ListGraphs(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return graph_service_pb2.ListGraphsResponse(graphs=[graph_service_pb2.RegisteredGraph()])

    # Registry

    async def ListAgents(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return registry_service_pb2.ListAgentsResponse(agents=[registry_pb2.Agent(name="a")])

    async def GetAgent(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return registry_service_pb2.GetAgentResponse(agent=registry_pb2.Agent(name=request.name))

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        yield registry_service_pb2.WatchAgentsResponse(agents=[registry_pb2.Agent(name="a")])

    async def ListCapabilities(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return registry_service_pb2.ListCapabilitiesResponse(
            capabilities=[registry_service_pb2.OfferedCapability(agents=["a"])]
        )

    async def DrainAgent(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        agent = registry_pb2.Agent(name=request.name, state=registry_pb2.AGENT_STATE_DRAINING)
        return registry_service_pb2.DrainAgentResponse(agent=agent)

    async def SuspendAgent(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        agent = registry_pb2.Agent(name=request.name, state=registry_pb2.AGENT_STATE_SUSPENDED)
        return registry_service_pb2.SuspendAgentResponse(agent=agent)

    async def ResumeAgent(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        agent = registry_pb2.Agent(name=request.name, state=registry_pb2.AGENT_STATE_ACTIVE)
        return registry_service_pb2.ResumeAgentResponse(agent=agent)

    # Identity

    async def CreateToken(self, request: Any, context: Any) -> Any:
        await self._enter(context)
        return identity_service_pb2.CreateTokenResponse(token=f"{request.kind}:{request.name}")

    async def Join(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Renew(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    # Payloads

    async def UploadPayload(self, request_iterator: Any, context: Any) -> Any:
        await self._enter(context)
        data, announced = b"", ""
        async for request in request_iterator:
            announced = announced or request.digest
            data += request.chunk
        digest = hashlib.sha256(data).hexdigest()
        assert announced == digest
        self.blobs[digest] = data
        return payload_service_pb2.UploadPayloadResponse(blob=payload_pb2.BlobReference(digest=digest, size=len(data)))

    async def DownloadPayload(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter(context)
        if request.digest not in self.blobs:
            await refuse(context, error_pb2.ERROR_REASON_PAYLOAD_NOT_FOUND, digest=request.digest)
        data = self.blobs[request.digest]
        for start in range(request.offset, len(data), 1 << 20):
            if self.break_download_at and start >= self.break_download_at:
                self.break_download_at = 0
                await refuse(context, error_pb2.ERROR_REASON_NOT_SERVING, retry=0.01)
            yield payload_service_pb2.DownloadPayloadResponse(chunk=data[start : start + (1 << 20)])


@asynccontextmanager
async def orchestrator(authority: Authority) -> AsyncIterator[Orchestrator]:
    """A running double."""
    double = Orchestrator(authority)
    await double.start()
    try:
        yield double
    finally:
        await double.stop()
