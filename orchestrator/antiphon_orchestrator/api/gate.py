"""How many unary calls a server works on at once: as many as it answers in time; and how many streams each caller has
open. Pure, with the clock passed in.

The number is found by trying (additive increase, multiplicative decrease): once in a while it is looked at how long
calls took. Were most of them slower than they should be, fewer are taken; were they quick and the room was needed,
more. A refused call is told when to come back, and whoever obeys finds that those who were taken are answered quickly,
instead of all being answered late.

At the limit a caller who has less than its share in hand is still taken, so that one who floods the server does not
keep the others out: together they can come to twice the limit, no more. What a call only waits for, such as the end of
a run, is no work of the server: it hands its place back, and counts among its caller's streams.
"""

from __future__ import annotations

from collections.abc import Callable

FEWEST = 16
"""Calls that are always taken."""

SAMPLES = 10
"""Calls that must have ended before anything is decided."""

DOWN, UP = 0.7, 1.1
"""Factors of one step."""


class Streams:
    """How many streams each caller has open, with the calls that wait for what is not the server's: `most`, and no
    more. Each costs memory, a stream while nobody reads it, too."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._callers: dict[str, int] = {}

    def enter(self, caller: str) -> bool:
        """Whether the caller may have one more; `leave` when it is over."""
        mine = self._callers.get(caller, 0)
        if mine >= self._most:
            return False
        self._callers[caller] = mine + 1
        return True

    def leave(self, caller: str) -> None:
        left = self._callers[caller] - 1
        if left:
            self._callers[caller] = left
        else:
            del self._callers[caller]


class Place:
    """One call that is in hand. Given back once, whoever does it first."""

    __slots__ = ("_begun", "_caller", "_gate", "_over")

    def __init__(self, gate: Gate, caller: str, begun: float) -> None:
        self._gate = gate
        self._caller = caller
        self._begun = begun
        self._over = False

    def ended(self) -> None:
        """The call is answered: how long it took counts."""
        if not self._over:
            self._gate.took(self._begun)
        self.give_back()

    def give_back(self) -> None:
        """The call is over, or waits for something that is not the server's work."""
        if not self._over:
            self._over = True
            self._gate.give_back(self._caller)


class Gate:
    """`most` calls at once, as long as they take less than `latency` seconds. `clock`: monotonic seconds."""

    def __init__(self, most: int, latency: float, clock: Callable[[], float]) -> None:
        self._most = max(most, FEWEST)
        self._latency = latency
        self._clock = clock
        self._callers: dict[str, int] = {}
        self._since = clock()
        self._ended = 0
        self._slow = 0
        self._peak = 0
        self.limit = self._most
        self.in_hand = 0

    def enter(self, caller: str) -> Place | None:
        """A place for a call of this caller; None when it is to come back later."""
        mine = self._callers.get(caller, 0)
        if self.in_hand >= self.limit:
            callers = len(self._callers) + (not mine)
            if mine >= self.limit // callers or self.in_hand >= self.limit * 2:
                return None
        self._callers[caller] = mine + 1
        self.in_hand += 1
        self._peak = max(self._peak, self.in_hand)
        return Place(self, caller, self._clock())

    def took(self, begun: float) -> None:
        """A call ended that began then."""
        now = self._clock()
        self._ended += 1
        self._slow += now - begun > self._latency
        if self._ended >= SAMPLES and now - self._since >= self._latency:
            self._decide(now)

    def give_back(self, caller: str) -> None:
        left = self._callers[caller] - 1
        if left:
            self._callers[caller] = left
        else:
            del self._callers[caller]
        self.in_hand -= 1

    def _decide(self, now: float) -> None:
        if self._slow * 2 > self._ended:
            self.limit = max(FEWEST, int(min(self.limit, self._peak) * DOWN))
        elif self._peak * 2 > self.limit:
            self.limit = min(self._most, int(self.limit * UP) + 1)
        self._since, self._ended, self._slow, self._peak = now, 0, 0, self.in_hand
