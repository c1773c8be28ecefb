"""Schemas whose references multiply: refused, or checked without asking for reasons that nobody has the time for."""

import json
import time

import pytest
from admission_views import payload
from antiphon_orchestrator.admission import SchemaInvalid, SchemaSet, Values
from antiphon_orchestrator.admission.extent import NotMeasured, measure


def doubling(levels: int) -> dict[str, object]:
    """A schema of so many lines, each of which refers to the next one twice."""
    definitions: dict[str, object] = {
        f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(levels)
    }
    return {"$defs": {**definitions, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def expression_tree(kinds: int) -> dict[str, object]:
    """What a program makes of a tagged union that holds itself."""
    node = {"$ref": "#/$defs/node"}
    alternatives = [
        {"type": "object", "properties": {"kind": {"const": f"k{n}"}, "of": node}, "required": ["kind", "of"]}
        for n in range(kinds)
    ]
    return {"$defs": {"node": {"oneOf": [*alternatives, {"type": "integer"}]}}, **node}


def nested(levels: int, kind: str) -> object:
    value: object = 1
    for _ in range(levels):
        value = {"kind": kind, "of": value}
    return value


@pytest.mark.parametrize("levels", [13, 40, 300])
def test_references_that_multiply_are_refused(levels: int) -> None:
    with pytest.raises(SchemaInvalid, match=r"too|larger"):
        SchemaSet(Values()).add(json.dumps(doubling(levels)))


def test_as_many_references_as_people_write_are_fine() -> None:
    schemas, text = SchemaSet(Values()), json.dumps(doubling(6))
    assert schemas.check(text, payload("x")) is None
    assert schemas.check(text, payload(1)) is not None


def test_a_value_that_fits_no_alternative_of_a_recursive_schema_is_refused_at_once() -> None:
    schemas, text = SchemaSet(Values()), json.dumps(expression_tree(10))
    assert schemas.check(text, payload(nested(40, "k9"))) is None
    begun = time.process_time()
    violation = schemas.check(text, payload(nested(12, "other")))
    assert violation is not None and "alternatives" in violation.message
    assert time.process_time() - begun < 1  # collecting the reasons takes longer than a life


def test_a_recursive_schema_without_alternatives_still_says_where() -> None:
    text = json.dumps({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "n": {"type": "integer"}}})
    violation = SchemaSet(Values()).check(text, payload({"left": {"right": {"n": "x"}}}))
    assert violation is not None and violation.pointer == "/left/right/n"


@pytest.mark.parametrize(
    ("schema", "size", "recursive"),
    [
        (True, 0, False),
        ({"type": "string"}, 1, False),
        ({"$defs": {"a": {"items": {}}}, "$ref": "#/$defs/a"}, 3, False),
        ({"$defs": {"a~/ b": {}}, "$ref": "#/$defs/a~0~1%20b"}, 2, False),
        ({"$defs": {"a": {"$anchor": "x", "allOf": [{}]}}, "$ref": "#x"}, 4, False),
        ({"allOf": [{"$ref": "#/allOf/1"}, {}]}, 5, False),
        ({"$ref": "#"}, 2, True),
        ({"$ref": "#/nowhere/at/all"}, 1, False),
    ],
)
def test_an_extent_counts_what_references_lead_to(schema: object, size: int, recursive: bool) -> None:
    extent = measure(schema)
    assert (extent.size, extent.recursive) == (size, recursive)


def test_places_outside_cannot_be_measured() -> None:
    with pytest.raises(NotMeasured, match="outside"):
        measure({"$ref": "https://example.com/x"})
    with pytest.raises(NotMeasured, match=r"\$id"):
        measure({"$defs": {"a": {"$id": "other", "$ref": "#/$defs/b"}}, "$ref": "#/$defs/a"})
