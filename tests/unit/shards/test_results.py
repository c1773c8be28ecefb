"""Results that are kept to be used again: what tells one from another, and the bounds of their memory."""

from __future__ import annotations

from dataclasses import replace

from antiphon.v1.payload_pb2 import Payload
from antiphon_orchestrator.admission import Version
from antiphon_orchestrator.placement.candidates import Offered
from antiphon_orchestrator.placement.results import Kept, Results, key_of
from shard_rig import instance


def kept(output: bytes, at: int = 0, ttl: int = 100) -> Kept:
    return Kept(output, "r/t/0/1", at, at + ttl)


def test_of_too_many_results_those_go_that_were_not_used_for_longest() -> None:
    results = Results(most=2)
    results.keep(b"a", kept(b"1"))
    results.keep(b"b", kept(b"2"))
    assert results.get(b"a", 1, 100) is not None
    results.keep(b"c", kept(b"3"))
    assert [key for key in (b"a", b"b", b"c") if results.get(key, 1, 100)] == [b"a", b"c"]


def test_their_bytes_are_bounded_and_counted_once_each() -> None:
    results = Results(most_bytes=10)
    results.keep(b"a", kept(b"12345"))
    results.keep(b"a", kept(b"1234"))
    assert results.bytes == 4
    results.keep(b"b", kept(b"123456"))
    assert (len(results), results.bytes) == (2, 10)
    results.keep(b"c", kept(b"7"))
    assert (len(results), results.bytes) == (2, 7)
    results.keep(b"d", kept(b"x" * 11))
    assert (len(results), results.bytes) == (0, 0), "one that is larger than all may be is not kept"


def test_a_result_is_as_old_as_whoever_asks_lets_it_be_and_no_older_than_whoever_made_it_said() -> None:
    results = Results()
    results.keep(b"a", kept(b"1", at=1000, ttl=50))
    assert results.get(b"a", 1020, 20) is None
    assert results.get(b"a", 1019, 20) is not None
    assert results.get(b"a", 1050, 1000) is None
    assert (len(results), results.bytes) == (0, 0)


def payload(inline: bytes = b"1", label: str = "", field: str = "") -> bytes:
    message = Payload(inline=inline, media_type="application/json")
    if label:
        message.labels.add(key=label)
    if field:
        message.field_labels.add(pointer=field).labels.add(key="pii")
    return message.SerializeToString()


def test_all_that_a_result_depends_on_tells_it_from_others() -> None:
    clearance = frozenset({"pii"})
    offered = Offered(
        instance(), "text.work", "text.work@1.0", Version(1, 0, 0), "pure", clearance, 0.0, 0.05, "{}", False
    )
    keys = [
        key_of("demo", offered, "{}", payload()),
        key_of("other", offered, "{}", payload()),
        key_of("demo", replace(offered, label="text.work@1.1"), "{}", payload()),
        key_of("demo", replace(offered, input_schema="true"), "{}", payload()),
        key_of("demo", offered, "true", payload()),
        key_of("demo", replace(offered, clearance=frozenset()), "{}", payload()),
        key_of("demo", offered, "{}", payload(b"2")),
        key_of("demo", offered, "{}", payload(label="pii")),
        key_of("demo", offered, "{}", payload(field="/a")),
        key_of("demo", offered, "{}", payload(field="/b")),
    ]
    assert len(set(keys)) == len(keys)
    elsewhere = replace(offered, instance=instance("b"), cost=2.0)
    assert key_of("demo", elsewhere, "{}", payload()) == keys[0], "who made it is no part of it"
