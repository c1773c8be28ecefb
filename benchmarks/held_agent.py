"""The agent where replicas crash: each task it has worked on is a line in a journal, and some tasks wait at a gate.

Settings by environment: BENCH_JOURNAL, BENCH_GATE (paths). A line is the time (seconds since 1970), the capability and
the idempotency key, which begins with the id of the run.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TypedDict

from antiphon import Agent, TaskContext

_LOOK = 0.02


class Message(TypedDict):
    """Input and output."""

    text: str


agent = Agent("bench", concurrency=1000, prefetch=1000)
# O_APPEND and a write a line: a kill loses nothing of what was worked on.
_journal = os.open(os.environ["BENCH_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_gate = Path(os.environ["BENCH_GATE"])
_opening: list[asyncio.Task[None]] = []


def _note(ctx: TaskContext) -> None:
    os.write(_journal, f"{time.time():.6f} {ctx.capability} {ctx.idempotency_key}\n".encode())


async def _open() -> None:
    while not _gate.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(_LOOK)


@agent.capability("echo@1", effect="pure")
async def echo(message: Message, ctx: TaskContext) -> Message:
    """Gives back what it got."""
    _note(ctx)
    return message


@agent.capability("echo-held@1", effect="pure")
async def held(message: Message, ctx: TaskContext) -> Message:
    """The same, once the gate is there; all of them wait for one look at it."""
    if not _opening:
        _opening.append(asyncio.create_task(_open()))
    await asyncio.shield(_opening[0])
    _note(ctx)
    return message


if __name__ == "__main__":
    agent.run()
