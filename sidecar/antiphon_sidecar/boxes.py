"""The two ends of a sidecar as seen from the middle: a link to each replica, a seat for each agent. Pure.

Both are outboxes that `inflight.py` fills and the writer of a stream empties, a message at a time. Each is bounded:
by windows, by the number of agents, or by keeping only the latest of a kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from antiphon.partials import Pieces

from .attempts import Attempt
from .windows import Grant

PAGE = 1_000
"""Attempt ids in one page of an inventory, of each list."""


class Claim(NamedTuple):
    """The highest epoch seen of a shard, and the link of its owner while that is attached."""

    epoch: int
    link: Link | None


class Said(NamedTuple):
    """What a hello says of an agent: its window, and which of its comings is described."""

    generation: int
    slots: int
    arrival: int


class Inventory(NamedTuple):
    """One page of the answer to a claim."""

    shard: int
    epoch: int
    attempt_ids: list[str]
    reported_attempt_ids: list[str]
    last: bool


class Link:
    """The outbox to one replica. Its writer takes what it can send in one message and leaves the rest."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.grants: dict[str, Grant] = {}
        self.away = False
        """The other replicas say that this one is gone, although its stream is there: it gets no slots."""
        self.clear()

    def clear(self) -> None:
        """Empty the outbox; everything in it is made anew for the next stream."""
        self.inventories: deque[Inventory] = deque()
        self.started: deque[Attempt] = deque()
        self.reports: deque[Attempt] = deque()
        self.progress: dict[str, tuple[Attempt, Any]] = {}  # the latest of each attempt
        self.pieces: Pieces[str] = Pieces()  # of output, by attempt id
        self.windows: dict[str, tuple[int, int]] = {}  # agent → (generation, slots), the latest of each
        self.agents: dict[str, bool] = {}  # agent → present, the latest of each
        self.calls: deque[tuple[Any, int]] = deque()  # request, its bytes
        self.asks: deque[tuple[Any, int]] = deque()  # the same, to shared context
        self.alive = False  # a liveness message is due
        self.drain = False  # the drain message is due


class Seat:
    """The place of one agent: its queue, and the outbox to it."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self.name = name
        self.wake = wake
        self.present = False
        self.arrival = 0  # how often it has come; each time it may be another version
        self.draining = False
        self.concurrency = 0
        self.prefetch = 0
        self.queue: deque[Attempt] = deque()  # may hold some that ended while they waited
        self.queued = 0  # those that did not
        self.running: dict[str, Attempt] = {}
        self.waiting = 0  # running attempts that wait for their own calls
        self.lingering: dict[str, float] = {}  # timed out, not yet answered: attempt id → when another gets its place
        self.cancels: deque[tuple[str, str]] = deque()  # attempt id, why
        self.losses: deque[Any] = deque()  # claims that are lost, each told by every replica at most once
        self.pieces: Pieces[tuple[str, str]] = Pieces()  # of what calls are making, by attempt id and call id
        self.turn = 0
        self.unsettled = False

    @property
    def active(self) -> int:
        """Places taken at the agent."""
        return len(self.running) - self.waiting + len(self.lingering)


def pages(shard: int, epoch: int, held: list[Attempt], reported: list[Attempt]) -> Iterable[Inventory]:
    """The inventory of a shard, in pages; one empty page when there is nothing."""
    left, right = (iter([attempt.attempt_id for attempt in attempts]) for attempts in (held, reported))
    count = max(len(held), len(reported), 1)
    for start in range(0, count, PAGE):
        yield Inventory(shard, epoch, list(islice(left, PAGE)), list(islice(right, PAGE)), start + PAGE >= count)
