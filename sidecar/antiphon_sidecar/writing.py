"""The one writer of a stream to a replica: under load what follows closely goes together, else each goes at once.

A message costs its reader more than a report in it does, and agents that answer quickly make many small ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from antiphon.mesh.v1 import mesh_service_pb2 as mesh

from .wire import MOST_ITEMS

GAP = 0.001
"""Seconds after a message of several reports in which the next one gathers."""

SEVERAL = 4
"""Reports in a message which tell that there is load. A single chain never comes to it: its steps wait for each other,
and a gap in each would only make it slower."""


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
            if SEVERAL <= len(request.reports) < MOST_ITEMS:
                await gap()
