"""What tasks ask of an agent, kept by plan: making it anew would cost more than placing by it."""

from __future__ import annotations

from ..engine.plan import TaskPlan
from ..placement.fleet import Fleet, Need
from ..placement.limits import TaskKey

MOST = 4096

_NOTHING: tuple[str, ...] = ()


class Needs:
    """Needs by plan and namespace, but for inputs with labels, which have one each."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # By identity, since a plan is shared by all its runs and comparing one costs more than the need; the plan is
        # kept beside it so that its id cannot come to mean another.
        self._known: dict[tuple[int, str], tuple[TaskPlan, Need]] = {}

    def of(self, namespace: str, plan: TaskPlan, payload: bytes) -> Need:
        labels = self._fleet.labels(payload)
        if labels:
            parts = self._fleet.label_parts(payload)
            return Need(namespace, plan.capability, plan.agent_labels, plan.max_cost, labels, parts, _traits(plan))
        known = self._known.get((id(plan), namespace))
        if known is None or known[0] is not plan:
            if len(self._known) >= MOST:
                self._known.clear()
            need = Need(namespace, plan.capability, plan.agent_labels, plan.max_cost, labels, (), _traits(plan))
            known = self._known[id(plan), namespace] = (plan, need)
        return known[1]

    def passed_over(self, need: Need, key: TaskKey, known: dict[Need, str]) -> str:
        """Who is passed over for a task that waits, and why, in a line. `known`: the lines of those that wait alike."""
        alike = self._fleet.alike(key)
        if alike and need in known:
            return known[need]
        told = self._fleet.explain(need, key)
        refused = ", ".join(f"{refusal.count} {refusal.reason}" for refusal in told.refusals)
        line = f"{told.summary}; {told.considered} considered{'; refused: ' if refused else ''}{refused}"
        if alike:
            known[need] = line
        return line


def _traits(plan: TaskPlan) -> tuple[str, ...]:
    """What the capability must be declared to be: what may be given to a second agent, or be answered from memory."""
    if plan.cache_ttl:
        return ("pure",)
    return ("idempotent",) if plan.hedge is not None else _NOTHING
