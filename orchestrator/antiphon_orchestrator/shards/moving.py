"""Long runs, moved to the head of the log so that its old segments may go."""

from __future__ import annotations

from antiphon.store.v1 import journal_pb2 as journal

from . import codec
from .auditing import ShardAudit
from .turn import SEGMENT_BYTES, Entry, Turn


def move_to_head(audit: ShardAudit, pinned: dict[str, int], turn: Turn, entry: Entry, upto: int) -> bool:
    """Snapshots a long run: its archived events leave memory and its old segments may go. False: in another turn.

    A run that is too large for a segment stays where it is, and with it the log behind it, until it ends.
    """
    run = entry.run
    drop = max(0, upto + 1 - entry.first_seq)
    record = journal.Record(run_id=run.run_id, event_seq=run.event_seq, time=turn.now)
    record.run_snapshot.CopyFrom(codec.snapshot(run))
    record.run_snapshot.archived_seq = entry.first_seq + drop - 1
    record.run_snapshot.tail.extend(entry.records[drop:])
    raw = record.SerializeToString()
    if len(raw) > SEGMENT_BYTES:
        return True
    if turn.records and turn.size + len(raw) > SEGMENT_BYTES:
        return False
    if drop:
        audit.archived(turn, entry, entry.first_seq + drop - 1)
    entry.records = entry.records[drop:]
    entry.first_seq += drop
    turn.records.append(raw)
    turn.size += len(raw)
    pinned.pop(run.run_id, None)  # pinned anew by the segment of this turn
    if entry.mark < 0:
        entry.mark = len(entry.records)
        turn.touched.append(entry)
    else:
        entry.mark = max(0, entry.mark - drop)
    return True
