"""Models of pydantic as annotations of handlers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema_rs
import pydantic
import pytest
from antiphon import Agent, InvalidInput, InvalidOutput, Labels, TaskContext, output_of
from antiphon import _json as json_
from antiphon._convert import Mismatch
from antiphon._handler import Handler
from antiphon._pydantic import Model
from antiphon._schema import codec
from antiphon.v1 import run_pb2
from antiphon.v1.agent_service_pb2 import Assignment
from antiphon.v1.payload_pb2 import Payload
from pydantic import BaseModel, ConfigDict, Field


class Address(BaseModel):
    city: str
    zip: str = Field(pattern="^[0-9]{4}$")


class Guest(BaseModel):
    """Somebody who comes."""

    name: str = Field(min_length=1)
    born: date | None = None
    addresses: list[Address] = []
    phone: Annotated[str, Labels("pii")] = ""
    home: Annotated[Address | None, Labels("pii", "home")] = None


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    day: date
    price: Annotated[Decimal, Field(strict=False)] = Decimal(0)
    given: int = Field(alias="givenTimes")


class Priced(BaseModel):
    net: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> int:
        return self.net * 2


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


@pydantic.dataclasses.dataclass
class Point:
    x: int
    y: int = Field(ge=0)


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class Looked(BaseModel):
    """A validator sees it first, after which pydantic no longer reads JSON."""

    day: date
    level: Level = Level.LOW
    at: tuple[float, float] = (0, 0)
    count: int = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def old_name(cls, value: Any) -> Any:
        return {**value, "day": value["date"]} if "date" in value else value


class Fields(BaseModel):
    when: datetime
    key: Annotated[UUID, pydantic.WrapValidator(lambda value, further: further(value))]
    tags: Annotated[set[str], pydantic.BeforeValidator(lambda value: value.split(","), json_schema_input_type=str)]
    even: Annotated[
        int, pydantic.PlainValidator(lambda value: value // 2 * 2, json_schema_input_type=int | Literal["none"])
    ]
    looked: Looked | None = None

    @pydantic.field_validator("when", mode="before")
    @classmethod
    def stripped(cls, value: str) -> str:
        return value.strip()


FIELDS: dict[str, Any] = {
    "when": " 2026-03-01T10:00:00Z ",
    "key": "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
    "tags": "a,b",
    "even": 3,
    "looked": {"date": "2026-03-01", "day": "2026-02-01", "level": "high", "at": [1.5, 2], "count": 2.0},
}


def handler(function: Any) -> Handler:
    agent = Agent("a")
    agent.capability("a.b@1")(function)
    (one,) = agent._handlers.values()
    return one


def called(one: Handler, value: Any) -> Any:
    assignment = Assignment(attempt_id="r/t/0/1", input=Payload(inline=json.dumps(value).encode()))
    return one.call(TaskContext(assignment, None, 0.0))  # type: ignore[arg-type]  # nobody calls through it


def greet(guest: Guest) -> list[Guest]:
    return [guest]


def test_a_handler_gets_the_model_and_answers_models() -> None:
    one = handler(greet)
    (guest,) = called(one, {"name": "Ada", "born": "1815-12-10", "addresses": [{"city": "London", "zip": "1234"}]})
    assert guest == Guest(name="Ada", born=date(1815, 12, 10), addresses=[Address(city="London", zip="1234")])
    answered = json.loads(one.output([guest], 65536))  # type: ignore[arg-type]
    assert answered[0]["born"] == "1815-12-10" and answered[0]["addresses"] == [{"city": "London", "zip": "1234"}]


def test_the_schema_of_the_capability_is_the_model_s() -> None:
    capability = handler(greet).capability
    schema = json.loads(capability.input_schema)
    assert schema["properties"]["name"] == {"minLength": 1, "title": "Name", "type": "string"}
    assert schema["description"] == "Somebody who comes." and schema["required"] == ["name"]
    assert schema["properties"]["addresses"]["items"] == {"$ref": "#/$defs/Address"}
    output = json.loads(capability.output_schema)
    assert output["items"] == {"$ref": "#/$defs/Guest"} and set(output["$defs"]) == {"Guest", "Address"}
    for text in (capability.input_schema, capability.output_schema):
        jsonschema_rs.meta.validate(json.loads(text))


def test_labels_in_a_model_are_announced_as_those_of_a_dataclass() -> None:
    properties = json.loads(codec(Guest).schema)["properties"]
    assert properties["phone"]["x-antiphon-labels"] == ["pii"]
    assert properties["home"]["x-antiphon-labels"] == ["pii", "home"]


def test_what_is_answered_has_the_schema_of_what_is_written() -> None:
    read, written = json.loads(codec(Priced).schema), json.loads(codec(Priced, answered=True).schema)
    assert list(read["properties"]) == ["net"] and list(written["properties"]) == ["net", "gross"]


def test_a_bad_input_is_invalid_with_every_error_of_the_model_and_the_place_of_the_first() -> None:
    with pytest.raises(InvalidInput) as caught:
        called(handler(greet), {"name": "", "addresses": [{"city": "Rome", "zip": "1234"}, {"zip": "secret"}]})
    assert caught.value.field == "/name"
    assert caught.value.message == (
        "/name: String should have at least 1 character; /addresses/1/city: Field required; "
        "/addresses/1/zip: String should match pattern '^[0-9]{4}$'"
    )
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [True, "1", 1.5])
def test_a_model_takes_for_an_integer_what_its_schema_takes(value: Any) -> None:
    tree = codec(Tree)
    with pytest.raises(Mismatch, match="/children/0/value: expected an integer, got a"):
        tree.decode({"value": 1, "children": [{"value": value}]})
    assert tree.decode({"value": 1.0, "children": [{"value": 2.0}]}) == Tree(value=1, children=[Tree(value=2)])


def test_a_validator_that_sees_a_value_first_makes_nothing_of_json_s_be_refused() -> None:
    fields = codec(Fields)
    assert jsonschema_rs.validator_for(json.loads(fields.schema)).is_valid(FIELDS)
    assert fields.decode(FIELDS) == Fields.model_construct(
        when=datetime(2026, 3, 1, 10, tzinfo=UTC),
        key=UUID(FIELDS["key"]),
        tags={"a", "b"},
        even=2,
        looked=Looked.model_construct(day=date(2026, 3, 1), level=Level.HIGH, at=(1.5, 2.0), count=2),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"when": 7}, "/when: expected a string, got a number"),
        ({"tags": ["a"]}, "/tags: expected a string, got an array"),
        ({"even": True}, "/even: expected an integer, got a boolean"),
        ({"looked": True}, "/looked: expected an object, got a boolean"),
        ({"looked": {**FIELDS["looked"], "count": "1"}}, "/looked/count: expected an integer, got a string"),
        ({"looked": {**FIELDS["looked"], "at": [True, 2]}}, "/looked/at/0: expected a number, got a boolean"),
    ],
)
def test_what_the_schema_s_types_refuse_no_validator_sees(change: Any, said: str) -> None:
    fields, value = codec(Fields), {**FIELDS, **change}
    assert not jsonschema_rs.validator_for(json.loads(fields.schema)).is_valid(value)
    with pytest.raises(Mismatch) as caught:
        fields.decode(value)
    assert (str(caught.value), caught.value.pointer) == (said, said.partition(":")[0])


def test_a_strict_model_takes_a_whole_number_for_an_integer_as_its_schema_does() -> None:
    assert codec(Strict).decode({"day": "2026-03-01", "givenTimes": 3.0}).given == 3


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: Any = {"value": 1}
    for _ in range(5_000):
        value = {"value": 1, "children": [value]}
    with pytest.raises(Mismatch, match="the value is nested too deeply"):
        codec(Tree).decode(value)


def test_what_is_missing_is_named_and_placed_where_it_should_be() -> None:
    with pytest.raises(InvalidInput) as caught:
        called(handler(greet), {"name": "Ada", "addresses": [{"zip": "1234"}]})
    assert (caught.value.message, caught.value.field) == ("/addresses/0/city: Field required", "/addresses/0")


def test_no_message_quotes_the_input() -> None:
    for model, value in (
        (Owner, {"pet": {"kind": "s3cret"}}),
        (Guest, {"name": "x", "born": "s3cret"}),
        (Guest, "s3cret"),
    ):
        with pytest.raises(Mismatch) as caught:
            codec(model).decode(value)
        assert "s3cret" not in str(caught.value)


def test_hundreds_of_errors_are_a_bounded_message() -> None:
    with pytest.raises(Mismatch, match=r"; and 284 more$"):
        codec(Guest).decode({"name": "a", "addresses": [{"city": n, "zip": "1234"} for n in range(300)]})


def test_a_strict_model_takes_from_json_what_json_can_say() -> None:
    converters = codec(Strict)
    strict = converters.decode({"day": "2026-03-01", "price": "1.50", "givenTimes": 3})
    assert (strict.day, strict.price, strict.given) == (date(2026, 3, 1), Decimal("1.50"), 3)
    assert converters.encode(strict) == {"day": "2026-03-01", "price": "1.50", "givenTimes": 3}
    with pytest.raises(Mismatch, match="/givenTimes: expected an integer, got a string"):
        converters.decode({"day": "2026-03-01", "givenTimes": "3"})
    with pytest.raises(Mismatch, match="Extra inputs are not permitted"):
        converters.decode({"day": "2026-03-01", "givenTimes": 3, "more": 1})


def test_an_output_that_is_not_the_model_is_refused() -> None:
    one = handler(greet)
    with pytest.raises(InvalidOutput) as caught:
        one.output([Address(city="Rome", zip="1234")], 65536)
    assert (caught.value.message, caught.value.field) == ("expected Guest, got Address", "/0")
    with pytest.raises(InvalidOutput, match="a field of Guest holds what the model does not declare"):
        one.output([Guest.model_construct(name=7)], 65536)  # type: ignore[arg-type]


@pytest.mark.parametrize("annotation", [Tree, list[Tree], Owner, dict[str, Guest], Guest | None, Point])
@pytest.mark.parametrize("answered", [False, True])
def test_schemas_are_sound_and_the_same_in_every_process(annotation: Any, answered: bool) -> None:
    schema = codec(annotation, answered=answered).schema
    assert schema == codec(annotation, answered=answered).schema
    jsonschema_rs.validator_for(json.loads(schema))


def test_a_model_that_contains_itself_travels() -> None:
    tree = Tree(value=1, children=[Tree(value=2)])
    converters = codec(Tree)
    assert converters.decode(converters.encode(tree)) == tree
    validator = jsonschema_rs.validator_for(json.loads(converters.schema))
    assert validator.is_valid({"value": 1, "children": [{"value": 2}]})
    assert not validator.is_valid({"value": 1, "children": [{"value": "2"}]})


class Word(BaseModel):
    next: Word | Number | None = None
    value: str


class Number(BaseModel):
    next: Word | Number | None = None
    value: int


def test_the_types_of_models_that_contain_each_other_are_told_at_once() -> None:
    types = Model(Word)._types
    for last, unfit in (("a", []), (True, [((*["next"] * 60, "value"), "expected a string, got a boolean")])):
        value: Any = {"value": last}
        for at in range(60):
            value = {"next": value, "value": "a" if at % 2 else at}
        assert types.unfit(value)[:1] == unfit


def test_classes_of_one_name_do_not_meet_in_a_schema() -> None:
    street = dataclass(type("Address", (), {"__annotations__": {"street": int}}))
    schema = json.loads(
        codec(dataclass(type("Holder", (), {"__annotations__": {"address": street, "guest": Guest}}))).schema
    )
    assert {"Address", "Address2", "Guest"} <= set(schema["$defs"])
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid(
        {"guest": {"name": "a", "addresses": [{"city": "x", "zip": "1234"}]}, "address": {"street": 1}}
    )
    assert not validator.is_valid({"guest": {"name": "a", "addresses": [{"street": 1}]}, "address": {"street": 1}})


def test_a_dataclass_of_pydantic_s_is_checked_as_a_model_is() -> None:
    with pytest.raises(Mismatch, match=r"^/y: Input should be greater than or equal to 0$"):
        codec(Point).decode({"x": 1, "y": -1})
    assert codec(Point).encode(codec(Point).decode({"x": 1, "y": 2})) == {"x": 1, "y": 2}


def test_clients_may_send_models_and_ask_for_them() -> None:
    guest = Guest(name="Ada", born=date(1815, 12, 10))
    run = run_pb2.Run(state=run_pb2.RUN_STATE_SUCCEEDED, output=Payload(inline=json_.dumps(guest)))
    assert output_of(run, Guest) == guest


def test_a_model_that_is_not_complete_is_refused_when_the_agent_is_written() -> None:
    class Unfinished(BaseModel):
        other: Nowhere  # type: ignore[name-defined]  # noqa: F821

    def take(value: Any) -> None: ...

    take.__annotations__ = {"value": Unfinished}
    with pytest.raises(TypeError, match=r"the input of .*take: the model .*Unfinished cannot travel as JSON"):
        handler(take)


def test_nothing_of_pydantic_is_imported_where_nobody_uses_it() -> None:
    script = """
import sys
from dataclasses import dataclass
from antiphon import Agent, Client, Graph, Labels

@dataclass
class Guest:
    name: str

agent = Agent("a")

@agent.capability("a.b@1")
async def greet(guest: Guest) -> str:
    return guest.name

sys.exit(sum(name.partition(".")[0].startswith("pydantic") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
