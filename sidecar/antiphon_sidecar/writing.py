"""The one writer of a stream to a replica: what comes after a pause goes at once, what follows closely goes together.

A message costs its reader more than a report in it does, and an agent that answers quickly may answer one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from antiphon.mesh.v1 import mesh_service_pb2 as mesh

from .wire import MOST_ITEMS

GAP = 0.001
"""Seconds after a message that was not full in which the next one gathers: less than a step of a chain takes."""


def _gap() -> Awaitable[None]:
    return asyncio.sleep(GAP)


async def keep_writing(
    write: Callable[[mesh.AttachRequest], Awaitable[None]],
    take: Callable[[], mesh.AttachRequest | None],
    wake: asyncio.Event,
    gap: Callable[[], Awaitable[None]] = _gap,
) -> None:
    """Writes whatever `take` gives, whenever `wake` is set. Never returns; raises what `write` raises."""
    while True:
        await wake.wait()
        wake.clear()
        while (request := take()) is not None:
            await write(request)
            if len(request.reports) < MOST_ITEMS:
                await gap()
