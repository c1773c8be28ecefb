"""An agent process for tests: one capability for each thing a handler may do. `ANTIPHON_SOCKET` says where."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from antiphon import (
    Agent,
    CallFailed,
    InvalidInput,
    Payload,
    PermanentFailure,
    TaskContext,
    TransientFailure,
    current_task,
)

agent = Agent("sample", concurrency=int(sys.argv[1]) if len(sys.argv) > 1 else 32, version="7", labels={"region": "eu"})
seen: dict[str, int] = {}


@dataclass
class Package:
    """A package."""

    name: str
    files: int = 0


@dataclass
class Verdict:
    """What was found."""

    name: str
    fine: bool


@agent.capability("sample.judge@1", effect="pure", idempotent=True, cost=2.5, clearance=["pii"])
async def judge(package: Package) -> Verdict:
    """Judge a package."""
    return Verdict(package.name, package.files > 0)


@agent.capability("sample.plain@1")
def plain(package: Package) -> dict[str, Any]:
    task = current_task()
    assert task is not None
    return {"thread": threading.current_thread().name, "attempt": task.attempt_id}


@agent.capability("sample.fail@1")
async def fail(how: str) -> None:
    if how == "transient":
        raise TransientFailure("come back later", "busy")
    if how == "permanent":
        raise PermanentFailure("never")
    if how == "input":
        raise InvalidInput("not this one", field="/name")
    if how == "cancelled":
        raise asyncio.CancelledError
    if how == "exit":
        sys.exit(3)
    raise KeyError(how)


@agent.capability("sample.count@1")
async def count(key: str) -> int:
    """How often it ran with this key in this process."""
    seen[key] = seen.get(key, 0) + 1
    return seen[key]


@agent.capability("sample.hold@1")
async def hold(seconds: float, ctx: TaskContext) -> str:
    await ctx.progress(0.5, "holding")
    async with asyncio.timeout(seconds):
        await asyncio.Event().wait()
    return "never"


@agent.capability("sample.sleep@1")
async def sleep(seconds: float, ctx: TaskContext) -> str:
    await ctx.progress(0.25, "asleep")
    await asyncio.sleep(seconds)
    return "awake"


@agent.capability("sample.until@1")
async def until(path: str, ctx: TaskContext) -> str:
    """Waits until there is a file."""
    await ctx.progress(0.25, "waiting")
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
    return "there"


@agent.capability("sample.obey@1")
def obey(value: Any, ctx: TaskContext) -> str:
    ctx.progress(0.5, "waiting")
    ctx.cancelled.wait(30)
    ctx.raise_if_cancelled()
    return "nobody came"


@agent.capability("sample.stubborn@1")
def stubborn(value: Any, ctx: TaskContext) -> None:
    ctx.progress(0.5, "deaf")
    threading.Event().wait(60)


@agent.capability("sample.context@1")
async def context(value: Any, ctx: TaskContext) -> dict[str, Any]:
    remaining = ctx.remaining()
    assert current_task() is ctx and ctx.deadline is not None and remaining is not None
    ctx.log.info("looked at the context")
    return {
        "attempt_id": ctx.attempt_id,
        "run_id": ctx.run_id,
        "key": ctx.idempotency_key,
        "namespace": ctx.namespace,
        "principal": ctx.principal,
        "traceparent": ctx.traceparent,
        "capability": ctx.capability,
        "number": ctx.number,
        "aware": ctx.deadline.tzinfo is not None,
        "left": timedelta(0) < remaining <= timedelta(seconds=60),
    }


@agent.capability("sample.ask@1")
async def ask(value: Any, ctx: TaskContext) -> list[Any]:
    first = await ctx.call("sample.judge@1", Package("a", 1), returns=Verdict, timeout=timedelta(seconds=9))
    try:
        second = await ctx.call("sample.fail@1", "permanent")
    except CallFailed as error:
        second = error.failure.code
    third = await ctx.call("sample.count@1", "x", call_id="mine")
    return [first.name, second, third]


@agent.capability("sample.ask-once@1")
async def ask_once(value: Any, ctx: TaskContext) -> Any:
    return await ctx.call("sample.judge@1", value)


@agent.capability("sample.large@1")
async def large(size: int) -> str:
    return "x" * size


@agent.capability("sample.envelope@1")
async def envelope(payload: Payload) -> Payload:
    return Payload(inline=payload.inline[::-1], media_type="text/plain")


@agent.capability("sample.nan@1")
async def nan() -> Any:
    return float("nan")


if __name__ == "__main__":
    agent.run(grace=timedelta(seconds=float(sys.argv[2]) if len(sys.argv) > 2 else 30))
