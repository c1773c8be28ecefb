"""What it means to a shard that sidecars come, say what they hold, and are gone for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import decide
from ..engine.decide import Outcome
from ..engine.failure import Failure, FailureKind
from ..engine.quarantine import sidecar_died
from ..engine.run import Task
from ..engine.states import AttemptState
from . import inputs as i
from .turn import MAX_BYTES, Entry, Turn

if TYPE_CHECKING:
    from .shard import Shard


class Presence:
    """A part of a shard, and like it plain functions of memory."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def inventory(self, turn: Turn, item: i.Inventory) -> None:
        """What a known incarnation does not hold was never received, and is offered again; what it holds and nobody
        waits for is cancelled, since a cancel is lost with its stream. Nothing is offered again that was on the present
        stream already: were the first offer refused for want of a slot and the second not, it would be done twice."""
        out = self._shard.out
        unwanted = out.unwanted(item.incarnation, item.held)
        turn.cancels += [cancel for cancel in unwanted if not self._shard.stands_aside(cancel[1].partition("/")[0])]
        missing = out.missing(item.incarnation, item.held, item.before)
        if missing is None:
            return
        for entry, task in missing:
            if task.plan.at_most_once:
                reason = "its sidecar does not have it, and it is offered at most once"
                self._lose(turn, entry, task, Failure(FailureKind.LOST, reason))
            else:
                turn.offers.append((entry, task))
        self._shard._heard(item.incarnation)

    def gone(self, turn: Turn, item: i.SidecarGone) -> None:
        """All that was out to an incarnation which does not come back is lost."""
        shard = self._shard
        for entry, task in shard.out.of(item.incarnation):
            if turn.size >= MAX_BYTES:
                shard._put_back(turn, item)
                return
            self._lose(turn, entry, task, sidecar_died(task))
        if not shard.out.of(item.incarnation):
            shard.out.gone(item.incarnation)
        shard._heard(item.incarnation)

    def _lose(self, turn: Turn, entry: Entry, task: Task, failure: Failure) -> None:
        outcome = Outcome(AttemptState.LOST, failure=failure)
        _, events = decide.settle(entry.run, task, len(task.attempts), outcome, turn.now, self._shard)
        self._shard._follow(turn, entry, events)
