"""What an agent says is batched within bounds, in an order that loses nothing."""

from __future__ import annotations

import asyncio

from antiphon._outbox import Outbox
from antiphon.v1.agent_service_pb2 import CallRequest, WorkRequest
from antiphon.v1.context_request_pb2 import ContextRequest
from antiphon.v1.payload_pb2 import Payload
from antiphon.v1.run_pb2 import Progress


async def everything(outbox: Outbox) -> list[WorkRequest]:
    taken = []
    while not outbox.empty:
        request = await outbox.take()
        assert request is not None
        taken.append(request)
    return taken


async def test_messages_are_bounded_in_items_and_in_bytes() -> None:
    outbox = Outbox()
    for number in range(600):
        outbox.succeed(str(number), b"1")
    for number in range(600, 640):
        outbox.succeed(str(number), b"x" * 65_000)
    messages = await everything(outbox)
    assert max(len(one.results) for one in messages) == 256
    assert max(one.ByteSize() for one in messages) < (1 << 20) + (1 << 16)
    assert [result.attempt_id for one in messages for result in one.results] == [str(n) for n in range(640)]


async def test_only_the_newest_progress_is_sent_and_none_after_the_outcome() -> None:
    outbox = Outbox()
    for fraction in (0.1, 0.2, 0.3):
        outbox.progress("a", Progress(fraction=fraction))
        outbox.progress("b", Progress(fraction=fraction))
    outbox.succeed("b", Payload(inline=b"1"))
    (message,) = await everything(outbox)
    assert [(one.attempt_id, one.progress.fraction) for one in message.progress] == [("a", 0.3)]


async def test_drain_comes_after_every_outcome() -> None:
    outbox = Outbox()
    outbox.drain()
    for number in range(300):
        outbox.fail(str(number), ValueError("x"))
    messages = await everything(outbox)
    assert [(len(one.results), one.drain) for one in messages] == [(256, False), (44, True)]


async def test_what_could_not_be_sent_goes_first_on_the_next_stream_but_calls_are_said_anew() -> None:
    outbox = Outbox()
    outbox.succeed("a", b"1")
    outbox.call(CallRequest(call_id="1"))
    outbox.drain()
    request = await outbox.take()
    assert request is not None and request.drain and request.calls
    outbox.put_back(request)
    outbox.succeed("b", b"2")
    outbox.reopen()
    messages = await everything(outbox)
    assert [result.attempt_id for one in messages for result in one.results] == ["a", "b"]
    assert not any(one.calls or one.drain for one in messages)


async def test_what_was_sent_can_be_recalled_once_and_within_bounds() -> None:
    outbox = Outbox()
    for number in range(20):
        outbox.succeed(str(number), b"1")
        request = await outbox.take()
        assert request is not None
        outbox.sent(request)
    recalled = outbox.recall()
    assert set(recalled) == {str(number) for number in range(12, 20)} and not outbox.recall()
    outbox.repeat(recalled["19"])
    (message,) = await everything(outbox)
    assert message.results[0].output.inline == b"1"


async def test_a_closed_outbox_ends_when_everything_is_said() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.close()
    assert await waiting is None
    outbox.reopen()
    outbox.succeed("a", b"1")
    outbox.close()
    assert await outbox.take() is not None and await outbox.take() is None


async def test_requests_to_shared_context_are_bounded_in_a_message_and_said_anew_on_the_next_stream() -> None:
    outbox = Outbox()
    for number in range(300):
        outbox.ask(ContextRequest(request_id=str(number)))
    messages = await everything(outbox)
    assert [len(one.context_requests) for one in messages] == [256, 44]
    outbox.succeed("a", b"1")
    outbox.ask(ContextRequest(request_id="1"))
    request = await outbox.take()
    assert request is not None and request.context_requests
    outbox.put_back(request)
    outbox.reopen()
    (again,) = await everything(outbox)
    assert again.results and not again.context_requests
