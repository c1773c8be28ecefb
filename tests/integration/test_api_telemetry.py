"""Tracing and metrics as others see them: spans of unary calls, and a scrape that needs a certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Authority
from antiphon_orchestrator.api.metrics_server import CONNECTIONS, MetricsServer
from antiphon_orchestrator.tracing import Tracing
from api_harness import IMAGE, TIMEOUT, Running, serving
from cryptography import x509
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

GET_RUN = "/antiphon.v1.RunService/GetRun"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What receives spans by OTLP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    received, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(received, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield received, f"http://127.0.0.1:{port}"
    await server.stop(0)


async def test_unary_calls_have_spans_in_the_callers_trace_and_streams_have_none(
    authority: Authority, collector: tuple[Collector, str]
) -> None:
    received, endpoint = collector
    tracing = Tracing(IMAGE, endpoint)
    async with serving(authority, outer=tracing.interceptors) as api:
        channel = api.dial()
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        await api.get_run(channel, metadata=(("traceparent", parent),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.get_run(channel, "")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stub: Any = run_service_pb2_grpc.RunServiceStub(channel)
        call = stub.WatchRun(run_service_pb2.WatchRunRequest(run_id="r"))
        await call.read()
        call.cancel()
    await asyncio.to_thread(tracing.close)  # it blocks, and the collector lives in this loop
    first, second = received.spans
    assert first.name == second.name == GET_RUN
    assert first.trace_id == bytes.fromhex("a" * 32)
    assert first.parent_span_id == bytes.fromhex("b" * 16)
    codes = {item.key: item.value.int_value for item in second.attributes}
    assert codes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def scrape(api: Running, port: int, folder: Path, *, certificate: bool = True) -> tuple[str, x509.Certificate]:
    context = ssl.create_default_context(cadata=api.authority.bundle_pem.decode())
    if certificate:
        shown = api.credential()
        pem = folder / "client.pem"
        pem.write_bytes(shown.key_pem + shown.chain_pem)
        context.load_cert_chain(pem)
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        peer = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        try:
            return (await reader.read()).decode(), x509.load_der_x509_certificate(peer)
        finally:
            writer.close()


async def test_metrics_are_given_to_holders_of_a_certificate_only(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority, start=datetime.now(UTC) - timedelta(minutes=32)) as api:
        await api.get_run(api.dial())
        async with MetricsServer("127.0.0.1", 0, api.metrics, api.certificate, api.clock) as server:
            following = asyncio.create_task(server.run())
            text, first = await scrape(api, server.port, tmp_path)
            assert 'antiphon_calls_total{code="OK",method="/antiphon.v1.RunService/GetRun"} 1.0' in text
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await scrape(api, server.port, tmp_path, certificate=False)
            for _ in range(33):
                api.clock.advance(timedelta(minutes=1))
                await asyncio.sleep(0)
            _, second = await scrape(api, server.port, tmp_path)
            assert second.serial_number != first.serial_number
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_connections_that_say_nothing_hold_up_no_scrape_and_no_end_and_are_few_and_short(
    authority: Authority, tmp_path: Path
) -> None:
    async with serving(authority) as api, asyncio.timeout(TIMEOUT):
        async with MetricsServer("127.0.0.1", 0, api.metrics, api.certificate, api.clock) as server:
            first, silent = await asyncio.open_connection("127.0.0.1", server.port)
            await scrape(api, server.port, tmp_path)
            others = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(CONNECTIONS)]
            assert await others[-1][0].read() == b""  # one too many
            assert await first.read() == b""  # after its time
            again = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(CONNECTIONS // 2)]
        for reader, _ in again:
            with suppress(ConnectionError):
                assert await reader.read() == b""
        for _, writer in (*others, *again):
            writer.close()
        silent.close()
