"""The verifier against the writer: what was written is whole, and whatever is done to it is found and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest
from antiphon import AuditFinding, Tampering, verify_audit
from antiphon._audit import START, compare_checkpoints, digest_of, link
from antiphon.v1.audit_pb2 import AuditCheckpoint, AuditHead, AuditRecord
from antiphon_orchestrator.audit import Chain, Fact, reading
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abc_", min_size=1, max_size=8)
FACTS = st.builds(
    Fact,
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
    st.sampled_from(["DONE", "DENIED", "SUCCEEDED", "FAILED", "CANCELLED"]),
    decision_id=TEXTS,
    policy_epoch=st.integers(0, 1 << 50),
    reason=TEXTS,
    details=st.dictionaries(NAMES, TEXTS, max_size=4),
)
TIMES = st.integers(0, 1 << 52)

few = settings(max_examples=30, deadline=None)


def written(facts: Sequence[Fact], times: Sequence[int] = ()) -> list[AuditRecord]:
    """The records of a chain as the service shows them."""
    chain = Chain("calls")
    raw = [chain.add(fact, times[place] if times else place) for place, fact in enumerate(facts)]
    return [reading.record("calls", seq, one) for seq, one in enumerate(raw, 1)]


def head_of(records: Sequence[AuditRecord]) -> AuditHead:
    last = records[-1]
    return AuditHead(chain="calls", first_seq=1, first_prev_hash=START, last_seq=last.seq, last_hash=last.hash)


@st.composite
def chains(draw: st.DrawFn, least: int = 2) -> list[AuditRecord]:
    return written(draw(st.lists(FACTS, min_size=least, max_size=10)))


def places(findings: Sequence[AuditFinding], kind: Tampering) -> list[int]:
    return [found.seq for found in findings if found.kind is kind]


@few
@given(st.lists(st.tuples(FACTS, TIMES), min_size=1, max_size=10))
def test_what_was_written_is_whole_whatever_it_says(facts: list[tuple[Fact, int]]) -> None:
    records = written([fact for fact, _ in facts], [time for _, time in facts])
    assert [record.action for record in records] == [fact.action for fact, _ in facts]
    assert [dict(record.details) for record in records] == [fact.details for fact, _ in facts]
    assert verify_audit(records, head_of(records)) == []


EDITS: dict[str, Callable[[AuditRecord], None]] = {
    "action": lambda record: setattr(record, "action", record.action + "x"),
    "namespace": lambda record: setattr(record, "namespace", record.namespace + "x"),
    "principal": lambda record: setattr(record, "principal", record.principal + "x"),
    "resource": lambda record: setattr(record, "resource", record.resource + "x"),
    "reason": lambda record: setattr(record, "reason", record.reason + "x"),
    "decision_id": lambda record: setattr(record, "decision_id", record.decision_id + "x"),
    "policy_epoch": lambda record: setattr(record, "policy_epoch", record.policy_epoch + 1),
    "outcome": lambda record: setattr(record, "outcome", record.outcome % 5 + 1),
    "details": lambda record: record.details.update({"further": "x"}),
    "time": lambda record: record.time.FromMicroseconds(record.time.ToMicroseconds() + 1),
    "digest": lambda record: setattr(record, "digest", "0" * 64),
    "hash": lambda record: setattr(record, "hash", "0" * 64),
    "no hexadecimal": lambda record: setattr(record, "hash", "x"),
    "an outcome that there is not": lambda record: setattr(record, "outcome", 99),
}


@pytest.mark.parametrize("edit", EDITS)
@few
@given(records=chains(), data=st.data())
def test_an_edited_record_is_named(edit: str, records: list[AuditRecord], data: st.DataObject) -> None:
    head, place = head_of(records), data.draw(st.integers(0, len(records) - 1))
    EDITS[edit](records[place])
    assert places(verify_audit(records, head), Tampering.EDITED)[0] == place + 1


@few
@given(records=chains(), data=st.data())
def test_a_record_whose_digest_and_hash_were_computed_anew_breaks_the_next(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    head, place = head_of(records), data.draw(st.integers(0, len(records) - 1))
    replace(records, place)
    found = verify_audit(records, head)
    if place == len(records) - 1:
        assert places(found, Tampering.REWRITTEN) == [place + 1]
    else:
        assert places(found, Tampering.EDITED) == [place + 2]


@few
@given(records=chains(), data=st.data())
def test_a_chain_that_was_computed_anew_from_some_record_on_is_not_the_one_of_the_checkpoint(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    head, first = head_of(records), data.draw(st.integers(0, len(records) - 1))
    for place in range(first, len(records)):
        replace(records, place)
    assert places(verify_audit(records, head), Tampering.REWRITTEN) == [len(records)]


def replace(records: list[AuditRecord], place: int) -> None:
    """Another content, with the digest and hash that fit it."""
    record = records[place]
    record.reason += "x"
    record.digest = digest_of(record)
    record.hash = link(records[place - 1].hash if place else START, record.digest)


@few
@given(records=chains(), data=st.data())
def test_a_deleted_record_is_named(records: list[AuditRecord], data: st.DataObject) -> None:
    head, place = head_of(records), data.draw(st.integers(0, len(records) - 2))
    del records[place]
    assert [(found.kind, found.seq) for found in verify_audit(records, head)] == [(Tampering.DELETED, place + 1)]


@few
@given(records=chains(), data=st.data())
def test_two_records_that_changed_places_are_named(records: list[AuditRecord], data: st.DataObject) -> None:
    head = head_of(records)
    one = data.draw(st.integers(0, len(records) - 2))
    other = data.draw(st.integers(one + 1, len(records) - 1))
    records[one], records[other] = records[other], records[one]
    found = verify_audit(records, head)
    assert places(found, Tampering.REORDERED) == [*range(one + 2, other + 1), one + 1]
    assert places(found, Tampering.DELETED) == places(found, Tampering.TRUNCATED) == []


@few
@given(records=chains(), stranger=FACTS, linked=st.booleans(), data=st.data())
def test_an_inserted_record_is_named(
    records: list[AuditRecord], stranger: Fact, linked: bool, data: st.DataObject
) -> None:
    head, place = head_of(records), data.draw(st.integers(0, len(records)))
    (record,) = written([stranger])
    record.seq = place + 1
    record.reason += "x"
    if linked:
        record.digest = digest_of(record)
        record.hash = link(records[place - 1].hash if place else START, record.digest)
    records.insert(place, record)
    assert [(found.kind, found.seq) for found in verify_audit(records, head)] == [(Tampering.INSERTED, place + 1)]


@few
@given(records=chains(), data=st.data())
def test_a_record_that_stands_there_twice_is_named(records: list[AuditRecord], data: st.DataObject) -> None:
    head, place = head_of(records), data.draw(st.integers(0, len(records) - 1))
    records.insert(data.draw(st.integers(place, len(records))), records[place])
    assert places(verify_audit(records, head), Tampering.INSERTED) == [place + 1]


@few
@given(records=chains(), data=st.data())
def test_a_chain_that_ends_too_soon_says_where(records: list[AuditRecord], data: st.DataObject) -> None:
    head, kept = head_of(records), data.draw(st.integers(0, len(records) - 1))
    assert [(found.kind, found.seq) for found in verify_audit(records[:kept], head)] == [
        (Tampering.TRUNCATED, kept + 1)
    ]


@few
@given(records=chains(), data=st.data())
def test_a_chain_that_begins_too_late_says_what_is_missing(records: list[AuditRecord], data: st.DataObject) -> None:
    head, gone = head_of(records), data.draw(st.integers(1, len(records) - 1))
    assert [(found.kind, found.seq) for found in verify_audit(records[gone:], head)] == [(Tampering.DELETED, 1)]


@few
@given(records=chains(), data=st.data())
def test_hidden_records_keep_the_chain_and_their_tampering_is_found(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    head = head_of(records)
    hide = data.draw(st.sets(st.integers(0, len(records) - 1), min_size=1))
    for place in hide:
        shown = records[place]
        records[place] = AuditRecord(
            chain=shown.chain, seq=shown.seq, digest=shown.digest, hash=shown.hash, hidden=True
        )
    assert verify_audit(records, head) == []
    place = min(hide)
    records[place].digest = hashlib.sha256(b"another").hexdigest()
    assert places(verify_audit(records, head), Tampering.EDITED) == [place + 1]


@few
@given(records=chains(least=3), data=st.data())
def test_a_trimmed_chain_is_whole_from_where_it_begins(records: list[AuditRecord], data: st.DataObject) -> None:
    gone = data.draw(st.integers(1, len(records) - 1))
    head = head_of(records)
    head.first_seq, head.first_prev_hash = gone + 1, records[gone - 1].hash
    assert verify_audit(records[gone:], head) == []
    head.first_prev_hash = START
    assert places(verify_audit(records[gone:], head), Tampering.EDITED) == [gone + 1]


def test_a_chain_that_is_none_gives_a_bounded_number_of_findings() -> None:
    records = written([Fact("submit", "n", "p", "r") for _ in range(500)])
    head = head_of(records)
    for record in records:
        record.action = "x"
    assert len(verify_audit(records, head)) == 100


def checkpoint(records: Sequence[AuditRecord]) -> AuditCheckpoint:
    return AuditCheckpoint(heads=[head_of(records)])


@few
@given(records=chains(least=3), data=st.data())
def test_an_earlier_checkpoint_holds_as_long_as_nothing_before_it_changed(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    upto = data.draw(st.integers(1, len(records)))
    former = checkpoint(records[:upto])
    hashes = {("calls", record.seq): record.hash for record in records}
    assert compare_checkpoints(former, checkpoint(records), hashes) == []
    for place in range(data.draw(st.integers(0, upto - 1)), len(records)):
        replace(records, place)
    hashes = {("calls", record.seq): record.hash for record in records}
    (rewritten,) = compare_checkpoints(former, checkpoint(records), hashes)
    assert (rewritten.kind, rewritten.seq) == (Tampering.REWRITTEN, upto)


@few
@given(records=chains(least=3), data=st.data())
def test_a_chain_shorter_than_an_earlier_checkpoint_was_truncated(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    left = data.draw(st.integers(1, len(records) - 1))
    (cut,) = compare_checkpoints(checkpoint(records), checkpoint(records[:left]), {})
    assert (cut.kind, cut.seq) == (Tampering.TRUNCATED, left + 1)
    (gone,) = compare_checkpoints(checkpoint(records), AuditCheckpoint(), {})
    assert (gone.kind, gone.seq) == (Tampering.TRUNCATED, 1)
