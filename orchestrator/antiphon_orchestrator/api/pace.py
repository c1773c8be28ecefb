"""What the streams of callers take of the event loop, so that one who sends without end does not keep the others out.

A call is small, and calls are limited by rate. A stream has neither: it is read as quick as it is worked off, 256
submissions in a message. So all of them together work in slices, and between two slices everybody else on the loop has
some turns. Where nobody wants one, those take microseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLICE = 0.001
"""Seconds of a slice."""

ROUNDS = 16
"""Turns of the loop between two slices."""


class Pace:
    """Shared by all streams of a process. What takes longer than a slice is followed by as many more turns. `clock`
    gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._used = 0.0
        self._one_by_one = asyncio.Lock()

    async def begin(self) -> None:
        """Waits, behind whoever waits already, until something is left of a slice."""
        while self._used >= SLICE:
            async with self._one_by_one:
                while self._used >= SLICE:
                    for _ in range(ROUNDS):
                        await asyncio.sleep(0)
                    self._used -= SLICE

    @contextmanager
    def work(self) -> Iterator[None]:
        """Work of a stream; it does not wait for anything meanwhile."""
        begun = self._clock()
        try:
            yield
        finally:
            self._used += self._clock() - begun
