"""Due times of a shard, kept so that a run that ends takes its timers with it.

Times are sorted into slots of GRAIN; a heap orders the slots, not the timers, so setting and clearing one costs a set
operation. A timer fires at most GRAIN late. Nothing here is durable: after recovery the timers are set again from the
state of the runs.
"""

from __future__ import annotations

import heapq

GRAIN = 10_000
"""Width of a slot in microseconds."""

Key = tuple[str, int, int]
"""(run id, task index, member); task index -1 for the run's own deadline."""


class Timers:
    def __init__(self) -> None:
        self._slots: dict[int, set[Key]] = {}
        self._order: list[int] = []
        self._due: dict[Key, int] = {}

    def set(self, key: Key, due: int) -> None:
        """Sets, or moves, a timer to `due` (microseconds since 1970)."""
        slot = -(-due // GRAIN)
        old = self._due.get(key)
        if old == slot:
            return
        if old is not None:
            self._slots[old].discard(key)
        self._due[key] = slot
        keys = self._slots.get(slot)
        if keys is None:
            keys = self._slots[slot] = set()
            heapq.heappush(self._order, slot)
        keys.add(key)

    def clear(self, key: Key) -> None:
        slot = self._due.pop(key, None)
        if slot is not None:
            self._slots[slot].discard(key)

    def next_due(self) -> int | None:
        """When the next timer fires, in microseconds since 1970."""
        while self._order and not self._slots[self._order[0]]:
            del self._slots[heapq.heappop(self._order)]
        return self._order[0] * GRAIN if self._order else None

    def pop_due(self, now: int, limit: int) -> list[Key]:
        """Takes out at most `limit` timers that are due."""
        result: list[Key] = []
        while len(result) < limit and (due := self.next_due()) is not None and due <= now:
            keys = self._slots[self._order[0]]
            while keys and len(result) < limit:
                key = keys.pop()
                del self._due[key]
                result.append(key)
        return result
