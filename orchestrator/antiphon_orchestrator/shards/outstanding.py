"""The attempts of a shard that are out, by the sidecar that has them: what its streams and its end are about.

Kept as attempts are offered and end, so that a sidecar which comes, or goes for good, costs as much as what it has, and
not a walk over all that lives. Also which attempts a sidecar was asked about, and who has not been heard since the
shard was taken: until then no time may fail what somebody may still have (protocol.md §5).
"""

from __future__ import annotations

from ..engine import decide
from ..engine.run import Task
from .turn import Entry


class Outstanding:
    """Memory only; an attempt is in it from its offer to its end. Incarnations are those of sidecars."""

    def __init__(self) -> None:
        # Tasks by their identity: a task never has two attempts out. An instance's place outlives what was in it, until
        # its sidecar is gone.
        self._out: dict[str, dict[int, tuple[Entry, Task]]] = {}
        self._instances: dict[str, list[str]] = {}
        self.count = 0
        """Attempts that are out."""
        self.asked: dict[str, tuple[frozenset[str], set[str]]] = {}
        """By incarnation: what was out to it when its present stream began, and what of that was not offered since."""
        self._unheard: set[str] = set()

    def add(self, instance: str, entry: Entry, task: Task) -> None:
        """An attempt is out to SIDECAR/INCARNATION/AGENT."""
        there = self._out.get(instance)
        if there is None:
            there = self._out[instance] = {}
            self._instances.setdefault(instance.split("/")[1], []).append(instance)
        there[id(task)] = (entry, task)
        self.count += 1

    def remove(self, instance: str, task: Task) -> None:
        """The attempt has ended."""
        del self._out[instance][id(task)]
        self.count -= 1

    def of(self, incarnation: str) -> list[tuple[Entry, Task]]:
        """The attempts that are out to an incarnation, in the order of their offers for each of its agents."""
        return [found for name in self._instances.get(incarnation, ()) for found in self._out[name].values()]

    def all(self) -> list[tuple[Entry, Task]]:
        """The attempts that are out."""
        return [found for there in self._out.values() for found in there.values()]

    def holders(self, incarnation: str) -> set[str]:
        """NAMESPACE/SIDECAR of whoever has attempts under an incarnation: one, unless somebody claims another's."""
        return {
            f"{entry.run.submitted.namespace}/{name.partition('/')[0]}"
            for name in self._instances.get(incarnation, ())
            for entry, _ in self._out[name].values()
        }

    def incarnations(self) -> set[str]:
        """Incarnations that attempts are out to."""
        return {name for name, places in self._instances.items() if any(self._out[place] for place in places)}

    # Streams and inventories.

    def taken(self) -> bool:
        """The shard has been rebuilt: whoever has attempts is to be heard. False when that is nobody."""
        self._unheard = self.incarnations()
        return bool(self._unheard)

    def heard(self, incarnation: str) -> bool:
        """An incarnation has said what it has, or is gone, or has nothing. True when it was the last to be heard."""
        if incarnation not in self._unheard:
            return False
        self._unheard.discard(incarnation)
        return not self._unheard

    def ask(self, incarnation: str) -> frozenset[str]:
        """The attempts that are out to a sidecar whose stream begins now; its inventory will say which it holds."""
        before = self._ids(incarnation)
        self.asked.pop(incarnation, None)
        if before:
            self.asked[incarnation] = (before, set(before))
        return before

    def sent(self, incarnation: str, attempt_id: str) -> None:
        """An attempt has been offered on the present stream."""
        if (asked := self.asked.get(incarnation)) is not None:
            asked[1].discard(attempt_id)

    def unwanted(self, incarnation: str, held: frozenset[str]) -> list[tuple[str, str, str]]:
        """Cancels of what a sidecar holds, or has reported, and what is not out to it: it ended without it."""
        return [(incarnation, attempt_id, "it has ended") for attempt_id in sorted(held - self._ids(incarnation))]

    def missing(
        self, incarnation: str, held: frozenset[str], before: frozenset[str]
    ) -> list[tuple[Entry, Task]] | None:
        """What a sidecar was offered on an earlier stream and does not hold; None when its inventory is one of a stream
        that has been replaced since."""
        known, unsent = self.asked.get(incarnation, (None, set()))
        if known is not before:
            return None
        del self.asked[incarnation]
        lacking = unsent - held
        if not lacking:
            return []
        return [
            (entry, task)
            for entry, task in self.of(incarnation)
            if decide.attempt_id(entry.run.run_id, task, len(task.attempts)) in lacking
        ]

    def _ids(self, incarnation: str) -> frozenset[str]:
        return frozenset(
            decide.attempt_id(entry.run.run_id, task, len(task.attempts)) for entry, task in self.of(incarnation)
        )

    def gone(self, incarnation: str) -> None:
        """It will not come back, and what it had is lost."""
        self.asked.pop(incarnation, None)
        for instance in self._instances.pop(incarnation, ()):
            self.count -= len(self._out.pop(instance))
