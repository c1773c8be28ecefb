"""The agent of the tests of shared context: does what its input lists, and answers what came of each step.

A step is {"do": name, …}; an error is answered as {"error": reason}. AGENT_NAME names the agent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from antiphon import Agent, AntiphonError, ClaimLost, TaskContext, TransientFailure
from antiphon._errors import from_error_message
from antiphon.v1.context_request_pb2 import ContextRequest
from antiphon.v1.context_service_pb2 import GetEntryRequest
from google.protobuf.json_format import MessageToDict

agent = Agent(os.environ.get("AGENT_NAME", "worker"), concurrency=int(os.environ.get("AGENT_CONCURRENCY", "16")))


@agent.capability("team.script@1")
async def script(steps: list[dict[str, Any]], ctx: TaskContext) -> list[Any]:
    """Each step after the other."""
    answers = []
    for step in steps:
        words = {name: value for name, value in step.items() if name != "do"}
        try:
            answers.append(await STEPS[step["do"]](ctx, **words))
        except AntiphonError as error:
            answers.append({"error": error.reason, **error.metadata})
    return answers


@agent.capability("team.plain@1")
async def plain(value: Any, ctx: TaskContext) -> Any:
    """Echoes."""
    return value


async def get(ctx: TaskContext, **words: Any) -> Any:
    return await ctx.context.get(**words)


async def entry(ctx: TaskContext, **words: Any) -> Any:
    return MessageToDict(await ctx.context.entry(**words), preserving_proto_field_name=True)


async def put(ctx: TaskContext, **words: Any) -> Any:
    if "ttl" in words:
        words["ttl"] = timedelta(seconds=words["ttl"])
    return await ctx.context.put(**words)


async def put_once(ctx: TaskContext, **words: Any) -> Any:
    """Written once for the task, however often it is tried."""
    return await ctx.context.put(request_id=ctx.idempotency_key, **words)


async def fail_at_first(ctx: TaskContext) -> None:
    """In the task's first attempt alone."""
    if ctx.number == 1:
        raise TransientFailure("to be tried again")


async def delete(ctx: TaskContext, **words: Any) -> Any:
    return await ctx.context.delete(**words)


async def keys(ctx: TaskContext, **words: Any) -> Any:
    return [one.key for one in await ctx.context.list(**words)]


async def changes(ctx: TaskContext, count: int, ready: str, **words: Any) -> Any:
    """So many changes; what is there when watching has begun is the file `ready`."""
    first = ctx.context.watch(**words)
    Path(ready).touch()  # noqa: ASYNC240 - for another process
    seen = []
    async for event in first:
        seen.append(event.put.key if event.HasField("put") else f"-{event.deleted.key}")
        if len(seen) == count:
            break
    return seen


async def hold(ctx: TaskContext, path: str) -> None:
    """Until a file is there."""
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)


async def mark(ctx: TaskContext, path: str) -> None:
    Path(path).touch()  # noqa: ASYNC240


async def call(ctx: TaskContext, capability: str, input: Any) -> Any:
    return await ctx.call(capability, input)


async def forged(ctx: TaskContext, attempt_id: str = "") -> None:
    """Ask with a token that is not the attempt's own, or for an attempt that is not there."""
    request = ContextRequest(
        request_id="forged",
        attempt_id=attempt_id or ctx.attempt_id,
        attempt_token=b"x" * 16,
        get=GetEntryRequest(key="any"),
    )
    raise from_error_message((await ctx._line.ask(request)).error)


async def leak(ctx: TaskContext, path: str) -> None:
    """Write the attempt's token down."""
    Path(path).write_bytes(ctx._assignment.attempt_token)  # noqa: ASYNC240


async def claimed(
    ctx: TaskContext,
    name: str,
    mark: str = "",
    until: str = "",
    ttl: float = 30,
    renew: bool = True,
    **words: Any,
) -> Any:
    """Hold a claim, say so with the file `mark`, and keep it until there is the file `until`."""
    holding = ctx.context.claim(name, ttl=timedelta(seconds=ttl))
    if not renew:
        holding._ttl = timedelta(hours=1)  # of the renewals alone: the first is due long after the claim has ended
    try:
        async with holding as claim:
            if mark:
                Path(mark).touch()  # noqa: ASYNC240
            if until:
                await hold(ctx, until)
            if words:
                await ctx.context.put(claim=claim, **words)
            return claim.claim.fence
    except ClaimLost:
        return "lost"


STEPS: dict[str, Callable[..., Awaitable[Any]]] = {
    one.__name__: one
    for one in (
        get,
        entry,
        put,
        put_once,
        fail_at_first,
        delete,
        keys,
        changes,
        hold,
        mark,
        call,
        claimed,
        forged,
        leak,
    )
}

if __name__ == "__main__":
    agent.run()
