"""What an agent may say on its socket, and what it hears when it says something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc, failure_pb2, payload_pb2, run_pb2
from antiphon.v1.payload_pb2 import Label
from antiphon_certs import Grants
from antiphon_sidecar.agents import AgentSocket, _Session
from antiphon_sidecar.attempts import End
from antiphon_sidecar.errors import reason_of
from antiphon_sidecar.node import Node

from tests.integration.sidecar_process import WAIT, eventually
from tests.integration.test_sidecar_payloads import Service, reference, serving


class Bench:
    """A socket with the middle of a sidecar behind it; the test is the agent and the replica."""

    def __init__(self, node: Node, agent: AgentSocket, path: str) -> None:
        self.node = node
        self.seat = agent.seat
        self.path = path
        self.link = node.inflight.attach(lambda: None)
        node.inflight.welcomed(self.link, {})
        node.inflight.claim(self.link, [(0, 1)])

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self.path}", options) as channel:
            yield agent_service_pb2_grpc.AgentServiceStub(channel)

    def offer(self, attempt_id: str, input: payload_pb2.Payload | None = None) -> None:
        assignment = pb.Assignment(attempt_id=attempt_id, attempt_token=b"token", capability="text.echo", version="1")
        if input is not None:
            assignment.input.CopyFrom(input)
        self.node.inflight.offer(self.link, "echo", attempt_id, 0, 1, assignment, b"token", 0, None, self.node.now())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    node = Node("team-a", Grants(("echo",), ("text.*",)))
    agent = AgentSocket(node, "echo")
    await agent.open(str(tmp_path / "echo.sock"))
    running = asyncio.create_task(agent.run())
    yield Bench(node, agent, str(tmp_path / "echo.sock"))
    running.cancel()
    await asyncio.wait([running])


def hello(name: str = "", capability: str = "text.echo", concurrency: int = 2) -> pb.WorkRequest:
    request = pb.WorkRequest()
    request.hello.protocol_version = 1
    request.hello.description.name, request.hello.description.concurrency = name, concurrency
    request.hello.description.capabilities.add(name=capability, version="1")
    return request


async def refusal(call: Any) -> tuple[str, str]:
    """Reason and message with which a stream ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT):
            while await call.read():
                pass
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN
    return reason_of(caught.value), caught.value.details() or ""


async def begun(stub: Any) -> Any:
    """A stream that is welcomed."""
    call = stub.Work()
    await call.write(hello())
    async with asyncio.timeout(WAIT):
        welcome = (await call.read()).welcome
    assert (welcome.agent, welcome.namespace, welcome.inline_limit) == ("echo", "team-a", 2 << 20)
    return call


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (pb.WorkRequest(drain=True), "PROTOCOL_VIOLATION"),
        (hello(name="another"), "NOT_GRANTED"),
        (hello(capability="mail.send"), "NOT_GRANTED"),
        (hello(capability="Not A Capability"), "REQUEST_INVALID"),
        (hello(concurrency=0), "REQUEST_INVALID"),
    ],
)
async def test_a_wrong_beginning_is_refused_with_its_reason(bench: Bench, first: pb.WorkRequest, reason: str) -> None:
    async with bench.stub() as stub:
        call = stub.Work()
        await call.write(first)
        found, message = await refusal(call)
    assert found == reason and message
    assert not bench.seat.present


async def test_no_more_is_read_of_an_agent_that_asks_without_listening(bench: Bench) -> None:
    request = pb.WorkRequest()
    for _ in range(256):
        request.context_requests.add(request_id="r", attempt_id="unknown").get.key = "k"
    taken = 0

    async def requests() -> AsyncIterator[pb.WorkRequest]:
        nonlocal taken
        for taken in range(1, 101):  # noqa: B007
            yield request

    session = _Session(bench.node, bench.seat)
    reading = asyncio.create_task(session.read(requests()))
    await eventually(lambda: taken >= 5)
    assert await asyncio.wait([reading], timeout=0) == (set(), {reading})
    answers = 0
    async with asyncio.timeout(WAIT):
        async for response in session.responses():
            answers += len(response.context_responses)
            assert len(session._answers) <= 1_024 + 256
    assert (taken, answers) == (100, 25_600)
    await reading


