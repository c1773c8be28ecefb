"""From Python annotations to JSON Schema (2020-12) and to converters, built once per annotation and then only called.

Covered: None, bool, int, float, str, bytes (base64), datetime (with offset), date, Any, list, tuple, dict[str, T],
Literal, Enum, unions, dataclasses and TypedDicts (nested and recursive), pydantic models, NewType, and Annotated, whose
first string is the description and whose `Labels` say what a value is. Anything else is refused when the agent is
defined, not when a task arrives.

Invariants: the schema's text depends on the annotation alone, so every process of an agent announces the same; unknown
fields of an object are tolerated and fields without default are required; what `encode` makes `decode` accepts. A
message of a mismatch never holds a value: values may be confidential.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any

from . import _convert
from ._convert import Convert, Mismatch, inside, kind_of, same

JsonSchema = dict[str, Any]

_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_MOST_LABELS = 16


class Labels:
    """What a value is, for policy: `contacts: Annotated[str, Labels("pii")]` labels that field wherever it travels.

    Of an output the labels are put on the value; those of an input count when policy redacts by label.
    """

    __slots__ = ("keys",)

    def __init__(self, *keys: str) -> None:
        """Up to 16 keys, as `pii`: lower case letters, digits, dots and dashes. Raises `ValueError`."""
        for key in keys:
            if not _LABEL.fullmatch(key):
                raise ValueError(f"{key!r} is not a label; write a lower case word, such as 'pii'")
        if not 1 <= len(keys) <= _MOST_LABELS:
            raise ValueError(f"{len(keys)} labels; 1 to {_MOST_LABELS} are allowed")
        self.keys = keys

    def __repr__(self) -> str:
        return f"Labels({', '.join(map(repr, self.keys))})"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], JsonSchema]) -> JsonSchema:
        """By this hook pydantic puts the labels of a model's field into the model's schema."""
        return labelled(handler(core_schema), self.keys)


@dataclass(frozen=True, slots=True)
class Codec:
    """How one annotation travels. The converters raise `Mismatch`."""

    schema: str
    """JSON Schema as text; empty accepts anything."""
    decode: Convert
    """From parsed JSON to the annotated type."""
    encode: Convert
    """From the annotated type to what a JSON encoder takes."""


def codec(annotation: Any, *, answered: bool = False) -> Codec:
    """The codec of an annotation, `None` meaning JSON null. Raises `TypeError` for what cannot travel as JSON.

    `answered`: the schema is that of what is written; of a pydantic model it differs from that of what is read.
    """
    builder = _Builder(answered)
    shape = builder.shape(annotation)
    schema = builder.document(shape.schema)
    return Codec(json.dumps(schema, separators=(",", ":")) if schema else "", shape.decode, shape.encode)


@dataclass(frozen=True, slots=True)
class _Shape:
    schema: JsonSchema
    decode: Convert
    encode: Convert


class _Builder:
    """Builds one document: named classes become `$defs`, which is what lets them be recursive."""

    def __init__(self, answered: bool) -> None:
        self._answered = answered
        self._shapes: dict[type, _Shape] = {}
        self._definitions: dict[str, JsonSchema] = {}
        self._used: set[str] = set()

    def document(self, schema: JsonSchema) -> JsonSchema:
        """The schema with its definitions; a root that nothing refers back to is written out in place."""
        definitions = dict(sorted(self._definitions.items()))
        root = schema.get("$ref", "").removeprefix("#/$defs/")
        if root and root not in self._used:
            schema = {**definitions.pop(root), **{key: value for key, value in schema.items() if key != "$ref"}}
        return {**schema, "$defs": definitions} if definitions else schema

    def shape(self, annotation: Any) -> _Shape:
        if annotation is Any or annotation is object:
            return _Shape({}, same, same)
        if annotation is None:
            annotation = type(None)
        if isinstance(annotation, typing.NewType):
            return self.shape(annotation.__supertype__)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return _described(self.shape(arguments[0]), arguments[1:])
        if origin is typing.Literal:
            return _choice([(value, value) for value in arguments])
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments)
        if annotation in _PLAIN:
            return _PLAIN[annotation]
        container = origin or annotation
        if container in (list, Sequence):
            return _array(self._part(arguments[0] if arguments else Any), list)
        if container is tuple:
            return self._tuple(arguments)
        if container in (dict, Mapping):
            if arguments and arguments[0] is not str:
                raise TypeError(f"{annotation} cannot travel as JSON: keys must be str")
            return _mapping(self._part(arguments[1] if arguments else Any))
        if isinstance(annotation, type):
            if hasattr(annotation, "__pydantic_validator__"):
                return self._model(annotation)
            if issubclass(annotation, Enum):
                return _choice([(member.value, member) for member in annotation])
            if typing.is_typeddict(annotation) or dataclasses.is_dataclass(annotation):
                return self._named(annotation)
        raise TypeError(
            f"{getattr(annotation, '__qualname__', annotation)} cannot travel as JSON; use dataclasses, TypedDicts, "
            "models of pydantic, lists, dicts with str keys and plain types, or Any"
        )

    def _part(self, annotation: Any) -> _Shape:
        """The shape of something inside: from here on its definition is referred to."""
        shape = self.shape(annotation)
        if "$ref" in shape.schema:
            self._used.add(shape.schema["$ref"].removeprefix("#/$defs/"))
        return shape

    def _union(self, arguments: tuple[Any, ...]) -> _Shape:
        shapes = [self._part(argument) for argument in arguments]
        others = [shape for shape, argument in zip(shapes, arguments, strict=True) if argument is not type(None)]
        schema: JsonSchema = {"anyOf": [shape.schema for shape in shapes]}
        if len(others) == 1 < len(shapes):  # Optional, the usual case: no trial and error, and the reason is kept
            decode, encode = others[0].decode, others[0].encode
            return _Shape(
                schema,
                lambda value: None if value is None else decode(value),
                lambda value: None if value is None else encode(value),
            )
        decoders, encoders = [shape.decode for shape in shapes], [shape.encode for shape in shapes]
        return _Shape(schema, _convert.first(decoders), _convert.first(encoders))

    def _tuple(self, arguments: tuple[Any, ...]) -> _Shape:
        if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return _array(self._part(arguments[0] if arguments else Any), tuple)
        shapes = [self._part(argument) for argument in arguments]
        count = len(shapes)

        def each(kind: type[list[Any]] | type[tuple[Any, ...]], converters: list[Convert], value: Any) -> list[Any]:
            if not isinstance(value, kind) or len(value) != count:
                raise Mismatch(f"expected {count} values in an array, got {kind_of(value)}")
            return [inside(convert, value[at], at) for at, convert in enumerate(converters)]

        schema = {"type": "array", "prefixItems": [shape.schema for shape in shapes], "items": False, "minItems": count}
        decoders, encoders = [shape.decode for shape in shapes], [shape.encode for shape in shapes]
        return _Shape(
            schema, lambda value: tuple(each(list, decoders, value)), lambda value: each(tuple, encoders, value)
        )

    def _model(self, cls: type) -> _Shape:
        """A model of pydantic's, with definitions of its own, which may be named like others of the document."""
        if cls in self._shapes:
            return self._shapes[cls]
        from ._pydantic import Model  # pydantic is there, or there would be no such class

        model = Model(cls)
        schema = model.schema("serialization" if self._answered else "validation")
        definitions: JsonSchema = schema.pop("$defs", {})
        names = {f"#/$defs/{name}": self._name(name) for name in definitions}
        for name, definition in definitions.items():
            self._definitions[names[f"#/$defs/{name}"]] = _renamed(definition, names)
        self._used.update(names.values())
        if set(schema) == {"$ref"}:  # it contains itself
            reference = f"#/$defs/{names[schema['$ref']]}"
        else:
            name = self._name(cls.__name__)
            self._definitions[name] = _renamed(schema, names)
            reference = f"#/$defs/{name}"
        self._shapes[cls] = _Shape({"$ref": reference}, model.decode, model.encode)
        return self._shapes[cls]

    def _name(self, wanted: str) -> str:
        """A name for a definition that no other has, taken from now on."""
        name, number = wanted, 1
        while name in self._definitions:
            number += 1
            name = f"{wanted}{number}"
        self._definitions[name] = {}
        return name

    def _named(self, cls: type) -> _Shape:
        if cls in self._shapes:
            return self._shapes[cls]
        name = self._name(cls.__name__)
        # A class that contains itself needs its converters before they exist, so it gets a way to them.
        made: list[_Shape] = []
        shape = _Shape(
            {"$ref": f"#/$defs/{name}"}, lambda value: made[0].decode(value), lambda value: made[0].encode(value)
        )
        self._shapes[cls] = shape
        made.append(_typed_dict(self, cls) if typing.is_typeddict(cls) else _dataclass(self, cls))
        self._definitions[name] = made[0].schema
        self._shapes[cls] = _Shape(shape.schema, made[0].decode, made[0].encode)
        return self._shapes[cls]

    def fields(self, cls: type) -> dict[str, Any]:
        """The annotations of a class by name, resolved. Raises `TypeError`."""
        try:
            return typing.get_type_hints(cls, include_extras=True)
        except NameError as error:
            raise TypeError(f"an annotation of {cls.__qualname__} is not known in its module: {error.name}") from error

    def member(self, annotation: Any) -> _Shape:
        return self._part(annotation)


