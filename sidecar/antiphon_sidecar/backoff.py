"""How long to wait before something that has failed is tried again."""

from __future__ import annotations

import random

# Far below the 5 s for which a new owner of a shard waits for the sidecars of its attempts, from its first moment on.
FIRST, MOST = 0.1, 2.0


def backoff(failures: int) -> float:
    """Seconds before the next try: doubling, the upper half at random."""
    return min(FIRST * (1 << min(failures, 10)), MOST) * (0.5 + 0.5 * random.random())
