"""Who is next where namespaces wait for the same thing: each gets its share by weight, whatever the others ask for.

Start-time fair queueing: each namespace has a clock that goes on by 1 / weight with every one of its own that is taken,
and the one that is furthest behind is next. Who begins to wait sets out from the clock of whoever was taken last, so
that silence earns nothing. Within a namespace the smallest order is first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

Order = tuple[int, ...]
"""Priority, negated, deadline, and arrival where that is to be kept."""


class FairQueue:
    """Things that wait, by namespace. `weights` are those of namespaces that have not the weight 1."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._queues: dict[str, list[tuple[Order, int, Any]]] = {}
        self._turns: list[tuple[float, int, str]] = []
        self._clock = 0.0
        self._reached: dict[str, float] = {}
        self._number = count()
        self.size = 0

    def push(self, namespace: str, order: Order, thing: Any) -> None:
        queue = self._queues.get(namespace)
        if queue is None:
            queue = self._queues[namespace] = []
            begin = max(self._clock, self._reached.pop(namespace, 0.0))
            heapq.heappush(self._turns, (begin, next(self._number), namespace))
        heapq.heappush(queue, (order, next(self._number), thing))
        self.size += 1

    def pop(self) -> Any:
        """The next of the namespace whose turn it is. Only while `size` is not 0."""
        self._clock, number, namespace = self._turns[0]
        queue = self._queues[namespace]
        thing = heapq.heappop(queue)[2]
        self.size -= 1
        reached = self._clock + 1.0 / self._weights.get(namespace, 1)
        if queue:
            heapq.heapreplace(self._turns, (reached, number, namespace))
        else:
            heapq.heappop(self._turns)
            del self._queues[namespace]
            self._reached[namespace] = reached
        self._rest()
        return thing

    def of(self, namespace: str) -> int:
        """How many of one namespace wait."""
        return len(self._queues.get(namespace, ()))

    def share(self, namespace: str, whole: int) -> int:
        """The part of so many places that a namespace may have beside those that wait now; at least one."""
        weights = {other: self._weights.get(other, 1) for other in (*self._queues, namespace)}
        return max(1, whole * weights[namespace] // sum(weights.values()))

    def things(self) -> Iterator[Any]:
        """All that wait, in no order."""
        return (thing for queue in self._queues.values() for _, _, thing in queue)

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Leaves out whatever is not wanted. Costs as much as all that wait."""
        for namespace in list(self._queues):
            queue = [entry for entry in self._queues[namespace] if wanted(entry[2])]
            if queue:
                heapq.heapify(queue)
                self._queues[namespace] = queue
            else:
                del self._queues[namespace]
        self._turns = [turn for turn in self._turns if turn[2] in self._queues]
        heapq.heapify(self._turns)
        self.size = sum(map(len, self._queues.values()))
        self._rest()

    def _rest(self) -> None:
        """Nobody waits: what was before does not count any more, so that what is kept has a bound."""
        if not self.size:
            self._clock = 0.0
            self._reached.clear()


def read_weights(texts: tuple[str, ...]) -> dict[str, int]:
    """`NAMESPACE=WEIGHT`, each. Raises ValueError that says what to write instead."""
    weights: dict[str, int] = {}
    for text in texts:
        namespace, _, number = text.partition("=")
        if not namespace or not number.isdecimal() or not 1 <= int(number) <= 1000:
            raise ValueError(f"write NAMESPACE=WEIGHT with a weight from 1 to 1000, such as team-a=4, not {text!r}")
        if namespace in weights:
            raise ValueError(f"{namespace} has two weights; give one")
        weights[namespace] = int(number)
    return weights
