"""The audit chain of a shard: a record for each submission, cancel and end, whose digests are those of the history."""

from __future__ import annotations

import hashlib

from antiphon import verify_audit
from antiphon.v1.audit_pb2 import AuditHead, AuditRecord
from antiphon_orchestrator.audit import reading
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.shard import MAX_BYTES
from antiphon_orchestrator.store.port import MAX_TXN_BYTES
from shard_rig import Rig, failed, instance

from tests.fakes.plans import CLIENT, Node, plan

OPERATOR = "spiffe://antiphon.internal/ns/demo/operator/olga"


def audited(rig: Rig) -> list[AuditRecord]:
    """The records of all turns, found whole."""
    chain = rig.shard.audit.chain
    raw = [one for turn in rig.turns for one in turn.audit]
    records = [reading.record(chain.name, seq, one) for seq, one in enumerate(raw, 1)]
    head = AuditHead(
        chain="shard-0000",
        first_seq=1,
        first_prev_hash="0" * 64,
        last_seq=chain.last_seq,
        last_hash=chain.last_hash.hex(),
    )
    assert verify_audit(records, head) == []
    return records


def said(records: list[AuditRecord]) -> list[tuple[str, int, str]]:
    return [(one.action, one.outcome, one.principal) for one in records]


def digest(rig: Rig, run_id: str, first: int, last: int) -> dict[str, str]:
    entry = rig.shard.runs[run_id]
    records = entry.records[first - entry.first_seq : last + 1 - entry.first_seq]
    return {"digest": hashlib.sha256(b"".join(records)).hexdigest(), "events": f"{first}-{last}"}


def test_a_run_is_submitted_once_and_ends_once_whoever_asks_how_often() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node())))
    rig.tell(rig.submit("r2", plan(Node()), request_id="r1"))
    rig.tell(rig.report("r1/t0/0/1"))
    rig.tell(rig.report("r1/t0/0/1"))
    submitted, ended = audited(rig)
    assert said([submitted, ended]) == [("submit", 1, CLIENT), ("end", 3, CLIENT)]
    assert submitted.resource == ended.resource == "Run::demo/r1"
    assert dict(submitted.details) == {"graph": "fake@1", "request_id": "r1", **digest(rig, "r1", 1, 1)}
    assert dict(ended.details) == digest(rig, "r1", 1, rig.run("r1").event_seq)


def test_who_cancels_and_why_a_run_failed_is_said() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("r1", plan(Node())))
    rig.tell(i.Cancel("r1", OPERATOR, "enough", lambda run: None), i.Cancel("r1", CLIENT, "too", lambda run: None))
    rig.tell(rig.submit("r2", plan(Node())))
    rig.tell(rig.report("r2/t0/0/1", failed(FailureKind.PERMANENT, "cannot")))
    records = audited(rig)
    assert said(records[:3]) == [("submit", 1, CLIENT), ("cancel", 1, OPERATOR), ("end", 5, CLIENT)]
    assert records[1].reason == "enough"
    assert (records[-1].action, records[-1].outcome) == ("end", 4) and "cannot" in records[-1].reason


def test_every_event_of_a_long_run_is_covered_when_it_moves_to_the_head_of_the_log() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(), Node(needs=(0,)))))
    rig.tell(rig.report("r1/t0/0/1"))
    upto = rig.run("r1").event_seq
    covered = digest(rig, "r1", 1, upto)
    rig.tell(i.Archived({"r1": upto}))
    rig.tell(rig.report("r1/t1/0/1"))
    submitted, archived, ended = audited(rig)
    assert (archived.action, dict(archived.details)) == ("archive", covered)
    assert dict(ended.details) == digest(rig, "r1", upto + 1, rig.run("r1").event_seq)
    assert submitted.details["events"] == "1-1"


def test_what_a_turn_has_on_record_counts_for_its_size() -> None:
    rig = Rig()
    rig.shard.inbox.extend(
        rig.submit(f"r{number}", plan(Node()), request_id="x" * 2000 + str(number)) for number in range(2000)
    )
    while rig.shard.has_work(rig.now):
        turn = rig.turn()
        written = sum(map(len, turn.records)) + sum(map(len, turn.audit))
        assert turn.size >= written and written < MAX_BYTES + 10_000 < MAX_TXN_BYTES
    assert len(audited(rig)) == 2000
