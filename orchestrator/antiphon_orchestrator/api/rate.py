"""How often each caller may call: token buckets, a bounded number of them. Pure, with the clock passed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class TokenBuckets:
    """`rate` calls a second each, `burst` at once. Of more than `capacity` callers the longest silent is forgotten,
    which can only do it a favour. `clock` gives monotonic seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float], *, capacity: int = 4096) -> None:
        self.rate = rate
        self._burst = burst
        self._clock = clock
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """0 if the call may go on, which uses a token up; otherwise the seconds until there will be one."""
        now = self._clock()
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self.rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self.rate
