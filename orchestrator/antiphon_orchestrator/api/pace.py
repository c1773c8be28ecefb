"""What the streams of callers take of the event loop, so that one who sends without end does not keep the others out.

A call is small, and calls are limited by rate. A stream has neither: it is read as quick as it is worked off, 256
submissions in a message. So what all of them together take beyond three tenths of the time is taken in slices, and
between two slices everybody else on the loop has some turns. Where nobody wants one, those take microseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FREE = 0.3
"""The part of the time that streams may take without leaving turns to others. Slices would tear apart what comes
together, and small turns of a shard cost more for each task."""

SLICE = 0.005
"""Seconds of a slice."""

ROUNDS = 100
"""Turns of the loop between two slices."""

MOST = 4 * SLICE
"""What is owed at most: whatever seems to take longer has waited for something."""


class Pace:
    """Shared by all streams of a process. What takes longer than a slice is followed by as many more turns. `clock`
    gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._used = 0.0
        self._since = clock()
        self._one_by_one = asyncio.Lock()

    async def begin(self) -> None:
        """Waits, behind whoever waits already, until something is left of a slice."""
        if self._used < SLICE:
            return
        now = self._clock()
        self._used = max(0.0, self._used - (now - self._since) * FREE)
        self._since = now
        while self._used >= SLICE:
            async with self._one_by_one:
                while self._used >= SLICE:
                    for _ in range(ROUNDS):
                        await asyncio.sleep(0)
                    self._used -= SLICE
                    self._since = self._clock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A piece of work. Should it wait for anything, others wait for a moment, and not for as long as it."""
        begun = self._clock()
        try:
            yield
        finally:
            self._used = min(self._used + self._clock() - begun, MOST)
