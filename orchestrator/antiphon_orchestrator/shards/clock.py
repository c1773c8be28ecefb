"""The time of an orchestrator: that of the machine, but that it never goes back and never stands still.

Due times are moments of the wall clock, since they outlive a process. When that clock is set back, everything that
waits for a moment would wait for so much longer, a second's pause before a retry for minutes. So time goes on from
where it was, a tenth slower, until the machine's clock has caught up. When it is set forwards, time follows at once:
what was due until then is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Call it for the microseconds since 1970. `wall` and `monotonic` give nanoseconds."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._told = wall()
        self._when = monotonic()

    def __call__(self) -> int:
        when = self._monotonic()
        slowest = self._told + (when - self._when) * 9 // 10
        self._when = when
        self._told = max(self._wall(), slowest)
        return self._told // 1000


now = SteadyClock()
"""The one of this process."""
