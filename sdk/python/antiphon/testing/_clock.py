"""A clock that goes on by itself, and leaps when it is told to."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta


class Clock:
    """What runs, attempts and delays of a test mesh are timed by."""

    def __init__(self) -> None:
        self._ahead = 0
        self._turned = asyncio.Event()

    def now(self) -> int:
        """Microseconds since 1970."""
        return time.time_ns() // 1000 + self._ahead

    def monotonic(self) -> float:
        """Seconds, from no particular beginning."""
        return time.monotonic() + self._ahead / 1e6

    def turn(self, by: int) -> None:
        """Leap forward by so many microseconds."""
        self._ahead += by
        self._turned.set()
        self._turned = asyncio.Event()

    async def sleep(self, duration: timedelta) -> None:
        """Return when so much time has passed, by itself or by being turned."""
        end = self.monotonic() + duration.total_seconds()
        while (left := end - self.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._turned.wait()
            except TimeoutError:
                continue