async def test_a_second_hello_ends_the_stream(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        await call.write(hello())
        assert (await refusal(call))[0] == "PROTOCOL_VIOLATION"
    await eventually(lambda: not bench.seat.present)


async def test_a_second_stream_replaces_the_first_whose_attempts_are_lost(bench: Bench) -> None:
    async with bench.stub() as first, bench.stub() as second:
        old = await begun(first)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            assert (await old.read()).assignments[0].attempt_id == "a"
        new = await begun(second)
        assert (await refusal(old))[0] == "STREAM_REPLACED"
        assert [(report.attempt_id, report.end) for report in bench.link.reports] == [("a", End.LOST)]
        bench.offer("b")
        async with asyncio.timeout(WAIT):
            assert (await new.read()).assignments[0].attempt_id == "b"


async def test_an_agent_that_drains_gets_no_more_and_its_stream_ends_when_nothing_is_left(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
            await call.write(pb.WorkRequest(drain=True))
            await eventually(lambda: bench.seat.draining)
            bench.offer("b")
            await call.write(pb.WorkRequest(results=[pb.Result(attempt_id="a")]))
            assert not await call.read(), "it is over"
    reports = {report.attempt_id: report.end for report in bench.link.reports}
    assert reports == {"a": End.RESULT, "b": End.DRAINING}


async def test_results_of_attempts_that_are_not_its_own_are_ignored(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        await call.write(pb.WorkRequest(results=[pb.Result(attempt_id="stranger"), pb.Result()]))
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
        await call.write(pb.WorkRequest(results=[pb.Result(attempt_id="a"), pb.Result(attempt_id="a")]))
        await eventually(lambda: bench.link.reports)
    assert [report.attempt_id for report in bench.link.reports] == ["a"]


async def test_unary_progress_and_calls_need_the_token_of_a_running_attempt(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
        update = pb.ProgressUpdate(attempt_id="a")
        update.progress.fraction = 0.5
        await stub.ReportProgress(pb.ReportProgressRequest(update=update, attempt_token=b"token"), timeout=WAIT)
        assert bench.link.progress["a"][1].fraction == 0.5
        for request, reason in (
            (
                pb.CallRequest(attempt_id="a", attempt_token=b"guess", call_id="1", capability="text.echo@1"),
                "ATTEMPT_TOKEN_INVALID",
            ),
            (
                pb.CallRequest(attempt_id="b", attempt_token=b"token", call_id="1", capability="text.echo@1"),
                "ATTEMPT_NOT_FOUND",
            ),
            (
                pb.CallRequest(attempt_id="a", attempt_token=b"token", call_id="", capability="text.echo@1"),
                "REQUEST_INVALID",
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Call(request, timeout=WAIT)
            assert reason_of(caught.value) == reason
        good = pb.CallRequest(attempt_id="a", attempt_token=b"token", call_id="1", capability="text.echo@1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Call(good)
        assert reason_of(caught.value) == "DEADLINE_REQUIRED"
        waiting = stub.Call(good, timeout=WAIT)
        await eventually(lambda: bench.seat.waiting)
        answer = pb.CallResponse(call_id="1", attempt_id="a")
        answer.output.inline = b"1"
        bench.node.inflight.answered("a", "1", answer)
        assert (await waiting).output.inline == b"1"
        assert bench.seat.waiting == 0
        abandoned = stub.Call(good, timeout=WAIT)
        await eventually(lambda: bench.seat.waiting)
        abandoned.cancel()
        await eventually(lambda: not bench.seat.waiting)


async def test_a_call_on_the_stream_with_a_wrong_token_is_answered_by_a_failure(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
            guess = pb.CallRequest(attempt_id="a", attempt_token=b"guess", call_id="1", capability="text.echo@1")
            await call.write(pb.WorkRequest(calls=[guess]))
            (result,) = (await call.read()).call_results
    assert result.failure.kind == failure_pb2.FAILURE_KIND_PERMANENT and result.failure.code == "ATTEMPT_TOKEN_INVALID"
    assert not bench.link.calls


async def test_a_call_of_an_attempt_that_is_over_is_answered_for_its_handler_may_wait(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
            call.cancel()
            await eventually(lambda: not bench.seat.present)
            again = await begun(stub)
            repeated = pb.CallRequest(attempt_id="a", attempt_token=b"token", call_id="1", capability="text.echo@1")
            garbage = pb.CallRequest(attempt_id="x" * 3_000_000, call_id="1")
            await again.write(pb.WorkRequest(calls=[repeated, garbage]))
            answers = list((await again.read()).call_results)
    assert [(len(answer.attempt_id), answer.call_id) for answer in answers] == [(1, "1"), (512, "1")]
    assert {(answer.failure.kind, answer.failure.code) for answer in answers} == {
        (failure_pb2.FAILURE_KIND_CANCELLED, "ATTEMPT_NOT_FOUND")
    }
    assert not bench.link.calls


async def test_labels_of_what_a_call_gives_go_into_all_that_is_made_of_it(bench: Bench) -> None:
    node = bench.node
    async with bench.stub() as stub, asyncio.timeout(WAIT):
        call = await begun(stub)
        bench.offer("a")
        await call.read()
        first, second, third = (
            pb.CallRequest(attempt_id="a", attempt_token=b"token", call_id=number, capability="text.echo@1")
            for number in "123"
        )
        await call.write(pb.WorkRequest(calls=[first]))
        await eventually(lambda: bench.seat.waiting)
        node.inflight.call_emitted("a", "1", run_pb2.PartialOutput(text="x", labels=[Label(key="of-a-piece")]))
        await call.read()
        answer = pb.CallResponse(call_id="1", attempt_id="a")
        answer.output.field_labels.add(pointer="/phone").labels.add(key="pii")
        node.inflight.answered("a", "1", answer)
        await call.read()
        await call.write(pb.WorkRequest(calls=[second]))
        await eventually(lambda: len(bench.link.calls) == 2)
        assert [label.key for label in bench.link.calls[1][0].input.labels] == ["of-a-piece", "pii"]
        answer = pb.CallResponse(call_id="2", attempt_id="a")
        answer.output.labels.extend(Label(key=f"l{number}") for number in range(63))
        node.inflight.answered("a", "2", answer)
        (told,) = (await call.read()).call_results
        assert told.failure.kind == failure_pb2.FAILURE_KIND_POLICY and "more than 64" in told.failure.message
        waiting = stub.Call(third, timeout=WAIT)
        await eventually(lambda: len(bench.link.calls) == 3)
        answer = pb.CallResponse(call_id="3", attempt_id="a")
        answer.output.labels.add(key="last")
        node.inflight.answered("a", "3", answer)
        await waiting
        await call.write(pb.WorkRequest(results=[pb.Result(attempt_id="a", output=payload_pb2.Payload(inline=b"1"))]))
        await eventually(lambda: node.inflight.outcomes)
        # What the spool keeps, too.
        assert [label.key for label in node.inflight.held["a"].result.output.labels] == ["of-a-piece", "pii", "last"]


async def test_an_agent_that_breaks_off_without_a_word_is_gone_at_once(bench: Bench) -> None:
    async with bench.stub() as stub:
        await begun(stub)
        assert bench.seat.present
    await eventually(lambda: not bench.seat.present)
    assert bench.node.descriptions == {}


async def test_garbage_on_the_socket_hurts_nobody(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        reader, writer = await asyncio.open_unix_connection(bench.path)
        writer.write(b"\x00GET / HTTP/1.1\r\n\xff\xfe" * 1_000)
        writer.write_eof()
        with suppress(ConnectionResetError):
            async with asyncio.timeout(WAIT):
                await reader.read()
        writer.close()
        raw = grpc.aio.insecure_channel(f"unix:{bench.path}", [("grpc.default_authority", "localhost")])
        async with raw:
            work: Any = raw.stream_stream("/antiphon.v1.AgentService/Work", bytes, bytes)
            garbage = work()
            await garbage.write(b"\xff\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError):
                async with asyncio.timeout(WAIT):
                    await garbage.read()
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            assert (await call.read()).assignments[0].attempt_id == "a"


async def test_a_message_beyond_the_limit_is_refused(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        result = pb.Result(attempt_id="a")
        result.output.inline = b"x" * (17 << 20)
        await call.write(pb.WorkRequest(results=[result]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(WAIT):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await eventually(lambda: not bench.seat.present)


async def test_hundreds_of_offers_go_out_in_few_messages_within_the_limits(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = stub.Work()
        await call.write(hello(concurrency=1_000))
        async with asyncio.timeout(WAIT):
            await call.read()
            for number in range(600):
                assignment = pb.Assignment(attempt_id=str(number), capability="text.echo", version="1")
                assignment.input.inline = b"x" * 10_000
                bench.node.inflight.offer(
                    bench.link, "echo", str(number), 0, 1, assignment, b"token", 10_000, None, bench.node.now()
                )
            sizes: list[int] = []
            while sum(sizes) < 600:
                message = await call.read()
                assert message.ByteSize() <= 1_100_000
                sizes.append(len(message.assignments))
    assert max(sizes) <= 256 and len(sizes) <= 8


def large(attempt_id: str) -> pb.WorkRequest:
    """An answer that does not travel inline."""
    result = pb.Result(attempt_id=attempt_id)
    result.output.inline = b'"' + b"x" * 1_500_000 + b'"'
    return pb.WorkRequest(results=[result])


async def test_an_agent_that_closes_its_side_loses_nothing_that_is_still_being_kept(bench: Bench) -> None:
    service = Service()
    service.wait = asyncio.Event()
    async with serving(service) as channel, bench.stub() as stub:
        bench.node.payloads.opened(channel)
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
            await call.write(large("a"))
            await call.done_writing()
            await eventually(lambda: service.asked)
            service.wait.set()
            assert not await call.read(), "it is over"
    (report,) = bench.link.reports
    assert (report.end, report.result.output.blob.size) == (End.RESULT, 1_500_002)


async def test_no_more_is_read_of_an_agent_whose_answers_wait_to_be_kept(bench: Bench) -> None:
    taken = 0

    async def requests() -> AsyncIterator[pb.WorkRequest]:
        nonlocal taken
        for taken in range(1, 21):  # noqa: B007
            yield large("nobody's")

    session = _Session(bench.node, bench.seat)
    reading = asyncio.create_task(session.read(requests()))
    await eventually(lambda: taken >= 6)
    assert await asyncio.wait([reading], timeout=0) == (set(), {reading})
    assert taken == 6, "8 MiB"
    movers = [asyncio.create_task(mover) for mover in session.movers()]
    async with asyncio.timeout(WAIT):
        await reading
    assert taken == 20
    for mover in movers:
        mover.cancel()


async def test_pieces_of_a_call_go_before_its_large_answer(bench: Bench) -> None:
    async with bench.stub() as stub:
        call = await begun(stub)
        bench.offer("a")
        async with asyncio.timeout(WAIT):
            await call.read()
        session = _Session(bench.node, bench.seat)
        session._send_large(pb.WorkResponse(call_results=[pb.CallResponse(call_id="1", attempt_id="a")]))
        bench.seat.pieces.add(("a", "1"), run_pb2.PartialOutput(text="piece"))
        messages = [session._next() for _ in range(2)]
    assert [bool(message and message.call_partials) for message in messages] == [True, False]
    assert messages[1] is not None and messages[1].call_results


async def test_an_attempt_that_is_cancelled_while_its_input_is_fetched_does_not_reach_the_agent(bench: Bench) -> None:
    service = Service()
    service.wait = asyncio.Event()
    async with serving(service) as channel, bench.stub() as stub:
        bench.node.payloads.opened(channel)
        call = await begun(stub)
        bench.offer("a", reference())
        await eventually(lambda: service.asked)
        bench.node.inflight.cancel("a", "not any more", bench.node.now())
        service.wait.set()
        await eventually(lambda: bench.link.reports)
        bench.offer("b", reference())
        async with asyncio.timeout(WAIT):
            heard = [await call.read() for _ in range(2)]
        given = [assignment for message in heard for assignment in message.assignments]
        assert [(one.attempt_id, one.input.inline) for one in given] == [("b", b"[1]")]
    (report,) = [report for report in bench.link.reports if report.attempt_id == "a"]
    assert report.result.failure.kind == failure_pb2.FAILURE_KIND_CANCELLED
