"""Attempts without a stream: each ends in one outcome, whatever its handler does, and nothing leaves that breaks one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from antiphon import Agent, Payload, TaskContext
from antiphon._attempts import Attempts
from antiphon._outbox import Outbox
from antiphon.v1.agent_service_pb2 import Assignment, WorkRequest
from pytest import mark

LARGE = 5_000_000
"""Bytes, of a message that ends every stream it is sent on."""


async def said(agent: Agent, capability: str) -> WorkRequest:
    """The first that is said of an attempt."""
    outbox = Outbox()
    attempts = Attempts(agent.handlers, outbox, 1)
    assignment = Assignment(attempt_id="r/t/0/1", capability=capability, version="1")
    assignment.input.inline = b"null"
    attempts.assign(assignment, 0.0)
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
