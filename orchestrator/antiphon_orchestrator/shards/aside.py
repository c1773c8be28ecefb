"""Runs that stand aside: a bug in how one is carried on must not stop its shard, again and again, on each replica.

A turn that ends halfway, by an exception, leaves memory that cannot be trusted. The shard is then rebuilt from its log,
where nothing is of that turn; when the same family of runs, one run with all beneath it, ends a turn once more, the
shard is rebuilt with that family standing still (host.py). It can be looked at, and is in the log as it was. Nothing
is begun, timed or steered, its attempts hold no slot, and what sidecars report of them gets no verdict, so that they
keep it. Who waits for its end, or watches, is told why none comes. That is remembered by the process alone: the next
one, perhaps of a version without the bug, carries it on.

A run whose own records cannot be applied, when a shard is rebuilt, stands aside with its family from then on. It has
what was read of it, its submission; its records stay in the log, and are moved there, as they are (recovery.py).

A run that ends the very turn in which it is submitted is nowhere, and its submitter is told: another try would be
another run, with the same end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.run import Run
from ..placement.fleet import Fleet
from . import inputs as i
from .leaving import turn_away
from .turn import Turn

if TYPE_CHECKING:
    from .shard import Shard

MOST = 64
"""Families that stand aside. Where there are more, it is not them."""

STANDS = (
    "it stands still, since carrying it on ended turns of its shard. That is a bug; its traceback is in the log of the"
    " orchestrator. Nothing is lost; it goes on when an orchestrator is started anew, best of a version without the bug"
)
UNREAD = (
    "it stands still, since it, or a run above or beneath it, could not be rebuilt from the log, and is shown as it was"
    " submitted. That is a bug; its traceback is in the log of the orchestrator. Nothing is lost; it goes on when an"
    " orchestrator is started anew, best of a version without the bug"
)
NOT_BEGUN = (
    "it was not begun, since that ended a turn of its shard. That is a bug; its traceback is in the log of the"
    " orchestrator. Nothing of it is kept"
)


def family(run: Run) -> str:
    """The id of the outermost run above a run, or its own."""
    return run.submitted.delegation[0].partition("/")[0] if run.submitted.delegation else run.run_id


def unread(shard: Shard) -> dict[str, Exception]:
    """Families of which a run could not be rebuilt, and why the first of it could not."""
    found: dict[str, Exception] = {}
    for entry in shard.runs.values():
        if entry.unread is not None:
            found.setdefault(family(entry.run), entry.unread)
    return found


def culprit(shard: Shard) -> str:
    """The family that the present turn is at; empty when it is at none."""
    turn = shard.turn
    run_id = "" if turn is None else turn.at or _run_of(turn.item)
    entry = shard.runs.get(run_id)
    return "" if entry is None else family(entry.run)


def not_begun(shard: Shard, turn: Turn) -> bool:
    """Whether the present turn has ended at a run that it was to begin; then whoever submitted that is told."""
    item = turn.item
    if not isinstance(item, i.Submit) or turn.at not in ("", item.run_id):
        return False
    turn.replies = [reply for reply in turn.replies if reply[0] is not item.sink]
    if (entry := shard.runs.get(item.run_id)) is not None:
        entry.waiters = []
    item.sink(i.SetAside(item.run_id, NOT_BEGUN))
    return True


def turned_aside(shard: Shard, fleet: Fleet, turn: Turn, item: i.Input) -> bool:
    """Whether an input is for a run that stands aside and would change it; then whoever waits for it is told."""
    if isinstance(item, i.Read | i.Watch | i.Unwatch | i.Leave | i.Progress):
        return False
    run_id = _run_of(item)
    if not shard.stands_aside(run_id):
        return False
    if isinstance(item, i.Cancel | i.Steer):
        why = shard.runs[run_id].run.aside
        turn.replies.append((item.sink, lambda: i.SetAside(run_id, why)))
    else:
        turn_away(shard.index, fleet, item)
    return True


def _run_of(item: i.Input | None) -> str:
    """The id of the run that an input is for; empty when it is for none, or for several."""
    if isinstance(item, i.Reserved | i.CalledUp):
        return item.waiter.run_id
    if isinstance(item, i.Report | i.Started | i.Progress | i.Call | i.Answered):
        return item.attempt_id.partition("/")[0]
    if isinstance(item, i.Opened):
        return item.parent_id
    if isinstance(item, i.Submit | i.Cancel | i.Steer | i.Read | i.Watch | i.Unwatch | i.Leave | i.ContextFound):
        return item.run_id
    return ""
