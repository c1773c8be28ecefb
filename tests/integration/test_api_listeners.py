"""What each TLS and channel option of the listeners does, seen from outside: by clients, and by bare sockets."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Authority, Credential
from antiphon_orchestrator.api.server import AddressNotFree, ServerOptions
from api_harness import TIMEOUT, Running, reason_of, serving
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.harness import eventually

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + bytes((SETTINGS, 0)) + bytes(4)
ENHANCE_YOUR_CALM = 11
QUICK = timedelta(milliseconds=300)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def api(authority: Authority) -> AsyncIterator[Running]:
    async with serving(authority) as running:
        yield running


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


class Http2:
    """A TLS connection that speaks just enough HTTP/2 to watch what the server does with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def dial(cls, api: Running, folder: Path, credential: Credential | None = None) -> Http2:
        shown = credential or api.credential()
        pem = folder / "client.pem"
        pem.write_bytes(shown.key_pem + shown.chain_pem)
        context = ssl.create_default_context(cadata=api.authority.bundle_pem.decode())
        context.load_cert_chain(pem)
        context.set_alpn_protocols(["h2"])
        host, port = api.address.split(":")
        connection = cls(*await asyncio.open_connection(host, int(port), ssl=context))
        connection._writer.write(PREFACE)
        return connection

    @property
    def server_certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True))

    async def frame(self, wanted: int) -> bytes:
        """The payload of the next frame of a type."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == wanted and not (wanted == SETTINGS and head[4] & 1):
                    return payload

    async def end(self) -> None:
        """Reads until the server closes."""
        async with asyncio.timeout(TIMEOUT):
            while await self._reader.read(4096):
                pass

    def ping(self, count: int = 1) -> None:
        self._writer.write((struct.pack(">I", 8)[1:] + bytes((PING, 0)) + bytes(4) + b"12345678") * count)

    def call(self, path: bytes) -> None:
        """A call with an empty message, whose answer has no room: the window is 0."""
        headers = {
            b":method": b"POST",
            b":scheme": b"https",
            b":path": path,
            b":authority": b"x",
            b"content-type": b"application/grpc",
            b"te": b"trailers",
        }
        # Literals without indexing, neither compressed.
        block = b"".join(b"\0" + b"".join(bytes((len(text),)) + text for text in header) for header in headers.items())
        for kind, flags, stream, payload in (
            (SETTINGS, 0, 0, struct.pack(">HI", 4, 0)),
            (HEADERS, 4, 1, block),
            (DATA, 1, 1, bytes(5)),
        ):
            head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
            self._writer.write(head + payload)

    def close(self) -> None:
        self._writer.close()


async def test_a_plaintext_client_is_refused(api: Running) -> None:
    for address in (api.address, api.join_address):
        channel = grpc.aio.insecure_channel(address)
        error = await refused(api.get_run(channel, timeout=2))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        await channel.close()


async def test_a_client_without_certificate_cannot_connect(api: Running) -> None:
    channel = api._channel(api.address, grpc.ssl_channel_credentials(api.authority.bundle_pem))
    assert (await refused(api.get_run(channel))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_authority_cannot_connect(api: Running, tmp_path: Path) -> None:
    foreign = Authority.init(tmp_path / "ca", "mesh.test")
    error = await refused(api.get_run(api.dial(api.credential(authority=foreign))))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_cannot_connect(api: Running) -> None:
    old = api.credential(ttl=timedelta(minutes=5), now=datetime.now(UTC) - timedelta(minutes=10))
    assert (await refused(api.get_run(api.dial(old)))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_authority_is_not_trusted(api: Running, tmp_path: Path) -> None:
    stranger = Authority.init(tmp_path / "ca", "mesh.test")
    shown = api.credential()
    tls = grpc.ssl_channel_credentials(stranger.bundle_pem, shown.key_pem, shown.chain_pem)
    assert (await refused(api.get_run(api._channel(api.address, tls)))).code() is grpc.StatusCode.UNAVAILABLE


async def test_garbage_on_a_socket_disturbs_nobody(api: Running) -> None:
    channel = api.dial()
    await api.get_run(channel)
    for garbage in (b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", PREFACE, bytes(range(256)) * 256):
        host, port = api.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        async with asyncio.timeout(TIMEOUT):
            try:
                while await reader.read(4096):
                    pass
            except ConnectionError:
                pass
        writer.close()
        await api.get_run(channel)


async def test_a_connection_that_never_speaks_is_closed(authority: Authority) -> None:
    async with serving(authority, options=ServerOptions(handshake_timeout=QUICK)) as api:
        host, port = api.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(TIMEOUT):  # gRPC's own limit is 120 s
            assert await reader.read(1) == b""
        writer.close()


async def test_what_is_just_too_large_is_told_so_and_what_is_much_too_large_is_not_even_read(
    authority: Authority,
) -> None:
    options = ServerOptions(message_limit=100_000, shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        channel = api.dial()
        error = await refused(api.get_run(channel, "x" * 100_001))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error) == "MESSAGE_TOO_LARGE"
        error = await refused(api.get_run(channel, "x" * 200_000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await api.get_run(channel)


async def test_a_message_of_a_stream_that_is_too_large_ends_it(authority: Authority) -> None:
    options = ServerOptions(message_limit=100_000, shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        stub: Any = run_service_pb2_grpc.RunServiceStub(api.dial())
        call = stub.SubmitRuns()
        request = run_service_pb2.SubmitRunsRequest()
        for _ in range(4):
            request.submissions.add(request_id="a").input.inline = b"x" * 30_000
        await call.write(request)
        assert reason_of(await refused(call.read())) == "MESSAGE_TOO_LARGE"


async def test_metadata_beyond_the_limit_is_refused(authority: Authority) -> None:
    async with serving(authority, options=ServerOptions(metadata_limit=4096, shutdown_grace=timedelta(0))) as api:
        channel = api.dial()
        error = await refused(api.get_run(channel, metadata=(("x-large", "y" * 8192),)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await api.get_run(channel)


async def test_an_old_connection_is_told_to_go_and_calls_go_on(authority: Authority, tmp_path: Path) -> None:
    grace = timedelta(seconds=3)  # which the calls under way have on a busy machine, too
    options = ServerOptions(connection_age=QUICK, connection_grace=grace, shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        channel = api.dial()
        connection = await Http2.dial(api, tmp_path)
        gone = asyncio.create_task(connection.frame(GOAWAY))
        while not gone.done():
            await api.get_run(channel)  # no call is lost while connections are replaced
        assert gone.result()
        await connection.end()
        connection.close()


async def test_the_number_of_streams_of_a_connection_is_announced(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority, options=ServerOptions(concurrent_streams=7, shutdown_grace=timedelta(0))) as api:
        connection = await Http2.dial(api, tmp_path)
        payload = await connection.frame(SETTINGS)
        settings = dict(struct.iter_unpack(">HI", payload))
        assert settings[3] == 7  # SETTINGS_MAX_CONCURRENT_STREAMS
        connection.close()


async def test_a_connection_beyond_those_there_may_be_is_closed_unread(authority: Authority) -> None:
    async with serving(authority, options=ServerOptions(connections=2, shutdown_grace=timedelta(0))) as api:
        first, second = api.dial(), api.dial()
        await api.get_run(first)
        await api.get_run(second)
        error = await refused(api.get_run(api.dial()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        await second.close()
        channel = api.dial()
        await api.get_run(channel, wait_for_ready=True)
        await api.get_run(first)


async def at_once(api: Running, count: int) -> Counter[str]:
    """What so many calls are told that all come before the loop looks."""
    channel = api.dial()
    await api.get_run(channel)
    calls = [asyncio.ensure_future(api.get_run(channel)) for _ in range(count)]
    await asyncio.sleep(0)  # they are on their way
    time.sleep(0.5)  # noqa: ASYNC251 - and arrive, while nobody looks
    told: Counter[str] = Counter()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, grpc.aio.AioRpcError):
            told[reason_of(outcome) if outcome.code() is not grpc.StatusCode.CANCELLED else "CANCELLED"] += 1
        else:
            told["OK"] += 1
    return told


async def test_calls_that_come_while_the_loop_is_busy_wait_for_it_up_to_a_number(authority: Authority) -> None:
    async with serving(authority, options=ServerOptions(unseen_calls=100, shutdown_grace=timedelta(0))) as api:
        assert (await at_once(api, 1500))["CANCELLED"] > 0
    async with serving(authority) as api:
        told = await at_once(api, 3500)  # more than gRPC takes unless it is told otherwise
    assert set(told) <= {"OK", "OVERLOADED"}, told


async def test_streams_beyond_those_a_caller_may_have_are_refused_over_all_its_connections(
    authority: Authority,
) -> None:
    async with serving(authority, options=ServerOptions(caller_streams=2, shutdown_grace=timedelta(0))) as api:
        request = run_service_pb2.WatchRunRequest(run_id="r1")
        stubs: list[Any] = [run_service_pb2_grpc.RunServiceStub(api.dial()) for _ in range(3)]
        first = stubs[0].WatchRun(request)
        await first.read()
        second = stubs[1].WatchRun(request)
        await second.read()
        assert reason_of(await refused(stubs[2].WatchRun(request).read())) == "OVERLOADED"
        bob: Any = run_service_pb2_grpc.RunServiceStub(api.dial(api.credential(name="bob")))
        await bob.WatchRun(request).read()
        second.cancel()

        async def opens() -> bool:
            with suppress(grpc.aio.AioRpcError):
                await stubs[2].WatchRun(request).read()
                return True
            return False

        await eventually(opens)


async def test_watchers_of_health_are_few_for_each_address_and_hold_up_no_end(authority: Authority) -> None:
    options = ServerOptions(caller_streams=2, shutdown_grace=QUICK)
    async with serving(authority, options=options) as api:
        health: Any = health_pb2_grpc.HealthStub(api.dial_join())
        watches = []
        for _ in range(2):  # kept: a call that nobody refers to is cancelled
            watches.append(health.Watch(health_pb2.HealthCheckRequest()))
            assert (await watches[-1].read()).status == health_pb2.HealthCheckResponse.SERVING
        assert reason_of(await refused(health.Watch(health_pb2.HealthCheckRequest()).read())) == "OVERLOADED"
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)).status


async def test_a_silent_connection_is_pinged_and_then_dropped(authority: Authority, tmp_path: Path) -> None:
    options = ServerOptions(
        keepalive_interval=timedelta(seconds=1), keepalive_timeout=QUICK, shutdown_grace=timedelta(0)
    )
    async with serving(authority, options=options) as api:
        connection = await Http2.dial(api, tmp_path)
        assert len(await connection.frame(PING)) == 8
        await connection.end()  # the ping was not answered
        connection.close()


async def test_a_client_that_pings_without_pause_is_dropped(api: Running, tmp_path: Path) -> None:
    connection = await Http2.dial(api, tmp_path)
    connection.ping(4)  # two strikes are forgiven
    goaway = await connection.frame(GOAWAY)
    assert int.from_bytes(goaway[4:8]) == ENHANCE_YOUR_CALM
    connection.close()


async def test_pings_within_the_allowed_interval_are_answered(authority: Authority, tmp_path: Path) -> None:
    options = ServerOptions(shortest_ping_interval=timedelta(milliseconds=1), shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        connection = await Http2.dial(api, tmp_path)
        for _ in range(10):
            connection.ping()
            await connection.frame(PING)
            await asyncio.sleep(0.002)
        connection.close()


async def test_a_port_is_not_shared_with_another_server(api: Running, authority: Authority) -> None:
    with pytest.raises(AddressNotFree, match=r"127\.0\.0\.1"):
        async with serving(authority, address=api.address):
            pass


async def test_the_server_renews_its_certificate_and_connections_live_on(authority: Authority, tmp_path: Path) -> None:
    # It starts in the past, so that the machine's clock, which TLS goes by, accepts both certificates.
    async with serving(authority, start=datetime.now(UTC) - timedelta(minutes=32)) as api:
        channel = api.dial()
        await api.get_run(channel)
        first = await Http2.dial(api, tmp_path)
        for _ in range(32):
            api.clock.advance(timedelta(minutes=1))
            await asyncio.sleep(0)
        second = await Http2.dial(api, tmp_path)
        assert second.server_certificate.serial_number != first.server_certificate.serial_number
        assert second.server_certificate.not_valid_after_utc == api.certificate.credential.not_after
        await api.get_run(channel)
        await api.get_run(api.dial())
        first.close()
        second.close()


async def test_health_is_answered_on_both_listeners_without_identity_or_deadline(api: Running) -> None:
    serving_now = health_pb2.HealthCheckResponse
    for channel in (api.dial(), api.dial_join()):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving_now.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == serving_now.SERVING
        api.server.set_serving(False)
        assert (await watch.read()).status == serving_now.NOT_SERVING
        api.server.set_serving(True)
        watch.cancel()


async def test_a_server_waits_for_the_next_call_and_not_for_the_next_of_each_method(authority: Authority) -> None:
    before = asyncio.all_tasks()

    def waiting() -> list[str]:
        coroutines = [task.get_coro() for task in asyncio.all_tasks() - before]
        names = [str(getattr(coroutine, "__qualname__", "")) for coroutine in coroutines]
        return [name for name in names if "_request_" in name]

    async with serving(authority, development=True):
        await eventually(lambda: len(waiting()) >= 2)
        assert len(waiting()) == 2, waiting()  # what asyncio.wait gets for each call, once for each listener


async def test_reflection_is_there_in_development_only(authority: Authority) -> None:
    def open_call(api: Running) -> Any:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.dial())
        return stub.ServerReflectionInfo()

    async with serving(authority, development=True) as api:
        call = open_call(api)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = (await call.read()).list_services_response.service
        assert "antiphon.v1.RunService" in [service.name for service in services]
    async with serving(authority) as api:
        # It says nothing: it is refused before it is read, and grpc.aio muddles a write with that.
        assert reason_of(await refused(open_call(api).read())) == "METHOD_UNKNOWN"


async def test_a_method_of_mutual_tls_needs_a_certificate_on_the_join_listener(api: Running) -> None:
    assert reason_of(await refused(api.get_run(api.dial_join()))) == "CERTIFICATE_REQUIRED"


async def test_whoever_watches_health_and_reads_nothing_keeps_nobody_from_knowing_it(
    api: Running, tmp_path: Path
) -> None:
    connection = await Http2.dial(api, tmp_path)
    connection.call(b"/grpc.health.v1.Health/Watch")
    await eventually(lambda: api.server.mutual_tls._health._watchers)
    stub: Any = health_pb2_grpc.HealthStub(api.dial())
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    for serving_now in (True, False, True):
        api.server.set_serving(serving_now)
        wanted = 1 if serving_now else 2
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)).status == wanted
        async with asyncio.timeout(TIMEOUT):
            assert (await watch.read()).status == wanted
    connection.close()
    await eventually(lambda: len(api.server.mutual_tls._health._watchers) == 1)
    api.server.set_serving(False)
    async with asyncio.timeout(TIMEOUT):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_stopping_lets_calls_under_way_finish(authority: Authority) -> None:
    async with serving(authority, options=ServerOptions(shutdown_grace=timedelta(seconds=TIMEOUT))) as api:
        api.runs.wait = asyncio.Event()
        call = asyncio.create_task(api.get_run(api.dial()))
        await asyncio.wait_for(api.runs.entered.wait(), TIMEOUT)
        stopping = asyncio.create_task(api.server.stop())
        await asyncio.sleep(0)
        api.runs.wait.set()
        assert (await call).run.run_id == "r1"
        await asyncio.wait_for(stopping, TIMEOUT)
