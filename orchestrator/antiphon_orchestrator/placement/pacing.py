"""Has a fleet look after what only time brings: tokens of rates, and the ends of breakers' pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from .fleet import Fleet
from .limits import Limits

LOOK = 1.0
"""Seconds after which the time is looked at again, although nothing is due: it may have leapt."""


class Pacing:
    """`run` in the task group. `now`: microseconds since 1970, the fleet's."""

    def __init__(self, fleet: Fleet, now: Callable[[], int]) -> None:
        self._fleet = fleet
        self._now = now
        self._wake = asyncio.Event()
        fleet.limits.woken = self._wake.set

    def wake(self) -> None:
        """Something may be due sooner than was known."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            due = self._fleet.due()
            if due is None:
                await self._wake.wait()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(max(0, due - self._now()) / 1e6, LOOK)):
                        await self._wake.wait()
            self._wake.clear()
            self._fleet.look()


def divide(limits: Limits, replicas: Sequence[str], replica_id: str) -> None:
    """Has this replica enforce its part of every limit. `replicas`: those that are there, in the order of all.

    One that is not among them, since it leaves or has not renewed its lease in time, keeps the part that it had: it
    knows no better, and others may be in the same place.
    """
    if replica_id in replicas:
        limits.divide(len(replicas), replicas.index(replica_id))
