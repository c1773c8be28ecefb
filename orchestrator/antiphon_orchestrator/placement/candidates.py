"""Who may have a task and who waits for one: plain data of placement.

Never: a choice, which is the fleet's; a question to policy, which permits.py asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from antiphon.v1 import registry_pb2

from ..admission import Version
from ..engine.failure import Failure
from ..policy import Decision, Limit
from .breaker import CLOSED, HALF_OPEN, Breaker

if TYPE_CHECKING:
    from .limits import Counter

DEFAULT_LATENCY = 0.05
"""Seconds assumed of an instance that has neither declared nor shown any."""


class Need(NamedTuple):
    """What a task asks of an agent, and all that hard filters look at. Tasks with equal needs share a queue.

    `labels` are all of its input; `parts` says which of them are those of some fields only, by JSON pointer with * for
    places of lists: an agent whose schema does not declare a field does not get it, nor needs clearance for it.
    `traits`: what the capability must be declared to be, pure or idempotent. `taken`: agents or instances that do not
    get it, since another member of the same task is theirs.
    """

    namespace: str
    capability: str
    agent_labels: tuple[tuple[str, str], ...]
    max_cost: float
    labels: frozenset[str]
    parts: tuple[tuple[str, frozenset[str]], ...] = ()
    traits: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()


class Waiter(NamedTuple):
    """A task that waits for a slot; ordered by its first three fields."""

    order: int
    deadline: int
    arrival: int
    shard: int
    run_id: str
    task: int
    member: int
    passed: frozenset[Counter] = frozenset()
    """Limits at which its turn has come already."""


@dataclass(slots=True)
class Instance:
    """One live process of an agent. `in_use` counts attempts out to it, those of a former owner's run included.

    `away`: its sidecar has no stream, and may come back.
    `usable` are those of its `slots` that placement may use: all of them, unless its breaker is open.
    """

    instance_id: str
    namespace: str
    sidecar: str
    incarnation: str
    description: registry_pb2.AgentDescription
    slots: int
    window_generation: int
    attach_time: int
    in_use: int = 0
    latency: float | None = None
    completed: int = 0
    failed: int = 0
    draining: bool = False
    away: bool = False
    offers: list[Offered] = field(default_factory=list)
    breaker: Breaker | None = None
    agent: str = field(init=False)
    concurrency: int = field(init=False)
    usable: int = field(init=False)

    def __post_init__(self) -> None:
        # Read for every task that is placed, and a message's fields are slow to read.
        self.agent = self.description.name
        self.concurrency = max(1, self.description.concurrency)
        self.usable = self.slots

    @property
    def free(self) -> int:
        return self.usable - self.in_use

    @property
    def breaker_state(self) -> int:
        """As antiphon.v1.BreakerState."""
        return CLOSED if self.breaker is None else self.breaker.state

    def admit(self) -> None:
        """Sets `usable` anew: an open breaker lets nothing through, a half open one a single attempt more."""
        state = self.breaker_state
        self.usable = self.slots if state == CLOSED else 0
        if state == HALF_OPEN and self.breaker is not None:
            self.usable = min(self.slots, self.breaker.allowed)


class Permit:
    """A policy decision about handing tasks on, or outputs back, and what always goes with it.

    `recorded`: what the record says whenever it holds, serialised. `redactions`, `limits`: as `Decision` has them.
    """

    __slots__ = ("allowed", "decision", "epoch", "limits", "logged", "recorded", "redactions")

    def __init__(self, decision: Decision, recorded: bytes) -> None:
        self.decision = decision
        self.recorded = recorded
        self.allowed = decision.allowed
        self.epoch = decision.epoch
        self.redactions = decision.redactions
        self.logged = decision.logged
        self.limits: tuple[Limit, ...] = decision.limits


@dataclass(slots=True, eq=False)
class Offered:
    """One capability version of one instance; `label` is name@version as announced.

    `permits` keeps policy decisions with what a routing decision says whenever they hold, serialised: for one policy
    epoch. The rest is appended to it, since parts of a serialised message that follow each other are one message.
    `may_drop`: an input may have fields that the schema does not declare, which are not handed on. `traits`: pure,
    idempotent, or both, since what has no effects may be done twice.
    """

    instance: Instance
    name: str
    label: str
    version: Version
    effect: str
    clearance: frozenset[str]
    cost: float
    expected_latency: float
    input_schema: str
    may_drop: bool
    traits: frozenset[str] = frozenset()
    permits: dict[tuple[str, frozenset[str], int], Permit] = field(default_factory=dict)

    def score(self) -> float:
        """Expected seconds until an outcome if the attempt goes here: work, and the queue before it."""
        instance = self.instance
        latency = instance.latency if instance.latency is not None else self.expected_latency
        return latency * (1.0 + instance.in_use / instance.concurrency)


@dataclass(frozen=True, slots=True)
class Refused:
    """No agent may have the task: it fails."""

    failure: Failure
