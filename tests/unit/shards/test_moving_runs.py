"""Runs too large for a snapshot are copied to the head of the log in parts, and are the same for whoever reads it."""

from __future__ import annotations

import hashlib

import pytest
from antiphon.store.v1 import journal_pb2 as journal
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.shards import auditing, codec, moving
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.archiver import CHUNK_BYTES, cut
from antiphon_orchestrator.shards.turn import Entry
from antiphon_orchestrator.store.port import MAX_TXN_BYTES
from shard_rig import Rig, instance

from tests.fakes.plans import Node, payload, plan

MEMBERS = 60
LARGE = plan(Node(members=MEMBERS, input=payload("x" * 5_000)), Node((0,)))
SMALL = plan(Node(), Node((0,)))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large here is so for the sake of the test alone."""
    monkeypatch.setattr(moving, "MOST_TASKS", 10)
    monkeypatch.setattr(moving, "PART_BYTES", 20_000)


def begun(large: Plan = LARGE) -> Rig:
    """A shard with a run whose members are all out, and which the archive has just been given."""
    rig = Rig()
    rig.fleet.attach(instance(slots=200))
    rig.tell(rig.submit("r1", large))
    rig.shard.inbox.append(i.Archived({"r1": rig.run("r1").event_seq}))
    rig.turn()
    return rig


def plan_of(event: object) -> Plan:
    return SMALL if getattr(event, "request_id", "").startswith("s") else LARGE


def parts(rig: Rig, since: int = 0) -> list[tuple[int, journal.RunPart]]:
    """The parts in the log behind a segment, with the segment of each."""
    records = [(seq, journal.Record.FromString(raw)) for seq, some in rig.log[since:] for raw in some]
    return [(seq, record.run_part) for seq, record in records if record.HasField("run_part")]


def everything(entry: Entry) -> tuple[bytes, list[bytes], int]:
    return codec.snapshot(entry.run).SerializeToString(deterministic=True), entry.records, entry.run.event_seq


def test_each_turn_takes_one_part_and_all_else_goes_on_between_them() -> None:
    rig = begun()
    before = len(rig.log)
    while rig.shard.has_work(rig.now):
        done = sum(task.ended for task in rig.run("r1").all_tasks())
        if done < 3:
            rig.shard.inbox.append(rig.report(f"r1/t0/{done + 1}/1"))
        rig.shard.inbox.append(rig.submit(f"s{len(rig.log)}", SMALL))
        turn = rig.turn()
        assert turn.inputs >= 1 and sum(map(len, turn.records)) < MAX_TXN_BYTES
        assert len(rig.log) < 200
        if not rig.shard._moving.waiting:
            break
    found = parts(rig, before)
    assert [part.number for _, part in found] == list(range(1, len(found) + 1)) and len(found) > 3
    assert [part.last for _, part in found] == [False] * (len(found) - 1) + [True]
    assert len({seq for seq, _ in found}) == len(found)


def test_whoever_reads_the_log_from_the_first_part_on_finds_the_run_with_all_that_happened_since() -> None:
    rig = begun()
    rig.turn()  # the first part is on its way, and the others are not
    rig.tell(*[rig.report(f"r1/t0/{member}/1") for member in range(1, MEMBERS)])
    rig.tell(rig.submit("s1", SMALL))
    oldest = rig.shard.oldest_pinned()
    assert oldest is not None and oldest == ("r1", parts(rig)[0][0])
    whole = rig.recovered(plan_of)
    rig.log = [segment for segment in rig.log if segment[0] >= oldest[1]]
    trimmed = rig.recovered(plan_of)
    for other in (whole, trimmed):
        assert everything(other.shard.runs["r1"]) == everything(rig.shard.runs["r1"])
        assert list(other.shard.pinned.items()) == list(rig.shard.pinned.items())
        assert not other.shard.gathered
        other.fleet.attach(instance(slots=200))
        other.tell(other.report(f"r1/t0/{MEMBERS}/1"))
        other.tell(other.report("r1/t1/0/1"))
        assert other.run("r1").state is RunState.SUCCEEDED


def test_a_copy_that_a_crash_cut_off_is_made_anew_and_the_old_place_is_held_until_then() -> None:
    rig = begun()
    pinned = rig.shard.oldest_pinned()
    for _ in range(3):
        rig.turn()
    assert parts(rig) and rig.shard.oldest_pinned() == pinned
    other = rig.recovered(plan_of)
    assert everything(other.shard.runs["r1"]) == everything(rig.shard.runs["r1"])
    assert other.shard.oldest_pinned() == pinned
    before = len(other.log)
    other.tell(i.Archived({"r1": other.run("r1").event_seq}))
    oldest = other.shard.oldest_pinned()
    assert oldest is not None and oldest[1] > before
    third = other.recovered(plan_of)
    other.log = other.log[before:]
    for last in (third, other.recovered(plan_of)):
        assert everything(last.shard.runs["r1"]) == everything(other.shard.runs["r1"])


def test_a_run_that_grows_after_its_snapshot_is_copied_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "MOST_TASKS", 10_000)
    growing = plan(Node(), Node((0,), members=MEMBERS, input=payload("x" * 5_000)))
    rig = begun(growing)
    assert rig.shard.runs["r1"].base and not parts(rig)
    rig.tell(rig.report("r1/t0/0/1"))
    monkeypatch.setattr(moving, "MOST_TASKS", 10)
    rig.tell(i.Archived({"r1": rig.run("r1").event_seq}))
    (first, _), *_ = parts(rig)
    rig.log = [segment for segment in rig.log if segment[0] >= first]
    other = rig.recovered(lambda submitted: growing)
    assert everything(other.shard.runs["r1"]) == everything(rig.shard.runs["r1"])


def test_a_run_that_ends_on_its_way_is_not_copied_any_further() -> None:
    rig = begun()
    rig.turn()
    rig.tell(i.Cancel("r1", "spiffe://antiphon.internal/ns/demo/client/tester", "enough", lambda run: None))
    assert rig.run("r1").state is RunState.CANCELLED and not any(part.last for _, part in parts(rig))
    other = rig.recovered(plan_of)
    assert other.run("r1").state is RunState.CANCELLED
    rig.log = rig.log[parts(rig)[0][0] - 1 :]
    assert "r1" not in rig.recovered(plan_of).shard.runs  # its beginning is gone only once it is archived


def test_a_copy_has_to_be_much_smaller_than_what_may_go() -> None:
    entry = begun().shard.runs["r1"]
    size = sum(map(len, entry.records)) // 20_000
    assert not moving.pays(entry, 4 * size - 1)
    assert moving.pays(entry, 4 * size)


def test_the_digest_of_a_long_history_is_taken_on_the_way_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "DIGESTED_AT_ONCE", 16)
    rig = begun(plan(Node(members=1_200)))
    entry = rig.shard.runs["r1"]
    while entry.run.state is RunState.RUNNING:
        rig.tell(*[rig.report(attempt) for attempt in rig.offers])
    assert 0 < entry.digested <= len(entry.records)
    record = auditing._covered(entry, entry.run.event_seq)
    assert record["digest"] == hashlib.sha256(b"".join(entry.records)).hexdigest()
    early = auditing._covered(entry, 5)
    assert early["digest"] == hashlib.sha256(b"".join(entry.records[:5])).hexdigest()


def test_a_history_is_cut_where_a_longer_one_is_cut_as_well() -> None:
    records = [bytes([n % 256]) * (10_000 + n) for n in range(400)]
    whole, half = list(cut("r1", 1, records)), list(cut("r1", 1, records[:200]))
    assert [chunk.first_seq for chunk in whole[: len(half)]] == [chunk.first_seq for chunk in half]
    assert whole[: len(half) - 1] == half[:-1]
    assert all(len(chunk.data) < CHUNK_BYTES + 20_000 for chunk in whole)
    again = [raw for chunk in whole for raw in journal.LogSegment.FromString(chunk.data).records]
    assert again == records
    assert [chunk.last_seq + 1 for chunk in whole[:-1]] == [chunk.first_seq for chunk in whole[1:]]