def _dataclass(builder: _Builder, cls: type) -> _Shape:
    hints = builder.fields(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    shapes = {field.name: builder.member(hints[field.name]) for field in fields}
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    needed = frozenset(required)
    decoders = [(name, shape.decode, name in needed) for name, shape in shapes.items()]
    encoders = [(name, shape.encode) for name, shape in shapes.items()]

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise Mismatch(f"expected an object, got {kind_of(value)}")
        arguments: dict[str, Any] = {}
        for name, convert, must in decoders:
            if name in value:
                try:
                    arguments[name] = convert(value[name])
                except Mismatch as error:
                    raise error.within(name) from None
            elif must:
                raise Mismatch(f"the field '{name}' is missing")
        try:
            return cls(**arguments)
        except Mismatch:
            raise
        except ValueError as error:  # from __post_init__
            raise Mismatch(str(error)) from error

    def encode(value: Any) -> Any:
        if not isinstance(value, cls):
            raise Mismatch(f"expected {cls.__name__}, got {type(value).__name__}")
        made: dict[str, Any] = {}
        for name, convert in encoders:
            try:
                made[name] = convert(getattr(value, name))
            except Mismatch as error:
                raise error.within(name) from None
        return made

    return _Shape(_object({name: shape.schema for name, shape in shapes.items()}, required), decode, encode)


def _typed_dict(builder: _Builder, cls: type) -> _Shape:
    by_class: frozenset[str] = getattr(cls, "__required_keys__", frozenset())
    required: list[str] = []
    shapes: dict[str, _Shape] = {}
    for name, hint in builder.fields(cls).items():
        # Under `from __future__ import annotations` the class itself cannot see these two wrappers.
        wrapper = typing.get_origin(hint)
        if wrapper is typing.Required or (wrapper is not typing.NotRequired and name in by_class):
            required.append(name)
        inner = typing.get_args(hint)[0] if wrapper in (typing.Required, typing.NotRequired) else hint
        shapes[name] = builder.member(inner)

    def converter(converters: list[tuple[str, Convert]]) -> Convert:
        def convert(value: Any) -> Any:
            if not isinstance(value, dict):
                raise Mismatch(f"expected an object, got {kind_of(value)}")
            for name in required:
                if name not in value:
                    raise Mismatch(f"the field '{name}' is missing")
            result = dict(value)
            for name, inner in converters:
                if name in value:
                    result[name] = inside(inner, value[name], name)
            return result

        return convert

    schema = _object({name: shape.schema for name, shape in shapes.items()}, required)
    decoders = [(name, shape.decode) for name, shape in shapes.items()]
    encoders = [(name, shape.encode) for name, shape in shapes.items()]
    return _Shape(schema, converter(decoders), converter(encoders))


def _object(properties: dict[str, JsonSchema], required: list[str]) -> JsonSchema:
    schema: JsonSchema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _array(item: _Shape, kind: type[list[Any]] | type[tuple[Any, ...]]) -> _Shape:
    def converter(convert: Convert, result: Callable[[Any], Any], tuples: bool) -> Convert:
        def run(value: Any) -> Any:
            if not (isinstance(value, list) or (tuples and isinstance(value, tuple))):
                raise Mismatch(f"expected an array, got {kind_of(value)}")
            if convert is same:
                return result(value)
            made: list[Any] = []
            try:
                for part in value:
                    made.append(convert(part))
            except Mismatch as error:  # of the one after those that are made
                raise error.within(len(made)) from None
            return result(made)

        return run

    return _Shape(
        {"type": "array", "items": item.schema} if item.schema else {"type": "array"},
        converter(item.decode, kind, tuples=False),
        converter(item.encode, list, tuples=True),
    )


def _mapping(item: _Shape) -> _Shape:
    def converter(convert: Convert) -> Convert:
        def run(value: Any) -> Any:
            if not isinstance(value, dict):
                raise Mismatch(f"expected an object, got {kind_of(value)}")
            for key in value:
                if not isinstance(key, str):
                    raise Mismatch("expected an object with string keys")
            return value if convert is same else {key: inside(convert, part, key) for key, part in value.items()}

        return run

    schema: JsonSchema = {"type": "object"}
    if item.schema:
        schema["additionalProperties"] = item.schema
    return _Shape(schema, converter(item.decode), converter(item.encode))


def _choice(choices: list[tuple[Any, Any]]) -> _Shape:
    """One of some plain values, each with what a handler sees for it: itself (Literal) or an enum's member."""
    values = [value for value, _ in choices]
    for value in values:
        if not isinstance(value, str | int | float | bool | None):
            raise TypeError(f"a choice of {type(value).__name__} cannot travel as JSON")
    # 1, 1.0 and True are equal; type and value together tell them apart.
    forth = {(type(value), value): meaning for value, meaning in choices}
    back = {(type(meaning), meaning): value for value, meaning in choices}

    def converter(table: dict[tuple[type, Any], Any]) -> Convert:
        def convert(value: Any) -> Any:
            try:
                return table[type(value), value]
            except (KeyError, TypeError):
                raise Mismatch(f"expected one of {json.dumps(values)}") from None

        return convert

    return _Shape({"enum": values}, converter(forth), converter(back))


def _described(shape: _Shape, metadata: tuple[Any, ...]) -> _Shape:
    text = next((item for item in metadata if isinstance(item, str)), None)
    labels = [key for item in metadata if isinstance(item, Labels) for key in item.keys]
    schema = {**shape.schema, "description": text} if text else shape.schema
    schema = labelled(schema, labels) if labels else schema
    return _Shape(schema, shape.decode, shape.encode) if schema is not shape.schema else shape


def labelled(schema: JsonSchema, labels: Sequence[str]) -> JsonSchema:
    """The schema with labels beside those it has."""
    return {**schema, "x-antiphon-labels": list(dict.fromkeys([*schema.get("x-antiphon-labels", ()), *labels]))}


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with its references to definitions by their new names."""
    if isinstance(schema, list):
        return [_renamed(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#/$defs/{names[value]}"
        if key == "$ref" and isinstance(value, str) and value in names
        else {tag: f"#/$defs/{names[to]}" if to in names else to for tag, to in value.items()}
        if key == "mapping" and isinstance(value, dict) and all(isinstance(to, str) for to in value.values())
        else _renamed(value, names)
        for key, value in schema.items()
    }


_string, _boolean = _convert.exactly(str, "a string"), _convert.exactly(bool, "a boolean")
_PLAIN: dict[Any, _Shape] = {
    type(None): _Shape({"type": "null"}, _convert.null, _convert.null),
    bool: _Shape({"type": "boolean"}, _boolean, _boolean),
    int: _Shape({"type": "integer"}, _convert.integer, _convert.exactly(int, "an integer")),
    float: _Shape({"type": "number"}, _convert.number, _convert.number),
    str: _Shape({"type": "string"}, _string, _string),
    bytes: _Shape({"type": "string", "contentEncoding": "base64"}, _convert.bytes_from, _convert.bytes_to),
    datetime: _Shape({"type": "string", "format": "date-time"}, _convert.moment_from, _convert.moment_to),
    date: _Shape({"type": "string", "format": "date"}, _convert.day_from, _convert.day_to),
}
