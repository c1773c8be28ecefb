"""An orchestrator double: serves MeshService over real mutual TLS, and IdentityService over server TLS, and lets a test
play the orchestrator by hand.

Each stream a sidecar opens becomes an `Attachment`: what the sidecar says is gathered there, what the test wants said
is sent. It welcomes and claims every shard by itself, gives every outcome its verdict unless told not to, and
acknowledges windows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1 import identity_service_pb2, identity_service_pb2_grpc
from antiphon_certs import Authority, Credential, Grants, Identity, Kind, Profile, new_key_and_csr

WAIT = 20.0
SHARDS = 4


def credential_for(
    authority: Authority, identity: Identity, grants: Grants | None = None, ttl: timedelta = timedelta(hours=1)
) -> Credential:
    """A key and its certificate."""
    key_pem, csr_pem = new_key_and_csr(identity)
    return Credential.from_pem(key_pem, authority.issue(csr_pem, identity, ttl, grants), authority.bundle_pem)


class Attachment:
    """One stream, from the orchestrator's side."""

    def __init__(self, hello: mesh.Hello, settings: FakeMesh) -> None:
        self.hello = hello
        self.requests: list[mesh.AttachRequest] = []
        self.reports: dict[str, list[mesh.Report]] = {}
        self.inventories: dict[int, list[mesh.ShardInventory]] = {}
        self.windows = {window.agent: window for window in hello.windows}
        self.agents = {agent.name: agent for agent in hello.agents}
        self.calls: list[Any] = []
        self.drained = False
        self.closed = asyncio.Event()
        self.settings = settings
        self._down: asyncio.Queue[mesh.AttachResponse | None] = asyncio.Queue()
        self._changed = asyncio.Condition()

    def send(self, response: mesh.AttachResponse) -> None:
        self._down.put_nowait(response)

    def end(self) -> None:
        """End the stream without an error."""
        self._down.put_nowait(None)

    def offer(
        self,
        *attempt_ids: str,
        agent: str = "echo",
        capability: str = "text.echo",
        shard: int = 0,
        epoch: int = 1,
        input: bytes = b'"hello"',
        timeout: float = 30.0,
    ) -> None:
        """Offer attempts, in one message; the token of each is its id."""
        response = mesh.AttachResponse()
        for attempt_id in attempt_ids:
            offer = response.offers.add(agent=agent, shard=shard, epoch=epoch)
            offer.assignment.attempt_id = attempt_id
            offer.assignment.attempt_token = attempt_id.encode()
            offer.assignment.idempotency_key = f"key-{attempt_id}"
            offer.assignment.capability, offer.assignment.version = capability, "1"
            offer.assignment.namespace = "team-a"
            offer.assignment.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            offer.assignment.input.inline = input
            offer.assignment.number = 1
            offer.assignment.remaining_timeout.FromTimedelta(timedelta(seconds=timeout))
        self.send(response)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something the sidecar says to make the condition true."""
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(condition)

    async def outcome(self, attempt_id: str) -> mesh.Report:
        """The first report of an attempt that gets a verdict."""
        await self.until(lambda: self._outcomes(attempt_id))
        return self._outcomes(attempt_id)[0]

    def _outcomes(self, attempt_id: str) -> list[mesh.Report]:
        return [report for report in self.reports.get(attempt_id, []) if _final(report)]

    async def window(self, agent: str, slots: int) -> None:
        """Wait until the agent's window has that size."""
        await self.until(lambda: agent in self.windows and self.windows[agent].slots == slots)

    async def messages(self) -> AsyncIterator[mesh.AttachResponse]:
        while (response := await self._down.get()) is not None:
            yield response

    async def receive(self, request: mesh.AttachRequest) -> None:
        answer = mesh.AttachResponse()
        async with self._changed:
            self.requests.append(request)
            for inventory in request.inventories:
                self.inventories.setdefault(inventory.shard, []).append(inventory)
            for report in request.reports:
                self.reports.setdefault(report.attempt_id, []).append(report)
                if self.settings.verdicts and _final(report):
                    answer.verdicts.add(attempt_id=report.attempt_id, kind=mesh.VERDICT_KIND_ACCEPTED)
            for window in request.windows:
                self.windows[window.agent] = window
                answer.window_acks.add(agent=window.agent, generation=window.generation)
            for change in request.agents:
                if change.HasField("present"):
                    self.agents[change.present.name] = change.present
                else:
                    self.agents.pop(change.gone, None)
            self.calls.extend(request.calls)
            self.drained = self.drained or request.drain
            self._changed.notify_all()
        if answer.ListFields():
            self.send(answer)

    async def over(self) -> None:
        async with self._changed:
            self.closed.set()
            self._changed.notify_all()


def _final(report: mesh.Report) -> bool:
    return report.WhichOneof("kind") in ("output", "failure", "returned")


