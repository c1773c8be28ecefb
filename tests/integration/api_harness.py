"""A real API server on loopback with real certificates, an echo in place of the services, and its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
from antiphon.v1 import (
    context_service_pb2_grpc,
    graph_service_pb2_grpc,
    identity_service_pb2_grpc,
    payload_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from antiphon_certs import (
    ORCHESTRATOR_DNS_NAME,
    Authority,
    Credential,
    Grants,
    Identity,
    Kind,
    new_key_and_csr,
)
from antiphon_orchestrator.api.call import caller, now_waiting
from antiphon_orchestrator.api.certificate import IssuedHere, LiveCertificate
from antiphon_orchestrator.api.context_service import ContextService
from antiphon_orchestrator.api.graph_service import GraphService
from antiphon_orchestrator.api.identity_service import Endpoints, IdentityService
from antiphon_orchestrator.api.image import Image
from antiphon_orchestrator.api.payload_service import PayloadService
from antiphon_orchestrator.api.server import ApiServer, Parts, ServerOptions
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import Blobs
from antiphon_orchestrator.context import Quota, SharedContext
from antiphon_orchestrator.policy import CedarPolicies, PolicyPort, dev_profile
from antiphon_orchestrator.revocations import Revocations
from antiphon_orchestrator.store import Store
from antiphon_orchestrator.telemetry import Metrics
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.harness import eventually

DOMAIN = "mesh.test"
TIMEOUT = 30
RECOVERY_WINDOW = timedelta(days=7)
IMAGE = Image.load()


class SteppedClock:
    """Wall clock time that moves only when told; sleepers wake when their time has come."""

    def __init__(self, start: datetime) -> None:
        self.time = start
        self._sleepers: list[tuple[datetime, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + duration, future))
        await future

    def advance(self, duration: timedelta) -> None:
        self.time += duration
        due = [future for at, future in self._sleepers if at <= self.time]
        self._sleepers = [(at, future) for at, future in self._sleepers if at > self.time]
        for future in due:
            if not future.done():
                future.set_result(None)

    async def settle(self, duration: timedelta) -> None:
        """Advance, and return when whoever woke has done its work and sleeps again."""
        asleep = len(self._sleepers)
        self.advance(duration)
        await eventually(lambda: len(self._sleepers) == asleep)


class EchoRuns(run_service_pb2_grpc.RunServiceServicer):
    """Handlers that show what the framework hands them, and fail in the ways handlers fail."""

    def __init__(self) -> None:
        self.fail: BaseException | None = None
        self.wait: asyncio.Event | None = None
        self.flood = False
        self.written = 0
        self.entered = asyncio.Event()
        self.stream_ended = asyncio.Event()

    async def GetRun(self, request: Any, context: Any) -> run_service_pb2.GetRunResponse:
        self.entered.set()
        if self.wait is not None:
            await self.wait.wait()
        if self.fail is not None:
            raise self.fail
        who = caller()
        return run_service_pb2.GetRunResponse(
            run=run_pb2.Run(run_id=request.run_id, namespace=who.namespace, principal=who.principal)
        )

    async def SubmitRun(self, request: Any, context: Any) -> run_service_pb2.SubmitRunResponse:
        """Waits as for the end of a run."""
        now_waiting()
        self.entered.set()
        if self.wait is not None:
            await self.wait.wait()
        return run_service_pb2.SubmitRunResponse()

    async def SubmitRuns(self, requests: Any, context: Any) -> AsyncIterator[run_service_pb2.SubmitRunsResponse]:
        try:
            async for request in requests:
                if self.fail is not None:
                    raise self.fail
                response = run_service_pb2.SubmitRunsResponse()
                for submission in request.submissions:
                    response.results.add(request_id=submission.request_id)
                yield response
        finally:
            self.stream_ended.set()

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        try:
            yield run_service_pb2.WatchRunResponse()
            while self.flood:
                self.written += 1
                yield run_service_pb2.WatchRunResponse(run=run_pb2.Run(run_id="x" * 60_000))
            await asyncio.Event().wait()
        finally:
            self.stream_ended.set()


@dataclass
class Running:
    """A server under test, and how to reach it."""

    server: ApiServer
    authority: Authority
    runs: EchoRuns
    clock: SteppedClock
    metrics: Metrics
    certificate: LiveCertificate
    context: SharedContext | None
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.mutual_tls.port}"

    @property
    def join_address(self) -> str:
        return f"127.0.0.1:{self.server.join.port}"

    def credential(
        self,
        kind: Kind = Kind.CLIENT,
        name: str = "alice",
        namespace: str = "team-a",
        *,
        ttl: timedelta = timedelta(hours=1),
        now: datetime | None = None,
        authority: Authority | None = None,
    ) -> Credential:
        identity = Identity(DOMAIN, namespace, kind, name)
        key, request = new_key_and_csr(identity)
        chain = (authority or self.authority).issue(request, identity, ttl, Grants(), now=now)
        return Credential.from_pem(key, chain, self.authority.bundle_pem)

    def dial(self, credential: Credential | None = None, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """A channel with mutual TLS; as the client alice unless told otherwise."""
        shown = credential or self.credential()
        tls = grpc.ssl_channel_credentials(self.authority.bundle_pem, shown.key_pem, shown.chain_pem)
        return self._channel(self.address, tls, options)

    def dial_join(self) -> grpc.aio.Channel:
        return self._channel(self.join_address, grpc.ssl_channel_credentials(self.authority.bundle_pem))

    def _channel(
        self, address: str, tls: grpc.ChannelCredentials, options: Sequence[tuple[str, Any]] = ()
    ) -> grpc.aio.Channel:
        name = ("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)
        # Subchannels are shared within a process unless told otherwise, and then a certificate would be, too.
        channel = grpc.aio.secure_channel(address, tls, [name, ("grpc.use_local_subchannel_pool", 1), *options])
        self.channels.append(channel)
        return channel

    async def get_run(self, channel: grpc.aio.Channel, run_id: str = "r1", **call: Any) -> Any:
        stub: Any = run_service_pb2_grpc.RunServiceStub(channel)
        return await stub.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), **{"timeout": TIMEOUT, **call})

    async def submit(self, channel: grpc.aio.Channel) -> Any:
        """A call that waits for the end of a run."""
        stub: Any = run_service_pb2_grpc.RunServiceStub(channel)
        request = run_service_pb2.SubmitRunRequest(request_id="a", wait=True, registered={"name": "g"})
        return await stub.SubmitRun(request, timeout=TIMEOUT)


@asynccontextmanager
async def serving(
    authority: Authority,
    *,
    policy: PolicyPort | None = None,
    store: Store | None = None,
    blobs: Blobs | None = None,
    payload_limit: int = 1 << 20,
    payload_idle: float = 30.0,
    options: ServerOptions | None = None,
    development: bool = False,
    address: str = "127.0.0.1:0",
    start: datetime | None = None,
    outer: tuple[Any, ...] = (),
    quota: Quota | None = None,
) -> AsyncIterator[Running]:
    """A server on two ports of the system's choice, stopped at the end: the echo, and with a store or blobs the
    services that live on them."""
    clock, metrics, runs = SteppedClock(start or datetime.now(UTC)), Metrics(), EchoRuns()
    source = IssuedHere(lambda: authority, Identity(DOMAIN, "system", Kind.ORCHESTRATOR, "one"), (), clock)
    certificate = LiveCertificate(source, source.renew, clock, metrics)
    policies = policy or CedarPolicies(dev_profile())
    # Without a store its queue is never emptied.
    audit = AuditLog(cast(Store, store), "one", lambda: int(clock.now().timestamp() * 1e6))
    revocations = Revocations(cast(Store, store), clock)
    parts = Parts(
        IMAGE, certificate, policies, audit, metrics, DOMAIN, revocations.check, development, clock, outer=outer
    )
    limits = options or ServerOptions(shutdown_grace=timedelta(0))

    context = None
    if store is not None and blobs is not None:
        context = SharedContext(store, policies, audit, blobs, quota or Quota(), clock)
        await context.load()

    def register(grpc_server: grpc.aio.Server) -> None:
        run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, grpc_server)
        if store is not None:
            identities = IdentityService(
                lambda: authority, store, policies, clock, endpoints, audit, revocations, RECOVERY_WINDOW
            )
            identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(identities, grpc_server)
            graphs = GraphService(store, clock, audit, lambda _namespace: lambda _capability, _trait: False)
            graph_service_pb2_grpc.add_GraphServiceServicer_to_server(graphs, grpc_server)
        if context is not None:
            context_service_pb2_grpc.add_ContextServiceServicer_to_server(ContextService(context), grpc_server)
        if blobs is not None:
            payloads = PayloadService(blobs, limit=payload_limit, transfers=16, idle=payload_idle)
            payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(payloads, grpc_server)

    def endpoints() -> Endpoints:
        return Endpoints((f"127.0.0.1:{server.mutual_tls.port}",), (f"127.0.0.1:{server.join.port}",))

    server = ApiServer(
        parts,
        address=address,
        join_address="127.0.0.1:0",
        services=[register],
        options=limits,
        join_options=limits,
    )
    await server.start()
    server.set_serving(True)
    running = Running(server, authority, runs, clock, metrics, certificate, context)
    tasks = [asyncio.create_task(server.run())]
    if store is not None:
        await audit.load()
        await revocations.load()
        tasks += [asyncio.create_task(audit.run()), asyncio.create_task(revocations.run())]
    try:
        yield running
    finally:
        for channel in running.channels:
            await channel.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status of a refused call."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no status details: {error.code()} {error.details()}"
    return status


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of a refused call, having checked what holds for every one of ours."""
    infos = details(status_of(error), error_details_pb2.ErrorInfo)
    assert len(infos) == 1
    assert infos[0].domain == "antiphon.v1"
    return str(infos[0].reason)


def details(status: status_pb2.Status, kind: Callable[[], Any]) -> list[Any]:
    """The details of one type."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found
