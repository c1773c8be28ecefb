"""Every call passes the checks over real TLS, and every refusal is a status of the registry."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon.v1 import error_pb2, graph_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Authority, Kind
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.interceptor import RECHECK
from antiphon_orchestrator.api.server import ServerOptions
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile, dev_profile
from api_harness import TIMEOUT, Running, details, reason_of, serving, status_of
from google.rpc import error_details_pb2

from tests.harness import eventually

RUN_NOT_FOUND = error_pb2.ERROR_REASON_RUN_NOT_FOUND
Stub: Any = run_service_pb2_grpc.RunServiceStub


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def api(authority: Authority) -> AsyncIterator[Running]:
    async with serving(authority) as running:
        yield running


async def test_a_handler_sees_who_calls(api: Running) -> None:
    run = (await api.get_run(api.dial())).run
    assert (run.namespace, run.principal) == ("team-a", "spiffe://mesh.test/ns/team-a/client/alice")


async def test_a_refusal_carries_reason_code_and_metadata(api: Running) -> None:
    api.runs.fail = ApiError(RUN_NOT_FOUND, run_id="r1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(caught.value) == "RUN_NOT_FOUND"
    info = details(status_of(caught.value), error_details_pb2.ErrorInfo)[0]
    assert dict(info.metadata) == {"run_id": "r1"}
    assert not details(status_of(caught.value), error_details_pb2.RetryInfo)


async def test_a_refusal_inside_a_group_of_tasks_is_found(api: Running) -> None:
    api.runs.fail = ExceptionGroup("parts", [RuntimeError("consequence"), ApiError(RUN_NOT_FOUND, run_id="r1")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial())
    assert reason_of(caught.value) == "RUN_NOT_FOUND"


async def test_a_bug_shows_its_trace_id_and_nothing_else(api: Running) -> None:
    log = io.StringIO()
    telemetry.configure_logging(stream=log)
    api.runs.fail = RuntimeError("the password is hunter2")
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial(), metadata=(("traceparent", parent),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert reason_of(caught.value) == "INTERNAL"
    assert api.metrics.registry.get_sample_value("antiphon_internal_errors_total") == 1
    assert "hunter2" not in str(status_of(caught.value))
    entry = json.loads(log.getvalue().splitlines()[-1])
    assert entry["trace_id"] == "a" * 32
    assert "RuntimeError" in entry["exception"]


async def test_a_unary_call_needs_a_deadline(api: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial(), timeout=None)
    assert reason_of(caught.value) == "DEADLINE_REQUIRED"


async def test_a_passed_deadline_cancels_the_handler(api: Running) -> None:
    api.runs.wait = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial(), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_an_unknown_method_is_refused_in_every_shape(api: Running, shape: str) -> None:
    call: Any = getattr(api.dial(), shape)("/antiphon.v1.RunService/Nothing")
    request = iter([b"x"]) if shape.startswith("stream") else b"x"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        response = call(request, timeout=TIMEOUT)
        if shape.endswith("stream"):
            async for _ in response:
                pass
        else:
            await response
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert reason_of(caught.value) == "METHOD_UNKNOWN"


async def test_a_known_method_that_nothing_serves_is_unknown(api: Running) -> None:
    stub: Any = graph_service_pb2_grpc.GraphServiceStub(api.dial())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetGraph(run_service_pb2.GetRunRequest(run_id="x"), timeout=TIMEOUT)
    assert reason_of(caught.value) == "METHOD_UNKNOWN"


async def test_a_broken_rule_names_its_field(api: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial(), "")
    assert reason_of(caught.value) == "REQUEST_INVALID"
    bad = details(status_of(caught.value), error_details_pb2.BadRequest)[0]
    assert [violation.field for violation in bad.field_violations] == ["run_id"]


async def test_bytes_that_are_no_message_are_refused(api: Running) -> None:
    call: Any = api.dial().unary_unary("/antiphon.v1.RunService/GetRun")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", timeout=TIMEOUT)
    assert reason_of(caught.value) == "REQUEST_INVALID"


async def test_a_kind_without_access_is_refused(api: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(api.dial(api.credential(Kind.SIDECAR)))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(caught.value) == "ACCESS_DENIED"


async def test_without_a_policy_everything_is_denied(authority: Authority) -> None:
    async with serving(authority, policy=CedarPolicies()) as api:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.get_run(api.dial())
    assert reason_of(caught.value) == "POLICY_DENIED"
    assert "no policy is loaded" in (caught.value.details() or "")


async def test_too_many_calls_are_told_when_to_come_back(authority: Authority) -> None:
    options = ServerOptions(calls_per_second=0.01, call_burst=2, shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        channel = api.dial()
        await api.get_run(channel)
        await api.get_run(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.get_run(channel)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(caught.value) == "RATE_LIMITED"
        retry = details(status_of(caught.value), error_details_pb2.RetryInfo)[0]
        assert 50 < retry.retry_delay.ToTimedelta().total_seconds() < 150
        await api.get_run(api.dial(api.credential(name="bob")))  # others are not affected


async def test_an_exception_in_a_stream_is_a_status_of_ours(api: Running) -> None:
    telemetry.configure_logging(stream=io.StringIO())
    api.runs.fail = RuntimeError("a bug")
    call = Stub(api.dial()).SubmitRuns()
    request = run_service_pb2.SubmitRunsRequest()
    request.submissions.add(request_id="a").registered.name = "chain"
    await call.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == "INTERNAL"


async def test_a_client_that_goes_away_ends_the_handler_of_its_stream(api: Running) -> None:
    call = Stub(api.dial()).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(api.runs.stream_ended.wait(), TIMEOUT)


async def test_a_stream_ends_when_its_certificate_expires(api: Running) -> None:
    call = Stub(api.dial()).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
    await call.read()
    await api.clock.settle(timedelta(minutes=59))
    assert not call.done()
    api.clock.advance(timedelta(minutes=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call.read(), TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(caught.value) == "CERTIFICATE_EXPIRED"
    assert api.runs.stream_ended.is_set()


async def test_a_call_that_waits_ends_when_its_certificate_expires(api: Running) -> None:
    api.runs.wait = asyncio.Event()
    call = asyncio.create_task(api.submit(api.dial()))
    await asyncio.wait_for(api.runs.entered.wait(), TIMEOUT)
    await api.clock.settle(timedelta(minutes=59))
    assert not call.done()
    api.clock.advance(timedelta(minutes=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, TIMEOUT)
    assert reason_of(caught.value) == "CERTIFICATE_EXPIRED"


async def test_an_answer_that_was_waited_for_is_not_given_once_the_certificate_has_expired(api: Running) -> None:
    api.runs.wait = asyncio.Event()
    call = asyncio.create_task(api.submit(api.dial()))
    await asyncio.wait_for(api.runs.entered.wait(), TIMEOUT)
    api.clock.time += timedelta(minutes=61)  # nobody has looked since
    api.runs.wait.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == "CERTIFICATE_EXPIRED"


async def test_calls_that_wait_are_counted_among_the_streams_of_their_caller(authority: Authority) -> None:
    options = ServerOptions(caller_streams=2, concurrent_calls=16, shutdown_grace=timedelta(0))
    async with serving(authority, options=options) as api:
        api.runs.wait = asyncio.Event()
        channel = api.dial()
        stream = Stub(channel).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
        await stream.read()
        first = asyncio.create_task(api.submit(channel))
        await asyncio.wait_for(api.runs.entered.wait(), TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.submit(channel)
        assert reason_of(caught.value) == "OVERLOADED"
        await eventually(lambda: api.server.mutual_tls.gate.in_hand == 0)  # they are no work
        stream.cancel()
        await asyncio.wait_for(api.runs.stream_ended.wait(), TIMEOUT)
        api.runs.wait.set()
        await first
        await api.submit(channel)


async def test_a_stream_ends_when_policy_comes_to_deny_it(authority: Authority) -> None:
    policies = CedarPolicies(dev_profile())
    async with serving(authority, policy=policies) as api:
        call = Stub(api.dial()).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
        await call.read()
        await api.clock.settle(RECHECK)
        assert not call.done()
        nobody = '@id("nobody") @reason("closed") forbid (principal, action, resource);'
        policies.activate(PolicyBundle.of(2, [PolicyFile("a.cedar", nobody)]))
        api.clock.advance(RECHECK)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), TIMEOUT)
        assert reason_of(caught.value) == "POLICY_DENIED" and "closed" in (caught.value.details() or "")


async def test_a_slow_reader_is_told_why_its_stream_ended_once_it_reads_on(api: Running) -> None:
    api.runs.flood = True
    call = Stub(api.dial()).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
    await call.read()
    before = -1

    def stands() -> bool:
        nonlocal before
        before, since = api.runs.written, before
        return 0 < before == since

    await eventually(stands)
    await api.clock.settle(timedelta(minutes=61))
    await api.clock.settle(RECHECK)
    written = api.runs.written
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await asyncio.wait_for(call.read(), TIMEOUT):
            pass
    assert reason_of(caught.value) == "CERTIFICATE_EXPIRED"
    assert api.runs.stream_ended.is_set() and api.runs.written == written


async def test_a_client_that_breaks_off_is_not_a_bug(api: Running) -> None:
    log = io.StringIO()
    telemetry.configure_logging(stream=log)
    api.runs.flood = True
    for _ in range(5):
        channel = api.dial()
        call = Stub(channel).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
        await call.read()
        await channel.close()
        await asyncio.wait_for(api.runs.stream_ended.wait(), TIMEOUT)
        api.runs.stream_ended.clear()
    assert log.getvalue() == ""


async def test_a_unary_call_on_a_connection_older_than_its_certificate_is_refused(api: Running) -> None:
    channel = api.dial()
    await api.get_run(channel)
    api.clock.advance(timedelta(hours=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.get_run(channel)
    assert reason_of(caught.value) == "CERTIFICATE_EXPIRED"


async def test_calls_are_counted_by_method_and_code(api: Running) -> None:
    channel = api.dial()
    await api.get_run(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await api.get_run(channel, "")
    labels = {"method": "/antiphon.v1.RunService/GetRun", "code": "OK"}
    assert api.metrics.registry.get_sample_value("antiphon_calls_total", labels) == 1
    labels["code"] = "INVALID_ARGUMENT"
    assert api.metrics.registry.get_sample_value("antiphon_calls_total", labels) == 1
