"""A circuit breaker: whether an instance that fails again and again gets more work. Pure; who holds one has the clock.

    CLOSED ──(failures: so many, and such a share)──▶ OPEN ──(pause is over)──▶ HALF_OPEN ──(it works)──▶ CLOSED
                                                       ▲                            │
                                                       └────────(it fails)──────────┘  each pause is twice the last

Failures are those that say something of the instance (`BLAMED`): one that answers that an input is wrong works well.
An instance has a breaker from its first such failure on, until a whole window has passed without one, so that whoever
never fails pays nothing for it.
"""

from __future__ import annotations

from ..engine.failure import FailureKind

CLOSED, OPEN, HALF_OPEN = 1, 2, 3
"""States, as antiphon.v1.BreakerState."""

BLAMED = frozenset({FailureKind.TRANSIENT, FailureKind.TIMEOUT, FailureKind.INVALID_OUTPUT})

LONGEST = 8
"""So many times as long as the first a pause may become. No more, for an instance may also fail because of what it is
given, and that has to come to its end as well."""


class Breaker:
    """Opens at `failures` failures among the last twice as many outcomes, if they are at least `share` of those seen.

    `pause`: of the first opening, in microseconds. `completed`: outcomes without a failure that came before it.
    """

    __slots__ = ("_bits", "_failures", "_pause", "_seen", "_share", "allowed", "opened", "reason", "state", "until")

    def __init__(self, failures: int, share: float, pause: int, completed: int) -> None:
        self._failures = failures
        self._share = share
        self._pause = pause
        self._bits = 0
        self._seen = min(completed, failures * 2)
        self.state = CLOSED
        self.allowed = 0
        """Attempts that may be out while it is half open: those from before, and one more."""
        self.opened = 0
        """How often in a row."""
        self.until = 0
        """When the pause of an open one is over, in microseconds since 1970."""
        self.reason = ""
        """One sentence about why it opened last; kinds of failures, never what they say of a user's work."""

    @property
    def idle(self) -> bool:
        """Whether nothing that it has seen speaks against the instance: it can be forgotten."""
        return self.state == CLOSED and not self._bits and self._seen >= self._failures * 2

    def note(self, kind: FailureKind | None, now: int) -> bool:
        """An outcome: the kind of a failure that is the instance's own, else None. Says whether the state changed.

        What was begun before counts while it is half open, too, and is not looked at while it is open.
        """
        failed = kind is not None
        if self.state == OPEN:
            return False
        window = self._failures * 2
        if self.state == HALF_OPEN:
            if failed:
                self._open(f"it failed again when it was tried, with {_said(kind)}", now)
            else:
                self.state, self._bits, self._seen = CLOSED, 0, 0
            return True
        self._bits = (self._bits << 1 | failed) & ((1 << window) - 1)
        self._seen = min(self._seen + 1, window)
        count = self._bits.bit_count()
        if self.idle:
            self.opened = 0
        if not failed or count < self._failures or count < self._share * self._seen:
            return False
        self._open(f"{count} of its last {self._seen} attempts failed, the last one with {_said(kind)}", now)
        return True

    def _open(self, reason: str, now: int) -> None:
        self.state, self.reason = OPEN, reason
        self.until = now + self._pause * min(2**self.opened, LONGEST)
        self.opened = min(self.opened + 1, 32)

    def look(self, now: int) -> bool:
        """Half opens it when its pause is over; whether it did."""
        if self.state != OPEN or now < self.until:
            return False
        self.state = HALF_OPEN
        return True


def _said(kind: FailureKind | None) -> str:
    return "" if kind is None else kind.name
