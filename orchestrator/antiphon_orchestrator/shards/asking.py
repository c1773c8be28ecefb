"""What is asked of a shard that changes nothing: reads and surveys, watchers that come and go and what they are told
beside the records, callers that leave.

Answers are given at release, when memory holds exactly what is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import telemetry
from ..engine.run import Run
from ..engine.states import RunState
from ..placement.shares import FairQueue
from ..store.port import StoreFull
from . import inputs as i
from .turn import Entry, Turn, found_attempt

Runs = dict[str, Entry]

log = telemetry.logger("shards")


def tell(sink: i.Sink, answer: Callable[[], Any]) -> None:
    """Answers one who asked. What goes wrong with an answer is that one's trouble, and not the run's."""
    try:
        sink(answer())
    except Exception as error:
        log.error("answer_failed", exc_info=error)
        sink(i.Unanswered())


def ended(entry: Entry) -> None:
    """Tells whoever waits for the end of a run, or watches it."""
    run, waiters, entry.waiters = entry.run, entry.waiters, []
    for sink in waiters:
        tell(sink, lambda: run)
    for watcher in entry.watchers:
        watcher.ended(run)
    entry.watchers = []


def read(runs: Runs, turn: Turn, item: i.Read) -> None:
    entry = runs.get(item.run_id)
    turn.replies.append((item.sink, (lambda: item.question(entry.run)) if entry is not None else (lambda: None)))


def survey(runs: Runs, turn: Turn, item: i.Survey) -> None:
    turn.replies.append((item.sink, lambda: item.question(entry.run for entry in runs.values())))


def without_turn(runs: Runs, item: i.Input, full: StoreFull) -> bool:
    """Answers a question while the store has no room for what the present turn has decided, and takes no other turn.

    Of what that turn left alone memory holds what is committed; who asks about the rest is told why there is no answer.
    Returns whether the input was a question, and is answered.
    """
    if isinstance(item, i.Read):
        entry = runs.get(item.run_id)
        if entry is None or entry.mark < 0:
            tell(item.sink, (lambda: item.question(entry.run)) if entry is not None else (lambda: None))
            return True
        if item.patient:
            return False
    elif not isinstance(item, i.Survey):
        return False
    elif all(entry.mark < 0 for entry in runs.values()):
        tell(item.sink, lambda: item.question(entry.run for entry in runs.values()))
        return True
    item.sink(full)
    return True


def watch(runs: Runs, turn: Turn, item: i.Watch) -> None:
    entry = runs.get(item.run_id)
    if entry is None:
        turn.replies.append((item.sink, lambda: None))
        return

    def begin() -> tuple[int, Run]:
        # At release memory holds exactly what is committed: the watcher misses nothing and sees nothing early.
        skip = max(0, item.cursor + 1 - entry.first_seq)
        # What could not be applied may be what cannot be read at all: then nothing is told but that it stands aside.
        item.watcher.records(entry.records[skip:] if entry.unread is None else [])
        if entry.run.state is RunState.RUNNING:
            entry.watchers.append(item.watcher)
        else:
            item.watcher.ended(entry.run)
        return entry.first_seq, entry.run

    turn.replies.append((item.sink, begin))


def unwatch(runs: Runs, turn: Turn, item: i.Unwatch) -> None:
    entry = runs.get(item.run_id)
    if entry is None:
        return

    def end() -> None:
        if item.watcher in entry.watchers:
            entry.watchers.remove(item.watcher)

    # At release, as watching begins: both may come in one turn.
    turn.replies.append((lambda _: None, end))


def progress(runs: Runs, item: i.Progress) -> None:
    if (found := found_attempt(runs, item.source, item.attempt_id)) is not None:
        entry, task, _ = found
        for watcher in entry.watchers:
            watcher.progress(task.plan.id, task.member, item.progress)


def leave(runs: Runs, requests: dict[bytes, tuple[str, bytes]], backlog: FairQueue, turn: Turn, item: i.Leave) -> None:
    if backlog.size and item.key not in requests:
        for waiting in backlog.things():
            if waiting.sink is item.sink:
                waiting.wait = False
    run_id = item.run_id or requests.get(item.key, ("", b""))[0]
    entry = runs.get(run_id)
    if entry is not None and item.sink in entry.waiters:
        entry.waiters.remove(item.sink)


def submitted_before(runs: dict[str, Entry], turn: Turn, item: i.Submit, run_id: str, digest: bytes) -> None:
    """The answer to a submission whose request id was used before, for that run."""
    if digest != item.event.request_digest:
        turn.replies.append((item.sink, lambda: i.RequestIdReused(item.event.request_id)))
        return
    entry = runs.get(run_id)
    if entry is None:
        turn.replies.append((item.sink, lambda: run_id))
        return
    run = entry.run
    if item.wait and run.aside:
        turn.replies.append((item.sink, lambda: i.SetAside(run_id, run.aside)))
    elif item.wait and run.state is RunState.RUNNING:
        entry.waiters.append(item.sink)
    else:
        turn.replies.append((item.sink, lambda: run))
