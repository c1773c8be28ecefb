"""The agent process of the mesh tests: one capability for each thing a task can meet.

Settings by environment: AGENT_NAME, AGENT_CONCURRENCY, AGENT_PREFETCH, AGENT_LABELS (JSON), AGENT_JOURNAL (a path),
AGENT_ONLY (offer these alone, comma between), AGENT_VERSION (of every capability), AGENT_COST.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from antiphon import (
    Agent,
    CallFailed,
    Graph,
    Labels,
    Payload,
    PermanentFailure,
    Retry,
    Subgraph,
    TaskContext,
    TransientFailure,
)
from antiphon.v1 import graph_pb2
from antiphon.v1.payload_pb2 import Label
from google.protobuf.json_format import ParseDict

from tests.harness.journal import Entry, Journal

environ = os.environ
only = set(filter(None, environ.get("AGENT_ONLY", "").split(",")))
version = environ.get("AGENT_VERSION", "1")
journal = Journal(Path(environ.get("AGENT_JOURNAL", "/dev/null")))
agent = Agent(
    environ.get("AGENT_NAME", "worker"),
    concurrency=int(environ.get("AGENT_CONCURRENCY", "16")),
    prefetch=int(environ["AGENT_PREFETCH"]) if "AGENT_PREFETCH" in environ else None,
    labels=json.loads(environ.get("AGENT_LABELS", "{}")),
)

Handler = Callable[[Any, TaskContext], Awaitable[Any]]


def offers(name: str, **options: Any) -> Callable[[Handler], Handler]:
    """Offer a handler whose every attempt is in the journal."""

    def decorate(function: Handler) -> Handler:
        async def handler(value: Any, ctx: TaskContext) -> Any:
            def note(event: str) -> None:
                entry = Entry(event, ctx.capability, ctx.attempt_id, ctx.idempotency_key, agent.name, os.getpid())
                journal.add(entry)

            note("begun")
            try:
                result = await function(value, ctx)
            except asyncio.CancelledError:
                note("cancelled")
                raise
            except BaseException:
                note("failed")
                raise
            note("done")
            return result

        handler.__annotations__ = {**inspect.get_annotations(function, eval_str=True)}
        handler.__name__ = handler.__qualname__ = function.__name__
        if not only or name in only:
            agent.capability(f"{name}@{version}", cost=float(environ.get("AGENT_COST", "0")), **options)(handler)
        return handler

    return decorate


@offers("work.echo")
async def echo(value: Any, ctx: TaskContext) -> Any:
    return value


@offers("work.double")
async def double(value: int, ctx: TaskContext) -> int:
    return value * 2


@offers("work.claim", output_schema={"type": "integer"})
async def claim(value: Any, ctx: TaskContext) -> Any:
    """Promises an integer and answers whatever it is given."""
    return value


@offers("work.narrow", input_schema={"type": "object", "properties": {"name": {}}})
async def narrow(value: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    """Declares one field of its input, and answers with what it got."""
    return value


@offers("work.who")
async def who(value: Any, ctx: TaskContext) -> dict[str, Any]:
    return {
        "agent": agent.name,
        "pid": os.getpid(),
        "attempt_id": ctx.attempt_id,
        "idempotency_key": ctx.idempotency_key,
        "principal": ctx.principal,
        "delegation": list(ctx.delegation),
        "traceparent": ctx.traceparent,
        "version": version,
        "remaining": left.total_seconds() if (left := ctx.remaining()) is not None else None,
    }


async def held(gate: str, ctx: TaskContext) -> str:
    """Works until a file is there, and says so all the while: who watches later than the first time hears it too."""
    while not Path(gate).exists():  # noqa: ASYNC240 - another process makes it
        ctx.progress(0.5, "holding")
        await asyncio.sleep(0.01)
    return "released"


@offers("work.hold")
async def hold(gate: str, ctx: TaskContext) -> str:
    return await held(gate, ctx)


@offers("work.emit")
async def emit(how: dict[str, Any], ctx: TaskContext) -> str:
    """Emits pieces once a file is there, and answers its texts at once."""
    while not Path(how["gate"]).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
    for piece in how["pieces"]:
        labels = [Label(key=key) for key in how.get("labels", [])]
        ctx.emit(Payload(inline=json.dumps(piece).encode(), labels=labels) if labels else piece)
    return "".join(piece for piece in how["pieces"] if isinstance(piece, str))


@offers("work.stubborn")
async def stubborn(gate: str, ctx: TaskContext) -> str:
    """Works until a file is there, whatever it is told; a cancel sets a mark beside the file."""
    while not Path(gate).exists():  # noqa: ASYNC240
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            Path(gate + ".told").touch()  # noqa: ASYNC240
    return "finished"


@offers("work.sleep", idempotent=True)
async def sleep(seconds: float, ctx: TaskContext) -> float:
    await asyncio.sleep(seconds)
    return seconds


@offers("work.race", idempotent=True)
async def race(gate: str, ctx: TaskContext) -> str:
    """The first member of a hedge works until a file is there, the other answers at once."""
    member = int(ctx.attempt_id.split("/")[2])
    return f"member {member}" if member > 1 else await held(gate, ctx)


@offers("work.pure", effect="pure")
async def pure(value: Any, ctx: TaskContext) -> dict[str, Any]:
    """Says which attempt worked it out, which a pure capability would not, so that a test can tell."""
    return {"value": value, "attempt_id": ctx.attempt_id}


@offers("work.fail")
async def fail(how: dict[str, Any], ctx: TaskContext) -> int:
    """Fails the first `times` attempts, as `kind` says; then answers the number of the attempt."""
    if ctx.number <= how.get("times", 1_000):
        raise {"transient": TransientFailure, "permanent": PermanentFailure}[how["kind"]](how["kind"], "asked-for")
    return ctx.number


@offers("work.secret", clearance=["pii"])
async def secret(value: Any, ctx: TaskContext) -> int:
    """Promises a number, and answers nothing."""
    raise PermanentFailure("a person knows")


@offers("work.die")
async def die(times: int, ctx: TaskContext) -> int:
    """Takes its process with it on the first `times` attempts."""
    if ctx.number <= times:
        os._exit(3)
    return ctx.number


@offers("work.large")
async def large(size: int, ctx: TaskContext) -> str:
    return "x" * size


@dataclass
class Card:
    name: str
    phone: str = ""


@offers("work.card", clearance=["pii"])
async def card(value: Card, ctx: TaskContext) -> dict[str, Any]:
    """Says what it was given; takes a name, and a phone number if it may."""
    return {"name": value.name, "phone": value.phone}


@dataclass
class Person:
    name: str
    phone: Annotated[str, Labels("pii")]


@offers("work.person")
async def person(name: str, ctx: TaskContext) -> Person:
    """Finds what is known of somebody, a part of which is labelled."""
    return Person(name, "555-1234")


@offers("work.bytes")
async def reverse(value: Payload, ctx: TaskContext) -> Payload:
    """Turns what is inline round, and answers with a reference as it came."""
    if value.HasField("blob"):
        return value
    return Payload(inline=value.inline[::-1], media_type=value.media_type)


@offers("work.cleared-call", clearance=["pii"])
@offers("work.call")
async def call(how: dict[str, Any], ctx: TaskContext) -> Any:
    """Calls another capability; may fail its own first attempt after the call was answered."""
    timeout = timedelta(seconds=how["timeout"]) if "timeout" in how else None
    seen = (lambda piece: ctx.emit(f"<{piece.text}>") and None) if how.get("emitted") else None
    try:
        answer = await ctx.call(
            how["capability"], how.get("input"), call_id=how.get("call_id"), timeout=timeout, on_partial=seen
        )
    except CallFailed as error:
        if how.get("strict"):
            raise
        return {"failed": error.failure.code or error.message, "kind": error.failure.kind}
    if ctx.number <= how.get("fail_after", 0):
        raise TransientFailure("after the call")
    return answer


@offers("work.recurse")
async def recurse(depth: int, ctx: TaskContext) -> Any:
    """Calls itself for ever, below zero with the same input; answers how deep it came."""
    try:
        return await ctx.call(f"work.recurse@{version}", depth + (depth >= 0))
    except CallFailed as error:
        return {"depth": depth, "code": error.failure.code}


@offers("work.plan")
async def plan(steps: list[dict[str, Any]], ctx: TaskContext) -> Any:
    """Takes its task apart: answers with a graph of these steps (id, capability, input, needs, tries)."""
    graph = Graph("steps")
    for step in steps:
        retry = [Retry(["LOST", "TRANSIENT"], max_attempts=step["tries"])] if "tries" in step else []
        graph.task(step["id"], step["capability"], input=step.get("input"), needs=step.get("needs", ()), retry=retry)
    return Subgraph(graph, {"by": ctx.attempt_id})


@offers("work.write")
async def write(graph: dict[str, Any], ctx: TaskContext) -> Any:
    """Answers with the graph that it is given in protobuf's JSON, whatever is in it."""
    return Subgraph(ParseDict(graph, graph_pb2.Graph()))


if __name__ == "__main__":
    agent.run()
