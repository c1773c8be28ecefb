"""When a second agent is asked, and how often: what hedged tasks took, and the second attempts that they have earned.

By namespace and name of the capability, whatever graph asks for it. In memory alone: a new process begins with the
delay that the graph says, and with as many second attempts as one that was idle for long. Times in microseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..engine.plan import HedgePlan, TaskPlan

KNOWN = 20
"""Outcomes from which on a quantile says something."""

REMEMBERED = 256
"""Outcomes that it is made of."""

AT_ONCE = 10.0
"""Second attempts that are earned at most ahead of their use."""

MOST = 4096
"""Capabilities that are remembered."""


@dataclass(slots=True)
class _Capability:
    earned: float = AT_ONCE
    took: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Hedging:
    """`made`: second attempts so far; `used`: those whose outcome was used; `withheld`: those that were not earned."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Capability] = {}
        self.made = 0
        self.used = 0
        self.withheld = 0

    def began(self, namespace: str, plan: TaskPlan, hedge: HedgePlan) -> None:
        """A hedged task begins, which earns its share of a second attempt."""
        known = self._of(namespace, plan)
        known.earned = min(AT_ONCE, known.earned + hedge.share)

    def took(self, namespace: str, plan: TaskPlan, duration: int) -> None:
        """An attempt has succeeded, so long after its offer."""
        self._of(namespace, plan).took.append(duration)

    def delay(self, namespace: str, plan: TaskPlan, hedge: HedgePlan) -> int:
        """How long after the first offer a second one is made."""
        took = self._of(namespace, plan).took
        if not hedge.quantile or len(took) < KNOWN:
            return hedge.delay
        return max(1, sorted(took)[int(hedge.quantile * len(took))])

    def earned(self, namespace: str, plan: TaskPlan) -> bool:
        """Whether there may be one more second attempt."""
        if self._of(namespace, plan).earned >= 1:
            return True
        self.withheld += 1
        return False

    def spend(self, namespace: str, plan: TaskPlan) -> None:
        """A second attempt is made."""
        self._of(namespace, plan).earned -= 1
        self.made += 1

    def _of(self, namespace: str, plan: TaskPlan) -> _Capability:
        key = (namespace, plan.capability.partition("@")[0])
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            known = self._known[key] = _Capability()
        return known