class FakeMesh(mesh_service_pb2_grpc.MeshServiceServicer, identity_service_pb2_grpc.IdentityServiceServicer):
    """One replica. `verdicts`: whether outcomes get theirs; `epoch`: of its claims, one for each stream to come."""

    def __init__(self, authority: Authority, replica_id: str = "one") -> None:
        self.authority = authority
        self.replica_id = replica_id
        self.address = ""
        self.join_address = ""
        self.verdicts = True
        self.epoch = 1
        self.attachments: list[Attachment] = []
        self.joins: list[identity_service_pb2.JoinRequest] = []
        self.renewals = 0
        self.grants = Grants(("echo",), ("text.*",))
        self.leaf_lifetime = timedelta(hours=1)
        self.topology: list[tuple[str, str]] = []
        self.greeted = asyncio.Event()
        """Set when a hello has come while `welcomes` is clear."""
        self.welcomes = asyncio.Event()
        """Hellos are answered while it is set."""
        self.welcomes.set()
        self.stop: Callable[[], Awaitable[None]]
        self._changed = asyncio.Condition()

    async def attachment(self, number: int = 1) -> Attachment:
        """The stream with that number, once it is there."""
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(lambda: len(self.attachments) >= number)
        return self.attachments[number - 1]

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[mesh.AttachResponse]:
        first = await anext(request_iterator)
        attachment = Attachment(first.hello, self)
        welcome = mesh.AttachResponse()
        welcome.welcome.replica_id = self.replica_id
        welcome.welcome.inline_limit = 65_536
        for replica_id, address in self.topology or [(self.replica_id, self.address)]:
            welcome.topology.replicas.add(replica_id=replica_id, address=address)
        for shard in range(SHARDS):
            welcome.claims.add(shard=shard, epoch=self.epoch)
        if not self.welcomes.is_set():
            self.greeted.set()
        await self.welcomes.wait()
        yield welcome
        async with self._changed:
            self.attachments.append(attachment)
            self._changed.notify_all()

        async def read() -> None:
            async for request in request_iterator:
                await attachment.receive(request)

        reader = asyncio.create_task(read())
        try:
            async for response in attachment.messages():
                yield response
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            await attachment.over()

    async def Join(self, request: Any, context: Any) -> identity_service_pb2.JoinResponse:
        self.joins.append(request)
        grant = self._grant(request.signing_request)
        return identity_service_pb2.JoinResponse(certificate=grant)

    async def Renew(self, request: Any, context: Any) -> identity_service_pb2.RenewResponse:
        self.renewals += 1
        return identity_service_pb2.RenewResponse(certificate=self._grant(request.signing_request))

    async def CreateToken(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not played here")

    async def GetTrustBundle(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not played here")

    def _grant(self, signing_request: str) -> identity_service_pb2.CertificateGrant:
        identity = sidecar_identity(self.authority)
        chain = self.authority.issue(signing_request.encode(), identity, self.leaf_lifetime, self.grants)
        return identity_service_pb2.CertificateGrant(
            chain=chain.decode(), trust_bundle=self.authority.bundle_pem.decode(), spiffe_id=identity.uri
        )


def sidecar_identity(authority: Authority) -> Identity:
    """Who the sidecars of these tests are."""
    return Identity(authority.trust_domain, "team-a", Kind.SIDECAR, "edge-1")


@asynccontextmanager
async def serving(
    authority: Authority, replica_id: str = "one", address: str = "127.0.0.1:0"
) -> AsyncIterator[FakeMesh]:
    """A replica on loopback ports."""
    fake = FakeMesh(authority, replica_id)
    own = credential_for(authority, Identity(authority.trust_domain, "system", Kind.ORCHESTRATOR, replica_id))
    server = grpc.aio.server()
    mesh_service_pb2_grpc.add_MeshServiceServicer_to_server(fake, server)
    identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(fake, server)
    pair = [(own.key_pem, own.chain_pem)]
    mutual = grpc.ssl_server_credentials(pair, own.bundle_pem, require_client_auth=True)
    fake.address = f"127.0.0.1:{server.add_secure_port(address, mutual)}"
    joining = grpc.ssl_server_credentials(pair)
    fake.join_address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', joining)}"
    fake.stop = lambda: server.stop(None)
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


def now() -> datetime:
    """The present; a TLS stack has no other clock."""
    return datetime.now(UTC)


def keep(
    folder: Path, authority: Authority, addresses: list[str], grants: Grants, ttl: timedelta = timedelta(hours=1)
) -> None:
    """A state folder as a sidecar leaves it: it has joined before."""
    credential = credential_for(authority, sidecar_identity(authority), grants, ttl)
    profile = Profile(
        folder / "profiles" / "sidecar", tuple(addresses), ("127.0.0.1:9",), authority.trust_domain, "team-a"
    )
    profile.credential.store(credential.key_pem, credential.chain_pem, credential.bundle_pem)
    profile.save()
