"""Refusals in bounded number: whoever is refused a thousand times a second must not push everybody else's records out.

The first refusal of each kind is recorded at once; equal ones within a second are counted, and the count is recorded
at its end. Beyond some different ones a second, those of one caller are counted together. Pure: time comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .chain import Fact

WINDOW = 1_000_000
"""Microseconds."""

DIFFERENT = 50
"""Records of different refusals of one caller in a window."""

CALLERS = 1000
"""Callers with an open window; those beyond share one."""


@dataclass(slots=True)
class _Window:
    until: int
    repeated: dict[str, tuple[Fact, int]] = field(default_factory=dict)
    further: int = 0
    last: Fact | None = None


class Denials:
    """`note` for each refusal, `due` now and then; both answer what is to be recorded."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def note(self, fact: Fact, now: int) -> Fact | None:
        """The fact itself when it is to be recorded now, or None when it was counted."""
        name = fact.principal if fact.principal in self._windows or len(self._windows) < CALLERS else ""
        window = self._windows.setdefault(name, _Window(now + WINDOW))
        known = window.repeated.get(fact.decision_id)
        if known is not None:
            window.repeated[fact.decision_id] = (known[0], known[1] + 1)
            return None
        if len(window.repeated) >= DIFFERENT:
            window.further += 1
            window.last = fact
            return None
        window.repeated[fact.decision_id] = (fact, 0)
        return fact

    @property
    def open(self) -> bool:
        """Whether anything may become due."""
        return bool(self._windows)

    def due(self, now: int) -> list[Fact]:
        """What the windows that have ended counted."""
        found = []
        for name in [name for name, window in self._windows.items() if window.until <= now]:
            window = self._windows.pop(name)
            found += [_counted(fact, "repeated", count) for fact, count in window.repeated.values() if count]
            if window.last is not None:
                found.append(_counted(window.last, "further", window.further))
        return found


def _counted(fact: Fact, name: str, count: int) -> Fact:
    return Fact(
        fact.action,
        fact.namespace,
        fact.principal,
        fact.resource,
        fact.outcome,
        decision_id=fact.decision_id,
        policy_epoch=fact.policy_epoch,
        reason=fact.reason,
        details={**fact.details, name: str(count)},
    )
