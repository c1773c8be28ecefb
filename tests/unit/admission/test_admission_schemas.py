"""JSON Schemas: what is accepted as one, what a value breaks, and how two differ."""

import json

import pytest
from admission_views import payload
from antiphon.v1.payload_pb2 import BlobReference, Payload
from antiphon_orchestrator.admission import SchemaInvalid, SchemaSet, SchemaViolation, Values, difference
from hypothesis import given
from hypothesis import strategies as st

PERSON = json.dumps(
    {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "a/b": {"items": {"type": "integer"}}},
    }
)


def schemas() -> SchemaSet:
    return SchemaSet(Values())


@pytest.mark.parametrize(
    ("value", "violation"),
    [
        ({"name": "ada", "a/b": [1, 2]}, None),
        ({}, SchemaViolation("", '"name" is a required property')),
        ({"name": 3}, SchemaViolation("/name", 'the value is not of type "string"')),
        ({"name": "secret 1"}, SchemaViolation("/name", 'the value does not match "^[a-z]+$"')),
        ({"name": "a", "a/b": [1, "x"]}, SchemaViolation("/a~1b/1", 'the value is not of type "integer"')),
        ([], SchemaViolation("", 'the value is not of type "object"')),
    ],
)
def test_a_violation_says_where_and_never_shows_the_value(value: object, violation: SchemaViolation | None) -> None:
    assert schemas().check(PERSON, payload(value)) == violation


def test_an_unknown_field_is_named() -> None:
    found = schemas().check(PERSON, payload({"name": "a", "nmae": "b"}))
    assert found is not None
    assert "nmae" in found.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", 'the value is not of type "object"'),
        (Payload(inline=b"{").SerializeToString(), "the value is not JSON"),
        (Payload(inline=b"\xff").SerializeToString(), "the value is not UTF-8"),
        (Payload(inline=b"x", media_type="image/png").SerializeToString(), "the value is image/png, not JSON"),
        (Payload(inline=b"[" * 60_000).SerializeToString(), "the value is nested too deeply"),
    ],
)
def test_what_is_no_json_breaks_every_schema(data: bytes, message: str) -> None:
    found = schemas().check(PERSON, data)
    assert found is not None
    assert (found.pointer, found.message[: len(message)]) == ("", message)


def test_without_a_schema_or_without_content_at_hand_nothing_is_checked() -> None:
    assert schemas().check("", Payload(inline=b"{").SerializeToString()) is None
    assert schemas().check(PERSON, Payload(blob=BlobReference(digest="0" * 64)).SerializeToString()) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("3", "it is a number, not an object"),
        ('{"type": "objct"}', "/type"),
        ('{"pattern": "("}', "/pattern"),
        ('{"pattern": "(?=a)b"}', "/pattern"),
        ('{"$ref": "http://127.0.0.1:1/x"}', "is outside the schema; put the definition"),
        ('{"$ref": "other.json"}', "other.json is outside the schema"),
        ('{"$ref": "#/$defs/none"}', "does not exist"),
        ('{"allOf": ' * 20_000, "nested too deeply|is not JSON"),
    ],
)
def test_what_is_no_usable_schema_is_refused(text: str, says: str) -> None:
    with pytest.raises(SchemaInvalid, match=says):
        schemas().add(text)


def test_a_schema_may_refer_to_itself() -> None:
    tree = '{"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "additionalProperties": {"$ref": "#/$defs/t"}}}}'
    assert schemas().check(tree, payload({"a": {"b": {}}})) is None
    assert schemas().check(tree, payload({"a": {"b": 1}})) is not None


def test_a_set_forgets_the_oldest_and_still_answers() -> None:
    few = SchemaSet(Values(), max_entries=2)
    for number in range(5):
        assert few.check(json.dumps({"const": number}), payload(number)) is None
    assert few.check(json.dumps({"const": 0}), payload(1)) is not None


def test_a_memory_of_values_stays_small_and_right() -> None:
    values = Values(max_entries=4, max_bytes=100)
    for number in range(20):
        assert values.known(payload({"n": number})).value == {"n": number}
    assert values.known(payload("x" * 500)).value == "x" * 500
    assert values.known(payload(1)) is values.known(payload(1))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ('{"type": "object", "a": [1, 2]}', '{"a": [1, 2.0], "type": "object"}', ""),
        ("", "true", ""),
        ('{"type": "object"}', '{"type": "array"}', '/type is "object" in the first and "array" in the second'),
        ('{"properties": {"a/b": {}}}', '{"properties": {}}', "/properties/a~1b is only in the first"),
        ("{}", '{"title": "t"}', "/title is only in the second"),
        ('{"enum": [1]}', '{"enum": [1, 2]}', "/enum has 1 items in the first and 2 in the second"),
        ('{"enum": [1]}', '{"enum": [true]}', "/enum/0 is 1 in the first and true in the second"),
        ('{"items": {}}', '{"items": false}', "/items is an object in the first and false in the second"),
        ("true", "{}", "the schema is true in the first and an object in the second"),
    ],
)
def test_a_difference_names_the_first_place(one: str, other: str, says: str) -> None:
    assert difference(one, other) == says


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("ab"), lambda inner: st.lists(inner)))
def test_nothing_differs_from_itself(value: object) -> None:
    assert difference(json.dumps(value), json.dumps(value)) == ""
