"""Moves runs that live long to the head of the log, so that what is behind it can be trimmed.

A run that fits into a segment is written there whole, as a snapshot, and what the archive has of it leaves memory. A
larger one is copied: its own records, from its first or from its last snapshot on, in parts of which each turn takes
one, beside what else it decides. Nothing is made anew for that, so no turn is held up, however large the run is. It
counts as moved with its last part; recovery puts the parts together (`recovery.py`).

What happens to the run meanwhile is in the log behind its first part, in which everything before it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from antiphon.store.v1 import journal_pb2 as journal

from ..engine.states import RunState
from . import codec
from .auditing import ShardAudit
from .turn import SEGMENT_BYTES, Entry, Turn

MOST_TASKS = 2_000
"""Tasks of a run that is tried as a snapshot: some 600 bytes each, and a turn serialises all of them."""

PART_BYTES = 256 * 1024
"""Record bytes of a part, unless a single record has more."""


@dataclass(slots=True, eq=False)
class _Copy:
    """A run on its way. `records`: what is left of it, from `place` on; `number`: of the last part; `pin`: the segment
    of the first."""

    entry: Entry
    records: list[bytes]
    place: int = 0
    number: int = 0
    pin: int = 0


class Moving:
    """`pinned` is the shard's: by run the first segment that it needs, in the order of the segments."""

    def __init__(self, audit: ShardAudit, pinned: dict[str, int]) -> None:
        self._audit = audit
        self._pinned = pinned
        self.waiting: dict[str, _Copy | None] = {}
        """Runs that are copied; None: since the present turn."""

    def move(self, turn: Turn, entry: Entry, upto: int) -> bool:
        """Moves a run whose events up to `upto` are archived, or begins to. False: there is no room in this turn."""
        run = entry.run
        # Of one that is unread a snapshot would be a lie, and its records are true.
        if entry.unread is not None or len(run.tasks) + sum(len(node.members) for node in run.tasks) > MOST_TASKS:
            self.waiting.setdefault(run.run_id, None)
            return True
        drop = max(0, upto + 1 - entry.first_seq)
        record = journal.Record(run_id=run.run_id, event_seq=run.event_seq, time=turn.now)
        record.run_snapshot.CopyFrom(codec.snapshot(run))
        record.run_snapshot.archived_seq = entry.first_seq + drop - 1
        record.run_snapshot.tail.extend(entry.records[drop:])
        raw = record.SerializeToString()
        if len(raw) > SEGMENT_BYTES:
            self.waiting.setdefault(run.run_id, None)
            return True
        if turn.records and turn.size + len(raw) > SEGMENT_BYTES:
            return False
        if drop:
            self._audit.archived(turn, entry, entry.first_seq + drop - 1)
            entry.forget(drop)
        entry.base = raw
        turn.records.append(raw)
        turn.size += len(raw)
        turn.moved.append(run.run_id)
        if entry.mark < 0:
            entry.mark = len(entry.records)
            turn.touched.append(entry)
        else:
            entry.mark = max(0, entry.mark - drop)
        return True

    def moved(self, turn: Turn) -> None:
        """The turn is in the log. Until then the log keeps what these runs were pinned at."""
        for run_id in turn.moved:
            self._pinned.pop(run_id, None)

    def go_on(self, turn: Turn, entries: dict[str, Entry]) -> None:
        """Adds the next part of the first run that is on its way. Comes before all else in a turn."""
        run_id, copy = next(iter(self.waiting.items()))
        entry = entries.get(run_id)
        if entry is None or entry.run.state is not RunState.RUNNING:
            del self.waiting[run_id]
            return
        if copy is None:
            copy = self.waiting[run_id] = _Copy(entry, _history(entry))
        first, size = copy.place, 0
        while copy.place < len(copy.records) and (not size or size + len(copy.records[copy.place]) <= PART_BYTES):
            size += len(copy.records[copy.place])
            copy.place += 1
        copy.number += 1
        record = journal.Record(run_id=run_id, event_seq=entry.run.event_seq, time=turn.now)
        record.run_part.number = copy.number
        record.run_part.last = copy.place == len(copy.records)
        record.run_part.records.extend(copy.records[first : copy.place])
        raw = record.SerializeToString()
        turn.records.append(raw)
        turn.size += len(raw)
        turn.part_of = run_id

    def committed(self, run_id: str, seq: int) -> None:
        """The part of a turn is in the log, in segment `seq`."""
        copy = self.waiting.get(run_id)
        if copy is None:
            return
        copy.pin = copy.pin or seq
        if copy.place == len(copy.records):
            del self.waiting[run_id]
            if run_id in self._pinned:
                pin(self._pinned, run_id, copy.pin)


def pays(entry: Entry, behind: int) -> bool:
    """Whether moving a run is worth it that holds so many segments: a copy has to be much smaller than what may go."""
    return behind >= 4 * (sum(map(len, entry.records)) // PART_BYTES)


def pin(pinned: dict[str, int], run_id: str, seq: int) -> None:
    """Pins a run at a segment before the newest, in the order of the segments."""
    pinned[run_id] = seq
    in_order = sorted(pinned.items(), key=lambda item: item[1])
    pinned.clear()
    pinned.update(in_order)


def _history(entry: Entry) -> list[bytes]:
    """Records that make the run what it is, when they are applied in this order."""
    if not entry.base:
        return list(entry.records)
    later = journal.Record.FromString(entry.base).event_seq + 1
    return [entry.base, *entry.records[later - entry.first_seq :]]
