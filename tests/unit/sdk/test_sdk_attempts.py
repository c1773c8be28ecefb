"""Attempts without a stream: each ends in one outcome, whatever its handler does, and nothing leaves that breaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from antiphon import Agent, Payload, PermanentFailure, TaskContext
from antiphon._attempts import Attempts
from antiphon._outbox import Outbox
from antiphon.v1.agent_service_pb2 import Assignment, CallRequest, WorkRequest
from antiphon.v1.context_request_pb2 import ContextRequest
from pytest import mark

LARGE = 5_000_000
"""Bytes, of a message that ends every stream it is sent on."""


async def said(agent: Agent, capability: str, value: bytes = b"null") -> WorkRequest:
    """The first that is said of an attempt."""
    outbox = Outbox()
    attempts = Attempts(agent.handlers, outbox, 1)
    assignment = Assignment(attempt_id="r/t/0/1", capability=capability, version="1")
    assignment.input.inline = value
    attempts.assign(assignment, 0.0)
    async with asyncio.timeout(20):
        request = await outbox.take()
    assert request is not None
    await attempts.stop()
    return request


def large() -> Payload:
    return Payload(inline=b'"' + b"x" * LARGE + b'"')


@mark.parametrize(
    ("ask", "says"),
    [
        (lambda task: task.call("text.any@1", "x" * LARGE), "upload it with Client.upload_payload and send"),
        (lambda task: task.call("text.any@1", large()), "upload it with Client.upload_payload and send"),
        (lambda task: task.call("text.any@" + "1" * LARGE), "the request has 5000"),
        (lambda task: task.call("text.any@1", call_id="x" * 65), "call_id has 65 characters; use at most 64"),
        (lambda task: task.context.put("key", large()), "upload it with Client.upload_payload and put"),
        (lambda task: task.context.put("key", 1, labels=["x" * LARGE]), "the request has 5000"),
        (lambda task: task.context.get("x" * LARGE), "the request has 5000"),
    ],
)
async def test_what_would_break_the_stream_of_all_fails_its_own_attempt(
    ask: Callable[[TaskContext], Awaitable[object]], says: str
) -> None:
    agent = Agent("asker")

    @agent.capability("text.ask@1")
    async def handler(value: None, task: TaskContext) -> object:
        return await ask(task)

    request = await said(agent, "text.ask")
    assert not request.calls and not request.context_requests
    (result,) = request.results
    assert says in result.failure.message


class Panic(BaseException):
    """As code in Rust raises it, and pytest."""


def raise_it(error: BaseException) -> None:
    raise error


def cancel_inside() -> None:
    async def within() -> None:
        raise asyncio.CancelledError

    asyncio.run(within())


def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@mark.parametrize("batched", [False, True])
@mark.parametrize(
    ("plain", "act", "says"),
    [
        (False, lambda: raise_it(PermanentFailure(ValueError("no number"))), "no number"),  # type: ignore[arg-type]
        (False, lambda: raise_it(Panic("in Rust")), "Panic: in Rust"),
        (True, lambda: raise_it(Panic("in Rust")), "Panic: in Rust"),
        (True, cancel_inside, "CancelledError"),
        (False, cancel_own_task, "CancelledError"),
    ],
)
async def test_whatever_a_handler_raises_is_its_outcome(
    batched: bool, plain: bool, act: Callable[[], None], says: str
) -> None:
    agent = Agent("raiser")

    def in_thread(value: Any) -> Any:
        act()

    async def on_loop(value: Any) -> Any:
        act()
        await asyncio.sleep(0)

    offer = (
        agent.batch("text.raise@1", max_size=2, max_wait=timedelta(milliseconds=1))
        if batched
        else agent.capability("text.raise@1")
    )
    offer(in_thread if plain else on_loop)
    (result,) = (await said(agent, "text.raise")).results
    assert result.failure.message == says


@dataclass
class Grim:
    def __post_init__(self) -> None:
        raise Panic("read")


async def test_a_decoder_that_panics_fails_its_attempt_alone() -> None:
    agent = Agent("reader")

    @agent.batch("text.read@1", max_size=2, max_wait=timedelta(milliseconds=1))
    async def read(values: list[Grim]) -> list[None]:
        return [None for _ in values]

    (result,) = (await said(agent, "text.read", b"{}")).results
    assert result.failure.message == "Panic: read"


async def test_what_is_given_up_before_it_was_sent_is_not_asked_any_more() -> None:
    outbox = Outbox()
    attempts = Attempts({}, outbox, 1)
    asking = [
        asyncio.create_task(attempts.call(CallRequest(attempt_id="a", call_id="given up"))),
        asyncio.create_task(attempts.ask(ContextRequest(attempt_id="a", request_id="given up"))),
        asyncio.create_task(attempts.call(CallRequest(attempt_id="b", call_id="kept"))),
    ]
    await asyncio.sleep(0)  # each has put its request
    for one in asking[:2]:
        one.cancel()
    await asyncio.wait(asking[:2])
    sent = await outbox.take()
    assert sent is not None and [call.call_id for call in sent.calls] == ["kept"] and not sent.context_requests
    asking[2].cancel()
    await asyncio.wait(asking)
