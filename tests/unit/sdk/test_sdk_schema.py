"""Schemas and converters: what is announced, what is accepted, and that there and back gives the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NewType, NotRequired, TypedDict

import jsonschema_rs
import pytest
from antiphon import Labels, _json
from antiphon._convert import Mismatch
from antiphon._schema import codec
from hypothesis import given
from hypothesis import strategies as st


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


UserId = NewType("UserId", str)


@dataclass
class Contact:
    mail: str
    kind: Literal["work", "home", 3] = "work"


class Options(TypedDict):
    depth: int
    note: NotRequired[str | None]


@dataclass
class Person:
    name: Annotated[str, "What to call them"]
    born: date | None
    seen: datetime
    contacts: list[Contact]
    scores: dict[str, float] = field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    rest: tuple[bool, ...] = ()
    picture: bytes = b""
    color: Color = Color.RED
    level: Level = Level.LOW
    options: Options | None = None
    owner: UserId = UserId("")
    either: int | str | list[int] = 0
    anything: Any = None
    fresh: str = field(default="", init=False)


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)
    other: Tree | None = None


@dataclass
class Forest:
    trees: Mapping[str, Tree]
    names: Sequence[str]


@dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise ValueError("the number must be positive")


text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
contacts = st.builds(Contact, text, st.sampled_from(["work", "home", 3]))
options = st.fixed_dictionaries({"depth": st.integers()}, optional={"note": st.none() | text})
people = st.builds(
    Person,
    name=text,
    born=st.none() | st.dates(),
    seen=st.datetimes(timezones=st.just(UTC)),
    contacts=st.lists(contacts, max_size=3),
    scores=st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    pair=st.tuples(st.integers(), text),
    rest=st.lists(st.booleans(), max_size=3).map(tuple),
    picture=st.binary(max_size=20),
    color=st.sampled_from(Color),
    level=st.sampled_from(Level),
    options=st.none() | options,
    owner=text.map(UserId),
    either=st.integers() | text | st.lists(st.integers(), max_size=3),
    anything=json_values,
)
trees = st.recursive(
    st.builds(Tree, st.integers()),
    lambda inner: st.builds(Tree, st.integers(), st.lists(inner, max_size=2), st.none() | inner),
    max_leaves=6,
)


@given(people)
def test_a_value_comes_back_as_it_was_and_fits_its_schema(person: Person) -> None:
    made = codec(Person)
    value = _json.loads(_json.dumps(made.encode(person)))
    assert made.decode(value) == person
    jsonschema_rs.validate(json.loads(made.schema), value)


@given(st.builds(Forest, st.dictionaries(text, trees, max_size=3), st.lists(text, max_size=3)))
def test_recursive_classes_come_back_too(forest: Forest) -> None:
    made = codec(Forest)
    value = _json.loads(_json.dumps(made.encode(forest)))
    assert made.decode(value) == forest
    jsonschema_rs.validate(json.loads(made.schema), value)


@given(json_values, st.sampled_from([Person, Forest, Options, list[Contact], tuple[int, str], Color, float, bytes]))
def test_any_json_is_decoded_or_refused_with_a_place(value: Any, annotation: Any) -> None:
    made = codec(annotation)
    try:
        decoded = made.decode(value)
    except Mismatch as error:
        assert error.pointer == "" or error.pointer.startswith("/")
    else:
        made.decode(_json.loads(_json.dumps(made.encode(decoded))))


def test_a_schema_is_the_same_every_time_and_reads_well() -> None:
    assert codec(Person).schema == codec(Person).schema
    assert json.loads(codec(Contact).schema) == {
        "type": "object",
        "properties": {"mail": {"type": "string"}, "kind": {"enum": ["work", "home", 3]}},
        "required": ["mail"],
    }
    assert json.loads(codec(Options).schema)["required"] == ["depth"]
    person = json.loads(codec(Person).schema)
    assert person["required"] == ["name", "born", "seen", "contacts"]
    assert person["properties"]["name"] == {"type": "string", "description": "What to call them"}
    assert person["properties"]["born"] == {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}
    assert person["properties"]["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert set(person["$defs"]) == {"Contact", "Options"} and "fresh" not in person["properties"]


@dataclass
class Labelled:
    plain: Annotated[str, "Only described"]
    phone: Annotated[str, Labels("pii"), "Where to call", Labels("region.eu", "pii")]
    home: Annotated[Contact, Labels("pii")]
    spare: Annotated[Contact | None, Labels("pii")] = None


def test_labels_are_said_of_the_place_and_not_of_the_type() -> None:
    schema = json.loads(codec(Labelled).schema)
    assert schema["properties"] == {
        "plain": {"type": "string", "description": "Only described"},
        "phone": {"type": "string", "description": "Where to call", "x-antiphon-labels": ["pii", "region.eu"]},
        "home": {"$ref": "#/$defs/Contact", "x-antiphon-labels": ["pii"]},
        "spare": {"anyOf": [{"$ref": "#/$defs/Contact"}, {"type": "null"}], "x-antiphon-labels": ["pii"]},
    }
    assert "x-antiphon-labels" not in json.dumps(schema["$defs"])


def test_labels_outside_and_inside_of_an_alias_join() -> None:
    mail = Annotated[str, Labels("pii")]
    assert json.loads(codec(Annotated[mail, Labels("contact")]).schema)["x-antiphon-labels"] == ["pii", "contact"]
    assert json.loads(codec(list[mail]).schema)["items"]["x-antiphon-labels"] == ["pii"]
    assert json.loads(codec(Annotated[Contact, Labels("pii")]).schema)["x-antiphon-labels"] == ["pii"]


@pytest.mark.parametrize("keys", [(), ("PII",), ("",), ("a b",), ("pii\n",), tuple(f"l{n}" for n in range(17))])
def test_what_is_no_label_is_refused_when_it_is_declared(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="label"):
        Labels(*keys)


def test_a_recursive_root_is_referred_to() -> None:
    assert json.loads(codec(Tree).schema)["$ref"] == "#/$defs/Tree"
    assert codec(Any).schema == "" and json.loads(codec(None).schema) == {"type": "null"}


def test_classes_of_the_same_name_have_definitions_of_their_own() -> None:
    def made(annotation: Any) -> type:
        return dataclass(type("Twin", (), {"__annotations__": {"value": annotation}}))

    schema = json.loads(codec(tuple[made(int), made(str)]).schema)
    assert set(schema["$defs"]) == {"Twin", "Twin2"}


@pytest.mark.parametrize(
    ("annotation", "value", "pointer", "says"),
    [
        (Person, {}, "", "'name' is missing"),
        (list[Contact], [{"mail": "a"}, {"mail": 5}], "/1/mail", "expected a string, got a number"),
        (dict[str, list[int]], {"a/b~c": [1, True]}, "/a~1b~0c/1", "expected an integer, got a boolean"),
        (tuple[int, str], [1], "", "2 values"),
        (Contact, {"mail": "a", "kind": 3.0}, "/kind", "expected one of"),
        (Color, "green", "", 'expected one of ["red", "blue"]'),
        (Literal[True], 1, "", "expected one of [true]"),
        (Positive, {"number": 0}, "", "must be positive"),
        (list[Positive], [{"number": 0}], "/0", "must be positive"),
        (datetime, "2026-01-01T00:00:00", "", "with offset"),
        (date, "soon", "", "a date"),
        (bytes, "!", "", "base64"),
        (bytes, 5, "", "base64"),
        (float, 10**400, "", "finite"),
        (int, 1.5, "", "expected an integer"),
        (int | str, [], "", "an array fits none"),
        (None, 0, "", "expected null"),
        (Options, {"depth": "x"}, "/depth", "expected an integer"),
    ],
)
def test_a_mismatch_says_where_and_never_what(annotation: Any, value: Any, pointer: str, says: str) -> None:
    with pytest.raises(Mismatch) as caught:
        codec(annotation).decode(value)
    assert caught.value.pointer == pointer and says in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value", "pointer"),
    [
        (Contact, {"mail": "a"}, ""),
        (list[Contact], [Contact("a"), Contact(5)], "/1/mail"),  # type: ignore[arg-type]
        (datetime, datetime(2026, 1, 1), ""),
        (date, datetime(2026, 1, 1, tzinfo=UTC), ""),
        (bytes, "text", ""),
        (float, float("inf"), ""),
        (dict[str, int], {1: 1}, ""),
        (Color, "red", ""),
    ],
)
def test_a_wrong_output_is_refused_before_it_is_sent(annotation: Any, value: Any, pointer: str) -> None:
    with pytest.raises(Mismatch) as caught:
        codec(annotation).encode(value)
    assert caught.value.pointer == pointer


@dataclass
class Word:
    next: Word | Number | None
    value: str


@dataclass
class Number:
    next: Word | Number | None
    value: int


class Leaf(TypedDict):
    inside: Leaf | Fruit | None
    green: bool


class Fruit(TypedDict):
    inside: Leaf | Fruit | None
    ripe: bool


@dataclass
class Branch:
    branches: list[Branch]
    leaves: int


DEPTH = 60
"""Levels of a value; were each looked at twice for what it may be, nobody would see the end of it."""


def test_classes_that_contain_each_other_are_told_apart_at_once() -> None:
    words: Any = None
    for at in range(DEPTH):
        words = {"next": words, "value": at if at % 2 else "a"}
    read = codec(Word | Number)
    assert read.encode(read.decode(words)) == words
    fruits: Any = None
    for at in range(DEPTH):
        fruits = {"inside": fruits, "ripe" if at % 2 else "green": True}
    bear = codec(Leaf | Fruit)
    assert bear.encode(bear.decode(fruits)) == fruits
    fruits["inside"]["green"] = 1
    with pytest.raises(Mismatch, match="an object fits none of the alternatives"):
        bear.decode(fruits)


def test_the_place_of_a_mismatch_is_found_at_once() -> None:
    read: Any = {"branches": [], "leaves": "many"}
    written = Branch([], "many")  # type: ignore[arg-type]
    for _ in range(DEPTH):
        read = {"branches": [read], "leaves": 1}
        written = Branch([written], 1)
    grow = codec(Branch)
    for convert, value in ((grow.decode, read), (grow.encode, written)):
        with pytest.raises(Mismatch) as caught:
            convert(value)
        assert caught.value.pointer == "/branches/0" * DEPTH + "/leaves"


def test_unknown_fields_are_tolerated_and_whole_floats_are_integers() -> None:
    assert codec(Contact).decode({"mail": "a", "new": 1}) == Contact("a")
    assert codec(Options).decode({"depth": 1.0, "new": 2}) == {"depth": 1, "new": 2}
    assert codec(datetime).decode("2026-01-01T00:00:00Z") == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("annotation", [set[int], complex, dict[int, str], Literal[b"x"], "Unknown", list[object()]])
def test_what_cannot_travel_is_refused_when_it_is_declared(annotation: Any) -> None:
    with pytest.raises(TypeError):
        codec(annotation)


def test_json_is_strict() -> None:
    for wrong in (b"NaN", b"[Infinity]", b"\xff", b"{", b"[" * 100_000):
        with pytest.raises(ValueError):
            _json.loads(wrong)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="too deeply"):
        _json.dumps(nested)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        _json.dumps({1, 2})
    assert _json.dumps({"a": Contact("é"), "b": [Color.RED, date(2026, 1, 1), b"x"]}) == (
        '{"a":{"mail":"é","kind":"work"},"b":["red","2026-01-01","eA=="]}'.encode()
    )
