"""What an agent gets of a value: the fields its schema declares, without those that are struck out."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from antiphon.v1.payload_pb2 import Payload
from antiphon_orchestrator.admission import Reduced, SchemaInvalid, SchemaSet, Unusable, Values
from antiphon_orchestrator.admission.fields import DEEPEST, Fields, steps_of, strike_out
from antiphon_orchestrator.admission.schemas import MOST_FIELD_LABELS, WITHHELD_NAMED
from hypothesis import given, settings
from hypothesis import strategies as st

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "value", "kept"),
    [
        (PERSON, {"name": "A", "ssn": "1"}, {"name": "A"}),
        (PERSON, {"name": "A"}, {"name": "A"}),
        (obj(a=obj(b={})), {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}}),
        ({"type": "array", "items": obj(a={})}, [{"a": 1, "b": 2}, {"b": 3}], [{"a": 1}, {}]),
        ({"prefixItems": [obj(a={})], "items": obj(b={})}, [{"a": 1, "b": 1}, {"a": 1, "b": 1}], [{"a": 1}, {"b": 1}]),
        (True, {"a": 1}, {"a": 1}),
        ({}, {"a": 1}, {"a": 1}),
        ({"type": "object"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        (obj(a={}), {"a": {"any": 1}}, {"a": {"any": 1}}),
        ({**PERSON, "additionalProperties": True}, {"name": "A", "x": 1}, {"name": "A", "x": 1}),
        ({**PERSON, "unevaluatedProperties": True}, {"name": "A", "x": 1}, {"name": "A", "x": 1}),
        ({**PERSON, "patternProperties": {"^x": {}}}, {"name": "A", "x": 1}, {"name": "A", "x": 1}),
        ({"type": "array", "items": obj(a={})}, {"a": 1}, {}),
        ({"anyOf": [obj(a=obj(b={})), {"additionalProperties": obj(c={})}]}, {"a": {"c": 1, "d": 2}}, {"a": {"c": 1}}),
        ({"additionalProperties": obj(a={})}, {"k": {"a": 1, "b": 2}}, {"k": {"a": 1}}),
        ({"allOf": [obj(a={}), obj(b={})]}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}),
        ({**obj(a={}), "allOf": [{"required": ["a"]}]}, {"a": 1, "c": 3}, {"a": 1}),
        ({"anyOf": [PERSON, {"type": "null"}]}, {"name": "A", "x": 1}, {"name": "A"}),
        ({"anyOf": [obj(a={}), obj(b={})]}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}),
        ({"anyOf": [obj(a={}), {"type": "object"}]}, {"a": 1, "c": 3}, {"a": 1, "c": 3}),
        ({"anyOf": [obj(a={}), True]}, {"a": 1, "c": 3}, {"a": 1, "c": 3}),
        ({**obj(a={}), "if": {}, "then": obj(b={})}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}),
        ({**obj(a={}), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1, "c": 3}, {"a": 1}),
        ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, {"name": "A", "x": 1}, {"name": "A"}),
        (
            {"$ref": "#/$defs/t", "$defs": {"t": obj(of={"type": "array", "items": {"$ref": "#/$defs/t"}})}},
            {"of": [{"of": [], "x": 1}], "x": 2},
            {"of": [{"of": []}]},
        ),
        (obj(properties={}), {"properties": 1, "x": 1}, {"properties": 1}),
        (PERSON, "no object", "no object"),
    ],
)
def test_what_a_schema_declares_of_a_value_is_kept(schema: Any, value: Any, kept: Any) -> None:
    fields = Fields(schema)
    found, left_out = fields.declared(value)
    assert found == kept
    assert (found is value) == (not left_out) == (kept == value)
    assert not (fields.covers(value) and left_out)


SCHEMAS = st.recursive(
    st.sampled_from([True, {"type": "integer"}, {}]),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(lambda some: obj(**some)),
        inner.map(lambda one: {"type": "array", "items": one}),
        st.tuples(inner, inner).map(lambda two: {"anyOf": list(two)}),
        st.tuples(inner, inner).map(lambda two: {"allOf": list(two)}),
        inner.map(lambda one: {"additionalProperties": one}),
    ),
    max_leaves=8,
)
VALUES = st.recursive(
    st.integers(0, 3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(SCHEMAS, VALUES)
def test_what_is_kept_still_fits_its_schema_and_is_kept_whole_the_second_time(schema: Any, value: Any) -> None:
    before = json.dumps(value)
    fields = Fields(schema)
    kept, _ = fields.declared(value)
    assert json.dumps(value) == before
    if jsonschema_rs.is_valid(schema, value):
        assert jsonschema_rs.is_valid(schema, kept)
    assert fields.declared(kept) == (kept, [])


@pytest.mark.parametrize(
    ("value", "pointer", "left", "struck"),
    [
        ({"a": 1, "b": 2}, "/a", {"b": 2}, ["/a"]),
        ({"a": {"b": 1, "c": 2}}, "/a/b", {"a": {"c": 2}}, ["/a/b"]),
        ({"a": [{"b": 1}, {"b": 2, "c": 3}]}, "/a/b", {"a": [{}, {"c": 3}]}, ["/a/0/b", "/a/1/b"]),
        ({"a": [1, 2]}, "/a/1", {"a": [1, None]}, ["/a/1"]),
        ({"a": [1, 2]}, "/a/2", {"a": [1, 2]}, []),
        ({"a/b": 1}, "/a~1b", {}, ["/a~1b"]),
        ({"a": 1}, "/b", {"a": 1}, []),
        ({"a": 1}, "/a/b", {"a": 1}, []),
        ({"a": 1}, "", None, [""]),
        (None, "", None, []),
    ],
)
def test_what_a_pointer_names_is_struck_out(value: Any, pointer: str, left: Any, struck: list[str]) -> None:
    found, gone = strike_out(value, [steps_of(pointer)])
    assert found == left
    assert ["".join(f"/{step.replace('/', '~1')}" for step in one) for one in gone] == struck


def payload(value: Any, **labels: str) -> Payload:
    message = Payload(inline=json.dumps(value).encode())
    for pointer, key in labels.items():
        message.field_labels.add(pointer=f"/{pointer}").labels.add(key=key)
    return message


def reduced(schema: Any, message: Payload, *redactions: str) -> tuple[Any, Reduced] | None:
    schemas = SchemaSet(Values())
    found = schemas.reduce(json.dumps(schema), message.SerializeToString(), redactions, "no-pii")
    return None if found is None else (json.loads(Payload.FromString(found.payload).inline), found)


def test_a_reduced_payload_says_what_it_lacks_and_why_and_nobody_speaks_of_what_is_gone() -> None:
    message = payload({"name": "A", "age": 3, "ssn": "1"}, name="pii", ssn="pii", age="public")
    message.labels.add(key="region", value="eu")
    found = reduced(PERSON, message, "label:public", "/other")
    assert found is not None
    value, what = found
    assert value == {"name": "A"}
    assert what.withheld == (("/ssn", "schema"), ("/age", "no-pii")) and what.count == 2
    kept = Payload.FromString(what.payload)
    assert [part.pointer for part in kept.field_labels] == ["/name"]
    assert [label.key for label in kept.labels] == ["region"]


def test_nothing_is_made_anew_when_nothing_is_withheld() -> None:
    assert reduced(PERSON, payload({"name": "A"}), "/phone", "label:pii") is None
    assert reduced({}, payload({"name": "A"})) is None
    assert reduced(PERSON, Payload()) is None


def test_a_label_of_the_whole_withholds_the_whole() -> None:
    message = payload({"name": "A"})
    message.labels.add(key="pii")
    found = reduced(PERSON, message, "label:pii")
    assert found is not None and found[0] is None and found[1].withheld == (("", "no-pii"),)


def test_a_label_that_the_schema_declares_withholds_too() -> None:
    schema = obj(people={"type": "array", "items": obj(name={}, phone={"x-antiphon-labels": ["pii"]})})
    found = reduced(schema, payload({"people": [{"name": "A", "phone": 1}, {"name": "B", "phone": 2}]}), "label:pii")
    assert found is not None
    assert found[0] == {"people": [{"name": "A"}, {"name": "B"}]}
    assert [pointer for pointer, _ in found[1].withheld] == ["/people/0/phone", "/people/1/phone"]


def test_a_field_whose_name_no_message_can_hold_is_withheld_and_labelled_all_the_same() -> None:
    found = reduced(PERSON, payload({"name": "A", "\ud800": 1}))
    assert found is not None and found[0] == {"name": "A"}
    assert found[1].withheld == (("/\\ud800", "schema"),)
    text = json.dumps(obj(name={}) | {"additionalProperties": {"x-antiphon-labels": ["pii"]}})
    labelled = SchemaSet(Values()).label(text, payload({"name": "A", "\ud800": 1}).SerializeToString())
    assert [label.key for label in Payload.FromString(labelled).labels] == ["pii"]


def test_the_record_names_so_many_and_counts_the_rest() -> None:
    found = reduced(PERSON, payload({"name": "A", **{f"x{n}": n for n in range(500)}}))
    assert found is not None and found[0] == {"name": "A"}
    assert (len(found[1].withheld), found[1].count) == (WITHHELD_NAMED, 500)


def test_what_cannot_be_looked_into_cannot_be_redacted_and_is_otherwise_passed_on() -> None:
    blob = Payload()
    blob.blob.digest = "0" * 64
    assert reduced(PERSON, blob) is None
    for message in (blob, Payload(inline=b"x", media_type="text/plain"), Payload(inline=b"{")):
        with pytest.raises(Unusable):
            reduced({}, message, "/phone")


def test_labels_that_a_schema_declares_are_put_on_a_payload_and_asserted_by_it() -> None:
    schema = json.dumps(obj(name={"x-antiphon-labels": ["pii", "name"]}, of={"items": {"x-antiphon-labels": ["id"]}}))
    schemas = SchemaSet(Values())
    before = payload({"name": "A", "of": [1, 2]}, name="pii")
    labelled = Payload.FromString(schemas.label(schema, before.SerializeToString()))
    said = [(part.pointer, label.key, label.asserted_by) for part in labelled.field_labels for label in part.labels]
    assert said == [
        ("/name", "pii", ""),
        ("/name", "name", "schema"),
        ("/of/0", "id", "schema"),
        ("/of/1", "id", "schema"),
    ]
    for other in (b"", payload({"x": 1}).SerializeToString()):
        assert schemas.label(schema, other) == other


def deep(levels: int) -> Any:
    value: Any = {"secret": 1}
    for _ in range(levels):
        value = {"of": value}
    return value


@pytest.mark.parametrize("unseen", [Payload(blob={"digest": "0" * 64}), Payload(inline=b"{"), payload(deep(DEEPEST))])
def test_what_cannot_be_looked_into_carries_every_label_of_its_schema(unseen: Payload) -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": obj(of={"$ref": "#/$defs/n"}, secret={"x-antiphon-labels": ["pii"]})}}
    labelled = Payload.FromString(SchemaSet(Values()).label(json.dumps(schema), unseen.SerializeToString()))
    assert [(label.key, label.asserted_by) for label in labelled.labels] == [("pii", "schema")]


def test_what_is_nested_too_deeply_is_not_walked_however_deep() -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": obj(of={"$ref": "#/$defs/n"}, secret={})}}
    assert reduced(schema, payload(deep(DEEPEST - 2))) is None
    for levels in (DEEPEST + 1, 400):
        with pytest.raises(Unusable, match="is nested deeper than 100 levels"):
            reduced(schema, payload(deep(levels)))
        with pytest.raises(Unusable, match="is nested deeper than 100 levels"):
            strike_out([deep(levels)], [("of",) * 250])


def test_more_labelled_parts_than_a_payload_carries_label_the_whole() -> None:
    schema = json.dumps({"items": {"x-antiphon-labels": ["pii"]}})
    data = payload(list(range(MOST_FIELD_LABELS + 5))).SerializeToString()
    labelled = Payload.FromString(SchemaSet(Values()).label(schema, data))
    assert len(labelled.field_labels) == MOST_FIELD_LABELS
    assert [(label.key, label.asserted_by) for label in labelled.labels] == [("pii", "schema")]


@pytest.mark.parametrize("labels", ["pii", ["PII"], [1], ["a"] * 17])
def test_labels_that_nobody_could_read_make_a_schema_unusable(labels: Any) -> None:
    schemas = SchemaSet(Values())
    with pytest.raises(SchemaInvalid, match="/properties/a/x-antiphon-labels"):
        schemas.add(json.dumps(obj(a={"x-antiphon-labels": labels})))
    schemas.add(json.dumps(obj(**{"x-antiphon-labels": {"type": "string"}})))  # a property of that name


@settings(deadline=None)
@given(SCHEMAS, VALUES)
def test_a_part_that_is_not_said_to_be_received_is_never_handed_on(schema: Any, value: Any) -> None:
    fields = Fields(schema)
    kept, _ = fields.declared(value)

    def parts(of: Any, at: str) -> list[str]:
        if isinstance(of, dict):
            return [at, *(found for name, part in of.items() for found in parts(part, f"{at}/{name}"))]
        if isinstance(of, list):
            return [at, *(found for part in of for found in parts(part, f"{at}/*"))]
        return [at]

    assert all(fields.may_receive(pointer) for pointer in parts(kept, ""))


@pytest.mark.parametrize(
    ("schema", "pointer", "received"),
    [
        (PERSON, "/name", True),
        (PERSON, "/ssn", False),
        (PERSON, "", True),
        (PERSON, "/ssn/digits", False),
        (obj(people={"type": "array", "items": PERSON}), "/people/*/ssn", False),
        (obj(people={"type": "array", "items": PERSON}), "/people/*/name", True),
        (obj(people={"items": PERSON}), "/people/*/ssn", True),  # for all we know, an object with numbers for names
        (obj(people={"prefixItems": [PERSON], "items": obj(ssn={})}), "/people/*/ssn", True),
        (obj(home={}), "/home/street", True),
        ({}, "/ssn", True),
    ],
)
def test_what_an_agent_may_receive_follows_from_the_schema(schema: Any, pointer: str, received: bool) -> None:
    assert Fields(schema).may_receive(pointer) is received
