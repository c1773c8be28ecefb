"""The certificates at work: real handshakes, over `ssl` and over gRPC, between members and with strangers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from antiphon_certs import (
    ORCHESTRATOR_DNS_NAME,
    Authority,
    Credential,
    Grants,
    Identity,
    JoinToken,
    Kind,
    PeerVerifier,
    mint,
)

Issue = Callable[..., Credential]
ORCHESTRATOR = Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one")
DEADLINE = 10


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that is valid today: a TLS stack has no other clock."""
    return Authority.init(tmp_path_factory.mktemp("live") / "ca", "mesh.test")


def context_of(folder: Path, credential: Credential, *, server: bool, trust: bytes | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=(trust or credential.bundle_pem).decode())
    key, chain = folder / f"{credential.fingerprint}.key", folder / f"{credential.fingerprint}.pem"
    key.write_bytes(credential.key_pem)
    chain.write_bytes(credential.chain_pem)
    context.load_cert_chain(chain, key)
    return context


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A TLS server on the loopback that answers each connection with its peer's certificate (DER); yields the port."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.write(connection.getpeercert(binary_form=True) or b"")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def call(port: int, context: ssl.SSLContext, name: str = ORCHESTRATOR_DNS_NAME) -> bytes:
    """The server's answer. Raises `ssl.SSLError` or `ConnectionError` when either side refuses the other."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        try:
            answer = await reader.read()
        finally:
            writer.close()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return answer


@pytest.mark.asyncio
@pytest.mark.parametrize("name", [ORCHESTRATOR_DNS_NAME, "one.orchestrator.system.mesh.test", "localhost", "127.0.0.1"])
async def test_a_member_reaches_an_orchestrator_by_any_of_its_names(
    live: Authority, sidecar: Identity, credential_for: Issue, tmp_path: Path, name: str
) -> None:
    server = context_of(tmp_path, credential_for(live, ORCHESTRATOR, now=None), server=True)
    client = context_of(tmp_path, credential_for(live, sidecar, Grants(("writer",)), now=None), server=False)
    async with serving(server) as port:
        peer = PeerVerifier("mesh.test").verify(await call(port, client, name), datetime.now(UTC))
    assert peer.identity == sidecar
    assert peer.grants == Grants(("writer",))


@pytest.mark.asyncio
async def test_a_certificate_of_a_foreign_authority_is_refused(
    live: Authority, sidecar: Identity, credential_for: Issue, tmp_path: Path
) -> None:
    foreign = Authority.init(tmp_path / "foreign", "mesh.test")
    server = context_of(tmp_path, credential_for(live, ORCHESTRATOR, now=None), server=True)
    stranger = credential_for(foreign, sidecar, now=None)
    async with serving(server) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await call(port, context_of(tmp_path, stranger, server=False, trust=live.bundle_pem))
        with pytest.raises(ssl.SSLCertVerificationError):
            await call(port, context_of(tmp_path, stranger, server=False))


@pytest.mark.asyncio
async def test_an_expired_certificate_is_refused(
    live: Authority, sidecar: Identity, credential_for: Issue, tmp_path: Path
) -> None:
    server = context_of(tmp_path, credential_for(live, ORCHESTRATOR, now=None), server=True)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    expired = credential_for(live, sidecar, ttl=timedelta(minutes=30), now=an_hour_ago)
    async with serving(server) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await call(port, context_of(tmp_path, expired, server=False))


@pytest.mark.asyncio
async def test_a_sidecar_cannot_pose_as_an_orchestrator(
    live: Authority, sidecar: Identity, credential_for: Issue, tmp_path: Path
) -> None:
    impostor = context_of(tmp_path, credential_for(live, sidecar, now=None), server=True)
    client = context_of(tmp_path, credential_for(live, sidecar, now=None), server=False)
    async with serving(impostor) as port:
        for name in (ORCHESTRATOR_DNS_NAME, "edge-1.sidecar.team-a.mesh.test"):
            with pytest.raises(ssl.SSLCertVerificationError):
                await call(port, client, name)


@pytest.mark.asyncio
async def test_a_joiner_trusts_the_root_of_its_token_and_no_other(
    live: Authority, sidecar: Identity, credential_for: Issue, tmp_path: Path
) -> None:
    text, _ = mint(
        sidecar,
        Grants(),
        timedelta(minutes=10),
        root_pem=live.root_pem,
        addresses=["127.0.0.1:1"],
        join_addresses=["127.0.0.1:2"],
        now=datetime.now(UTC),
    )
    joiner = ssl.create_default_context(cadata=JoinToken.parse(text).root_pem.decode())
    foreign = Authority.init(tmp_path / "foreign", "mesh.test")
    for authority, trusted in ((live, True), (foreign, False)):
        server = context_of(tmp_path, credential_for(authority, ORCHESTRATOR, now=None), server=True)
        server.verify_mode = ssl.CERT_NONE
        async with serving(server) as port:
            async with asyncio.timeout(DEADLINE):
                try:
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1", port, ssl=joiner, server_hostname=ORCHESTRATOR_DNS_NAME
                    )
                    writer.close()
                    reached = True
                except ssl.SSLCertVerificationError:
                    reached = False
        assert reached is trusted


@pytest.mark.asyncio
async def test_grpc_hands_over_the_certificate_that_names_the_caller(
    live: Authority, sidecar: Identity, credential_for: Issue
) -> None:
    verifier = PeerVerifier("mesh.test")

    async def who(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        certificate = next(iter(context.auth_context()["x509_pem_cert"]))
        return verifier.verify(certificate, datetime.now(UTC)).identity.uri.encode()

    own, other = credential_for(live, ORCHESTRATOR, now=None), credential_for(live, sidecar, now=None)
    server = grpc.aio.server()
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Identity", handlers)])
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials([(own.key_pem, own.chain_pem)], own.bundle_pem, require_client_auth=True),
    )
    await server.start()
    try:
        credentials = grpc.ssl_channel_credentials(other.bundle_pem, other.key_pem, other.chain_pem)
        options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            assert (
                await channel.unary_unary("/test.Identity/Who", bytes, bytes)(b"", timeout=DEADLINE)
                == sidecar.uri.encode()
            )
    finally:
        await server.stop(None)
