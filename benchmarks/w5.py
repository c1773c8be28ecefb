"""W5: shared context by unary calls, 64 in flight, beside the bare store on the same disk with as many waiting.

A put is new each time, of one of a thousand keys; a get reads one of 64 of them. The bare store does what a put and a
get come to: two keys in a transaction, one read. What lies between is gRPC, TLS, checks, policy and the index.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

from antiphon_orchestrator.store import Put, SqliteStore, Txn, keys

from .mesh import Mesh
from .statistic import percentile_ms

IN_FLIGHT = 64
KEYS = 1_000
VALUE = {"text": "x" * 200}
_WARM_UP = 0.25

Operation = Callable[[int], Awaitable[object]]


async def measure(mesh: Mesh, folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """By operation, each for `seconds`: keys put, get, store_put, store_get."""
    client = mesh.client
    results = {
        "put": await _measured(lambda number: client.put_entry(f"bench/{number % KEYS}", VALUE), seconds),
        "get": await _measured(lambda number: client.get_entry(f"bench/{number % IN_FLIGHT}"), seconds),
    }
    value = b"x" * 500  # about what an entry of VALUE comes to, with its provenance
    async with SqliteStore(folder / "bare.db") as store:

        def put(number: int) -> Awaitable[object]:
            entry = keys.context("bench", "namespace", f"bench/{number % KEYS}")
            return store.commit(
                Txn((), (Put(entry, value), Put(keys.context_request("bench", "c", f"{number}"), b"x")))
            )

        def get(number: int) -> Awaitable[object]:
            return store.range(keys.context("bench", "namespace", f"bench/{number % IN_FLIGHT}"))

        results["store_put"] = await _measured(put, seconds)
        results["store_get"] = await _measured(get, seconds)
    return results


async def _measured(operation: Operation, seconds: float) -> dict[str, float]:
    """Operations a second, and how long one takes. The first part of the time warms up and is not counted."""
    durations: list[float] = []
    numbers = count()
    opens = time.perf_counter() + seconds * _WARM_UP
    closes = opens + seconds

    async def keep_asking() -> None:
        while (begun := time.perf_counter()) < closes:
            await operation(next(numbers))
            if begun >= opens or not durations:
                durations.append(time.perf_counter() - begun)

    await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
    return {"per_s": len(durations) / (time.perf_counter() - opens), "p50_ms": percentile_ms(durations, 0.5)}
