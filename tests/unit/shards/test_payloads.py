"""Labels flow with values, and request ids are told apart."""

from __future__ import annotations

from antiphon.v1 import payload_pb2
from antiphon_orchestrator.shards.payloads import assert_labels, inherit_labels, request_key


def labelled(*pairs: tuple[str, str], fields: tuple[tuple[str, str], ...] = ()) -> bytes:
    message = payload_pb2.Payload(inline=b"1")
    for key, value in pairs:
        message.labels.add(key=key, value=value)
    if fields:
        part = message.field_labels.add(pointer="/name")
        for key, value in fields:
            part.labels.add(key=key, value=value)
    return message.SerializeToString()


def pairs_of(payload: bytes) -> list[tuple[str, str]]:
    return [(label.key, label.value) for label in payload_pb2.Payload.FromString(payload).labels]


def test_what_is_made_of_a_value_carries_its_labels_once_those_of_its_fields_included() -> None:
    source = labelled(("region", "eu"), ("pii", ""), fields=(("secret", "key"),))
    made = inherit_labels(source, labelled(("pii", ""), ("region", "us")))
    assert pairs_of(made) == [("pii", ""), ("region", "us"), ("region", "eu"), ("secret", "key")]
    assert payload_pb2.Payload.FromString(made).inline == b"1"
    assert inherit_labels(source, made) == made


def test_a_value_without_labels_gives_none() -> None:
    target = labelled(("pii", ""))
    assert pairs_of(inherit_labels(labelled(), target)) == [("pii", "")]


def test_a_request_key_tells_callers_and_ids_apart() -> None:
    keys = {request_key("a", "bc"), request_key("ab", "c"), request_key("a", "b"), request_key("b", "a")}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}
    assert request_key("a", "b") in keys


def test_every_label_says_who_says_so_whatever_the_sender_wrote() -> None:
    payload = payload_pb2.Payload.FromString(labelled(("pii", ""), fields=(("secret", "key"),)))
    for label in (payload.labels[0], payload.field_labels[0].labels[0]):
        label.asserted_by = "somebody important"
    assert_labels(payload, "me")
    assert payload.labels[0].asserted_by == payload.field_labels[0].labels[0].asserted_by == "me"
