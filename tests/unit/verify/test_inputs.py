"""Inputs of `antiphon verify`: valid ones fit, invalid ones do not, and a seed makes the same again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antiphon.verify.inputs import BadSchema, Inputs, Schema
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMAS: tuple[Any, ...] = (
    {"type": "string"},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "format": "date-time"},
    {"type": "integer", "minimum": 1, "maximum": 5},
    {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5},
    {"type": ["string", "null"]},
    {"enum": ["a", "b", 3]},
    {"const": {"x": 1}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}]},
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "string"}}}]},
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
)


@pytest.mark.parametrize("tree", SCHEMAS, ids=json.dumps)
def test_valid_values_and_edges_fit_and_invalid_ones_do_not(tree: Any) -> None:
    schema = Schema(json.dumps(tree))
    inputs = Inputs(schema, seed=3)
    assert inputs.valid(5)
    assert inputs.invalid(12)
    assert all(schema.fits(value) for value in [*inputs.valid(5), *inputs.boundary(16)])
    assert all(schema.refuses(value) for value in inputs.invalid(12))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1 << 63))
def test_a_seed_makes_the_same_inputs_again(seed: int) -> None:
    for tree in SCHEMAS[-3:]:
        once, again = (Inputs(Schema(json.dumps(tree)), seed) for _ in range(2))
        assert once.valid(4) == again.valid(4)
        assert once.boundary(8) == again.boundary(8)
        assert once.invalid(8) == again.invalid(8)


def test_edges_hold_both_bounds_and_invalid_values_what_is_just_beyond() -> None:
    inputs = Inputs(Schema('{"type": "integer", "minimum": 10, "maximum": 20}'), seed=0)
    assert {10, 20} <= set(inputs.boundary(16))
    assert {9, 21} <= {value for value in inputs.invalid(100) if isinstance(value, int)}


def test_what_only_lacks_its_format_is_neither_valid_nor_invalid() -> None:
    schema = Schema('{"type": "string", "format": "date"}')
    inputs = Inputs(schema, seed=0)
    assert not schema.fits("") and not schema.refuses("")
    assert set(inputs.boundary(16)) >= {"2026-02-28", "1970-01-01"} and "" not in inputs.boundary(16)
    assert inputs.invalid(16) and not any(isinstance(value, str) for value in inputs.invalid(16))


def test_a_schema_that_accepts_everything_has_no_invalid_values() -> None:
    assert Inputs(Schema(""), seed=1).invalid(10) == []
    assert Inputs(Schema(""), seed=1).valid(5)


def test_values_somebody_knows_come_first_where_nothing_could_be_made() -> None:
    schema = Schema('{"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}')
    assert Inputs(schema, seed=1).valid(5) == []
    assert Inputs(schema, seed=1, given=("ABC-1234", "not this")).valid(5) == ["ABC-1234"]
    assert Inputs(Schema('{"pattern": "^[A-Z]{3}$", "type": "string", "examples": ["XYZ"]}'), 1).valid(1) == ["XYZ"]


@pytest.mark.parametrize("text", ["{", '{"type": "text"}', '{"$ref": "https://example.com/schema"}'])
def test_what_is_no_schema_or_needs_another_place_is_refused(text: str) -> None:
    with pytest.raises(BadSchema):
        Schema(text)
