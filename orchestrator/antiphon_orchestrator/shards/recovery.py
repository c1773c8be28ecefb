"""A shard's memory rebuilt from its log, record by record, by `apply` alone: nothing is decided or evaluated again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from antiphon.store.v1 import journal_pb2 as journal

from ..engine import events as e
from ..engine.plan import Plan
from ..engine.run import apply, start
from . import codec
from .moving import pin
from .shard import Shard
from .turn import Entry, Gathered, principal_kind, request_key


def recover_record(
    shard: Shard, seq: int, raw: bytes, record: journal.Record, plan_of: Callable[[e.RunSubmitted], Plan]
) -> None:
    """Applies one record of segment `seq`; `raw` is the same record as it stands in the log.

    Records of runs whose beginning is no longer in the log are passed over: those runs are archived, or a snapshot
    follows. A run whose records cannot be applied is left unread; what raises here is of no run that is known.
    """
    run_id = record.run_id
    if record.HasField("run_submitted"):
        submitted = codec.get_submitted(record.run_submitted)
        run = start(run_id, plan_of(submitted), submitted, record.time)
        _remember(shard, Entry(run, request_key(submitted), [raw], 1, principal_kind(submitted.principal)), seq)
    elif record.HasField("run_part"):
        _gather(shard, seq, record, plan_of)
    elif record.HasField("run_snapshot"):
        snapshot = record.run_snapshot
        submitted = codec.get_submitted(snapshot.submitted)
        run = start(run_id, plan_of(submitted), submitted, snapshot.create_time)
        first = snapshot.archived_seq + 1
        kind = principal_kind(submitted.principal)
        entry = Entry(run, request_key(submitted), list(snapshot.tail), first, kind, base=raw)
        _remember(shard, entry, seq)
        try:
            codec.restore(run, snapshot, record.event_seq)
        except Exception as error:
            _leave_unread(entry, record, error)
    elif run_id in shard.runs:
        entry = shard.runs[run_id]
        entry.records.append(raw)
        if entry.unread is not None:
            entry.run.event_seq = record.event_seq
            return
        try:
            apply(entry.run, codec.decode(record), record.time)
        except Exception as error:
            _leave_unread(entry, record, error)
    elif run_id in shard.gathered:
        shard.gathered[run_id].later.append((record.event_seq, raw))


def _gather(shard: Shard, seq: int, record: journal.Record, plan_of: Callable[[e.RunSubmitted], Plan]) -> None:
    """Puts the parts together of a run that was copied to the head of the log. One that is there as a whole further
    back is only pinned by them; what came between them is in its records already."""
    run_id, part = record.run_id, record.run_part
    if part.number == 1:
        shard.gathered[run_id] = Gathered(seq)
    found = shard.gathered.get(run_id)
    if found is None:
        return  # its beginning is gone: the run was archived
    if run_id not in shard.runs:
        found.records.extend(part.records)
    if not part.last:
        return
    del shard.gathered[run_id]
    for raw in found.records:
        recover_record(shard, found.seq, raw, journal.Record.FromString(raw), plan_of)
    run = shard.runs[run_id].run
    for event_seq, raw in found.later:
        if event_seq > run.event_seq:
            recover_record(shard, seq, raw, journal.Record.FromString(raw), plan_of)
    pin(shard.pinned, run_id, found.seq)


def _leave_unread(entry: Entry, record: journal.Record, error: Exception) -> None:
    """What failed may have been applied in part: nothing of the run is shown but its submission, which was read."""
    run = entry.run
    entry.unread = error
    entry.run = start(run.run_id, run.plan, run.submitted, run.create_time)
    entry.run.event_seq = record.event_seq


def remember_requests(shard: Shard, older: dict[bytes, tuple[str, bytes, int]]) -> None:
    """Adds request ids of archived runs that are older than those the shard has; of too many the newest stay.

    `older` becomes the shard's. It may hold a million ids, so nothing goes through all of them at once.
    """
    for known in (shard.kept, shard.requests):
        for key in known:
            older.pop(key, None)
    keep_newest(older, max(0, shard.requests_kept - len(shard.kept)))
    older.update(shard.kept)
    shard.kept = older


def keep_newest(older: dict[bytes, tuple[str, bytes, int]], most: int) -> None:
    """Forgets the oldest of more than `most` ids."""
    for key in list(islice(older, max(0, len(older) - most))):
        del older[key]


def _remember(shard: Shard, entry: Entry, seq: int) -> None:
    run = entry.run
    shard.runs[run.run_id] = entry
    shard.requests[entry.key] = (run.run_id, run.submitted.request_digest)
    shard.pinned.pop(run.run_id, None)
    shard.pinned[run.run_id] = seq
