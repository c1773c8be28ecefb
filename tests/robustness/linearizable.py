"""What clients saw of shared context, each call with its answer, and whether it is linearizable: porcupine says.

Only the clients of the test record: nothing here is told by the product of itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from antiphon import Client, EntryConflict, EntryNotFound, RetryableError, entry_value

from tests.harness import eventually

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "tools/porcupine"
KEYS = ("plan", "facts/a", "facts/b")
PATIENCE = 120.0
"""Seconds until an operation must have a definite answer, whatever is broken meanwhile."""


@dataclass
class Operation:
    """As tools/porcupine reads it."""

    client: int
    key: str
    kind: str
    call: int
    outcome: str = ""
    expected: int | None = None
    value: str = ""
    revision: int = 0
    returned: int = 0
    """`return` there, which is no name in Python."""

    def as_json(self) -> dict[str, Any]:
        names = {"returned": "return"}
        return {names.get(name, name): value for name, value in asdict(self).items() if value is not None}


async def share(
    client: Client, number: int, dice: random.Random, history: list[Operation], stop: asyncio.Event
) -> None:
    """One client that reads, writes and removes a few entries, one operation after the other, until told to stop."""
    seen: dict[str, int] = {}
    while not stop.is_set():
        key = dice.choice(KEYS)
        operation = Operation(number, key, dice.choice(["get", "get", "put", "put", "delete"]), 0)
        if operation.kind != "get" and dice.random() < 0.6:
            # Nobody's guess: what this client saw last, which another may have changed since.
            operation.expected = seen.get(key, 0)
        if operation.kind == "put":
            operation.value = f"{number}-{len(history)}"
        await perform(client, operation, f"{dice.getrandbits(64):016x}")
        seen[key] = 0 if operation.outcome == "none" or operation.kind == "delete" else operation.revision
        history.append(operation)
        await asyncio.sleep(dice.uniform(0, 0.05))


async def perform(client: Client, operation: Operation, request_id: str) -> None:
    """One operation, asked for again by the same request id until its answer is definite."""
    ways: dict[str, Callable[[Client, Operation, str], Awaitable[None]]] = {"get": get, "put": put, "delete": delete}

    async def once() -> bool:
        with suppress(RetryableError):
            await ways[operation.kind](client, operation, request_id)
            return True
        return False

    operation.call = time.monotonic_ns()
    await eventually(once, limit=PATIENCE)
    operation.returned = time.monotonic_ns()


async def get(client: Client, operation: Operation, request_id: str) -> None:
    try:
        entry = await client.get_entry(operation.key)
    except EntryNotFound:
        operation.outcome = "none"
    else:
        operation.outcome, operation.revision, operation.value = "done", entry.revision, entry_value(entry)


async def put(client: Client, operation: Operation, request_id: str) -> None:
    words = {"expected_revision": operation.expected, "request_id": request_id}
    try:
        answer = await client.put_entry(operation.key, operation.value, **words)  # type: ignore[arg-type]
    except EntryConflict as conflict:
        operation.outcome, operation.revision = "conflict", int(conflict.metadata["revision"])
    else:
        operation.outcome, operation.revision = "done", answer.revision


async def delete(client: Client, operation: Operation, request_id: str) -> None:
    try:
        revision = await client.delete_entry(operation.key, expected_revision=operation.expected, request_id=request_id)
    except EntryConflict as conflict:
        operation.outcome, operation.revision = "conflict", int(conflict.metadata["revision"])
    else:
        operation.outcome, operation.revision = "done", revision


class PorcupineMissing(Exception):
    """The checker cannot be built here; the text is one line with the remedy."""


def checker() -> Path:
    """The program, built when it is not current. Raises PorcupineMissing."""
    if shutil.which("go") is None:
        raise PorcupineMissing("go is missing, which builds porcupine; install it from https://go.dev/dl")
    target = ROOT / ".cache/porcupine/porcupine"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-buildvcs=false", "-o", str(target), "."]
    done = subprocess.run(command, cwd=MODULE, capture_output=True, text=True, timeout=600)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PorcupineMissing(f"go build failed ({last}); is the module proxy reachable?")
    return target


def faults(program: Path, history: list[Operation]) -> list[str]:
    """What is wrong with a history, a line for each key; nothing when it is linearizable."""
    text = json.dumps([operation.as_json() for operation in history])
    done = subprocess.run([str(program)], input=text, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), f"porcupine has not judged: {done.stdout}{done.stderr}"
    lines = done.stdout.splitlines()
    assert bool(lines) == bool(done.returncode)
    return lines
