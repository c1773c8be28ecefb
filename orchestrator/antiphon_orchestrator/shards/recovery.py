"""A shard's memory rebuilt from its log, record by record, by `apply` alone: nothing is decided or evaluated again."""

from __future__ import annotations

from collections.abc import Callable

from antiphon.store.v1 import journal_pb2 as journal

from ..engine import events as e
from ..engine.plan import Plan
from ..engine.run import apply, start
from . import codec
from .shard import Shard
from .turn import Entry, principal_kind, request_key


def recover_record(
    shard: Shard, seq: int, raw: bytes, record: journal.Record, plan_of: Callable[[e.RunSubmitted], Plan]
) -> None:
    """Applies one record of segment `seq`; `raw` is the same record as it stands in the log.

    Records of runs whose beginning is no longer in the log are passed over: those runs are archived, or a snapshot
    follows.
    """
    run_id = record.run_id
    if record.HasField("run_submitted"):
        submitted = codec.get_submitted(record.run_submitted)
        run = start(run_id, plan_of(submitted), submitted, record.time)
        _remember(shard, Entry(run, request_key(submitted), [raw], 1, principal_kind(submitted.principal)), seq)
    elif record.HasField("run_snapshot"):
        snapshot = record.run_snapshot
        submitted = codec.get_submitted(snapshot.submitted)
        run = start(run_id, plan_of(submitted), submitted, snapshot.create_time)
        codec.restore(run, snapshot, record.event_seq)
        first = snapshot.archived_seq + 1
        entry = Entry(run, request_key(submitted), list(snapshot.tail), first, principal_kind(submitted.principal))
        _remember(shard, entry, seq)
    elif run_id in shard.runs:
        entry = shard.runs[run_id]
        apply(entry.run, codec.decode(record), record.time)
        entry.records.append(raw)


def remember_requests(shard: Shard, older: dict[bytes, tuple[str, bytes, int]]) -> None:
    """Adds request ids of archived runs that are older than those the shard has; of too many the newest stay."""
    known = {key: value for key, value in older.items() if key not in shard.kept and key not in shard.requests}
    room = max(0, shard.requests_kept - len(shard.kept))
    for key in list(known)[: max(0, len(known) - room)]:
        del known[key]
    known.update(shard.kept)
    shard.kept = known


def _remember(shard: Shard, entry: Entry, seq: int) -> None:
    run = entry.run
    shard.runs[run.run_id] = entry
    shard.requests[entry.key] = (run.run_id, run.submitted.request_digest)
    shard.pinned.pop(run.run_id, None)
    shard.pinned[run.run_id] = seq
