"""The life of one attempt in a sidecar: its states, what can happen to it, and the table of both. Pure; standard
library only.

`inflight.py` holds the attempts and is the only one that moves them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .boxes import Link, Seat
    from .windows import Grant


class State(IntEnum):
    """Where an attempt is."""

    ABSENT = 0  # not held: before its offer and after its verdict
    QUEUED = 1  # accepted, waits for a place at its agent
    STARTED = 2  # taken for the agent, no outcome yet
    REPORTED = 3  # has an outcome, no verdict yet


class Event(IntEnum):
    """What can happen to it."""

    OFFERED = 0
    TAKEN = 1
    ENDED = 2
    CANCELLED = 3
    EXPIRED = 4
    AGENT_GONE = 5
    DRAINED = 6
    VERDICT = 7
    POLICY_CHANGED = 8
    AGENT_LEFT = 9  # it was draining, or its sidecar was
    CROWDED = 10  # it was to be alone, and others went on for too long
    FOUND = 11  # its outcome is there already: a former life has left it


class End(IntEnum):
    """What a report says."""

    NONE = 0
    RESULT = 1  # what the agent answered
    CANCELLED = 2
    TIMEOUT = 3
    LOST = 4
    TOO_LATE = 5  # from here to STALE_POLICY: RETURNED, it was never begun
    AGENT_GONE = 6
    DRAINING = 7
    NO_SLOT = 8
    STALE_EPOCH = 9
    STALE_POLICY = 10
    LEFT = 11  # lost as well, but nobody died of it


TABLE: dict[tuple[State, Event], tuple[State, End]] = {
    (State.ABSENT, Event.OFFERED): (State.QUEUED, End.NONE),
    (State.ABSENT, Event.FOUND): (State.REPORTED, End.RESULT),
    (State.QUEUED, Event.OFFERED): (State.QUEUED, End.NONE),  # a duplicate
    (State.QUEUED, Event.TAKEN): (State.STARTED, End.NONE),
    (State.QUEUED, Event.CANCELLED): (State.REPORTED, End.CANCELLED),
    (State.QUEUED, Event.EXPIRED): (State.REPORTED, End.TOO_LATE),
    (State.QUEUED, Event.AGENT_GONE): (State.REPORTED, End.AGENT_GONE),
    (State.QUEUED, Event.AGENT_LEFT): (State.REPORTED, End.AGENT_GONE),
    (State.QUEUED, Event.CROWDED): (State.REPORTED, End.NO_SLOT),
    (State.QUEUED, Event.DRAINED): (State.REPORTED, End.DRAINING),
    (State.QUEUED, Event.POLICY_CHANGED): (State.REPORTED, End.STALE_POLICY),
    (State.STARTED, Event.OFFERED): (State.STARTED, End.NONE),  # a duplicate
    (State.STARTED, Event.ENDED): (State.REPORTED, End.RESULT),
    (State.STARTED, Event.CANCELLED): (State.STARTED, End.NONE),  # the agent is told, and answers
    (State.STARTED, Event.EXPIRED): (State.REPORTED, End.TIMEOUT),
    (State.STARTED, Event.AGENT_GONE): (State.REPORTED, End.LOST),
    (State.STARTED, Event.AGENT_LEFT): (State.REPORTED, End.LEFT),
    (State.REPORTED, Event.OFFERED): (State.REPORTED, End.NONE),  # the outcome is sent again
    (State.REPORTED, Event.VERDICT): (State.ABSENT, End.NONE),
}
"""(state, event) → (next state, what is reported). A pair that is not here does not happen: late results and cancels
find no attempt that is STARTED, and verdicts none that is REPORTED, and are ignored before they get here."""

Deliver = Callable[[Any], None]
"""Hands a call's response to the one who waits; None when its attempt has ended without one."""


class Attempt:
    """One attempt, from its offer to the verdict on its outcome."""

    __slots__ = (
        "alone", "announced", "asks", "assignment", "attempt_id", "busy", "calls", "cancelled", "deadline", "death",
        "end", "grant",
        "link", "policy_epoch", "reads", "result", "seat", "seat_name", "shard", "size", "spooled", "started", "state",
        "timeout", "token",
    )  # fmt: skip

    def __init__(self, attempt_id: str, shard: int, seat_name: str) -> None:
        self.attempt_id = attempt_id
        self.shard = shard
        self.alone = False  # to be begun when nothing else is under way
        self.seat_name = seat_name
        self.seat: Seat | None = None
        self.link: Link | None = None  # of the replica that offered or adopted it
        self.grant: Grant | None = None  # that counts it as out
        self.policy_epoch = 0  # of the decision that permitted it
        self.state = State.ABSENT
        self.assignment: Any = None  # opaque; dropped once it is written
        self.token = b""
        self.size = 0  # bytes, of what is to be sent next
        self.timeout: float | None = None
        self.deadline: float | None = None  # of the wait while QUEUED, of the work once STARTED
        self.started = 0.0  # while it waits to be alone: since when it is the next to be
        self.busy = 0.0  # seconds
        self.end = End.NONE
        self.result: Any = None  # opaque; the agent's own, with End.RESULT
        self.announced = False
        self.cancelled: str | None = None  # why, once a cancel has come
        self.death = ""  # how its agent's process ended, with End.LOST, as far as this sidecar knows
        self.calls: dict[str, tuple[Any, int, Deliver]] | None = None  # call id → request, its bytes, who waits
        self.asks: dict[str, tuple[Any, int, Deliver]] | None = None  # the same of requests to shared context
        self.spooled: Any = None  # opaque; where its outcome is on disk
        self.reads: Any = None  # opaque; what it has read of shared context, and labels of what it was answered
