"""What becomes of a shard's memory when the shard is another replica's: nothing is kept, nobody is left waiting. And of
runs that are archived, when the shard takes no turns.

Whoever waits for an answer is told to ask the new owner. Attempts that are out stay with their sidecars, which the new
owner asks about them; reports get no verdict here, so that sidecars keep the outcomes and send them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.states import RunState, TaskState
from ..placement.fleet import Fleet
from . import inputs as i
from .turn import Turn

if TYPE_CHECKING:
    from .shard import Shard


def abandon(shard: Shard, fleet: Fleet, turn: Turn | None) -> None:
    """Lets go of everything. `turn`: one that was worked out, or begun, and never released."""
    moved = i.Moved(shard.index)
    live = [e.run for e in shard.runs.values() if e.run.state is RunState.RUNNING and not e.run.aside]
    # First those who wait, so that no slot which comes free below is given to one of them.
    for run in live:
        for task in run.all_tasks():
            if task.state is TaskState.READY:
                fleet.leave(run.run_id, task.plan.index, task.member)
    # Not what else is live: a shard that was not rebuilt to its end has not counted all of that yet.
    for entry, task in shard.out.all():
        if (attempt := task.live) is not None:
            fleet.limits.free(entry.run.submitted.namespace, attempt.placement)
            fleet.give_back(attempt.instance)
    if turn is not None:
        for sink, _ in turn.replies:
            sink(moved)
        for reporter, _, _ in turn.verdicts:
            reporter.no_verdict()
    for entry in shard.runs.values():
        for sink in entry.waiters:
            sink(moved)
        for watcher in entry.watchers:
            watcher.moved()
    while shard.inbox:
        turn_away(shard.index, fleet, shard.inbox.popleft())
    while shard.backlog.size:
        turn_away(shard.index, fleet, shard.backlog.pop())


def turn_away(shard: int, fleet: Fleet, item: i.Input) -> None:
    """Answers an input of a shard that is not here. What it was to be told is asked for anew by its new owner."""
    if isinstance(item, i.Reserved):
        fleet.give_back(item.offered.instance.instance_id)
    elif isinstance(item, i.CalledUp):
        if item.counter is not None:
            fleet.limits.settle(item.counter, item.waiter)
    elif isinstance(item, i.Report | i.Answered):
        item.reporter.no_verdict()
    elif isinstance(item, i.Asked):
        item.sink(i.Moved(shard))


def let_archived_go(shard: Shard, now: int) -> None:
    """Takes ended runs that are archived out of memory without a turn, for a store that takes no turn until the log
    is shorter. Those that the present turn has touched wait for it."""
    for item in shard.inbox:
        if isinstance(item, i.Archived):
            for run_id, upto in list(item.upto.items()):
                entry = shard.runs.get(run_id)
                if entry is None or entry.mark >= 0 or entry.run.state is RunState.RUNNING:
                    continue
                if upto >= entry.run.event_seq:
                    shard.let_go(entry, now)
                del item.upto[run_id]
