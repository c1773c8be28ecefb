"""What the streams of callers and the turns of shards take of the event loop, so that neither keeps unary calls out.

A call is small, and calls are limited by rate. A stream has neither: it is read as quick as it is worked off, 256
submissions in a message. So what all of them together take beyond a part of the time is taken in slices, and
between two slices everybody else on the loop has some turns. Where nobody wants one, those take microseconds.

gRPC hands over one call after the other, and needs some turns of the loop for each. With a shard's turn and its commit
in each of those, fewer calls would come in than there are commits. So between two turns of a shard calls are let in as
long as they come, for a bounded time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

FREE = 0.3
"""The part of the time that streams may take without leaving turns to others. Slices would tear apart what comes
together, and small turns of a shard cost more for each task."""

FREE_BESIDE_CALLS = 0.1
"""The same while unary calls come."""

LATELY = 1.0
"""Seconds from one unary call for which others are taken to come."""

SLICE = 0.005
"""Seconds of a slice."""

ROUNDS = 100
"""Turns of the loop between two slices, and as many again while others take more than a slice for them."""

LEFT = 12 * SLICE
"""Seconds that others get at most between two slices. Counted in turns alone, a stream would get the more of the loop
the less each of the others does in one."""

BETWEEN = 8
"""Turns of the loop from one call to the next, at most (4 to 7 with grpcio 1.85)."""

MOST = 4 * SLICE
"""What is owed at most: whatever seems to take longer has waited for something."""


class Piece:
    """One piece of work. A class, because several are made for each submission: a generator takes twice as long, and
    more than thrice as long as this compiled."""

    __slots__ = ("_begun", "_pace")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._begun = pace.begun()

    def __enter__(self) -> None:
        """It began when it was made."""

    def __exit__(self, *_: object) -> None:
        self._pace.done(self._begun)


class Pace:
    """Shared by all streams of a process. What takes longer than a slice is followed by as many more turns. `clock`
    gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._used = 0.0
        self._since = clock()
        self._one_by_one = asyncio.Lock()
        self._calls = 0
        self._called = -math.inf

    async def begin(self) -> None:
        """Waits, behind whoever waits already, until something is left of a slice."""
        if self._used < SLICE:
            return
        now = self._clock()
        free = FREE if now - self._called > LATELY else FREE_BESIDE_CALLS
        self._used = max(0.0, self._used - (now - self._since) * free)
        self._since = now
        while self._used >= SLICE:
            await self._one_by_one.acquire()
            try:
                while self._used >= SLICE:
                    await self._leave()
                    self._used -= SLICE
                    self._since = self._clock()
            finally:
                self._one_by_one.release()

    async def _leave(self) -> None:
        """Leaves the loop to others."""
        begun = moment = self._clock()
        while True:
            before = moment
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            moment = self._clock()
            if moment - before < SLICE or moment - begun >= LEFT:
                return

    def work(self) -> Piece:
        """A piece of work, to be done `with` it. Should it wait for anything, others wait for a moment, and not for as
        long as it."""
        return Piece(self)

    def begun(self) -> float:
        """When a piece of work that begins now has begun."""
        return self._clock()

    def done(self, begun: float) -> None:
        """A piece of work is over that had begun then."""
        self._used = min(self._used + self._clock() - begun, MOST)

    def came(self) -> None:
        """A unary call came in."""
        self._calls += 1
        self._called = self._clock()

    async def let_in(self) -> None:
        """Leaves the loop to calls as long as they come, for two slices at most; over at once when none came lately."""
        until = 0.0
        while self._calls:
            now = self._clock()
            until = until or now + 2 * SLICE
            self._calls = 0
            if now >= until:
                return
            for _ in range(BETWEEN):
                await asyncio.sleep(0)
