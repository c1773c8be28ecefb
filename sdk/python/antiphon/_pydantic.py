"""pydantic models as annotations: their schema, their validation, their errors.

Imported only when an annotation is one of pydantic's own classes, so whoever has one has imported pydantic already. A
message names the place and what pydantic has to say of it, never the value, which may be confidential.

A value has the types that the announced schema names, in which neither `true` nor "1" is an integer, but 1.0 is one.
What is of these types is read as the model says. pydantic's own strictness would not do: once a validator of the model
has seen a value first, it counts as Python's and not as JSON's, and no string is a date any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import pydantic
from pydantic_core import PydanticSerializationError

from . import _json
from ._convert import Convert, Mismatch, kind_of

_MOST = 16
"""Errors of one value that are told; a list of thousands fails thousands of times."""
Mode = Literal["validation", "serialization"]
Path = tuple[int | str, ...]
Known = dict[tuple[int, Path], list[tuple[Path, str]]]

_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "null": ("null", lambda value: value is None),
    "boolean": ("a boolean", lambda value: isinstance(value, bool)),
    "integer": ("an integer", lambda value: type(value) is int or (type(value) is float and value.is_integer())),
    "number": ("a number", lambda value: type(value) in (int, float)),
    "string": ("a string", lambda value: isinstance(value, str)),
    "array": ("an array", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
}


class Model:
    """One model, or dataclass of pydantic's, and how it travels. Raises `TypeError` for one that cannot as JSON."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        with self._refused():
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(cls)

    def schema(self, mode: Mode) -> dict[str, Any]:
        """What is accepted, or what is answered; its `$defs` are named as pydantic names them. Raises `TypeError`."""
        with self._refused():
            return self._adapter.json_schema(mode=mode)

    @cached_property
    def _types(self) -> _Types:
        # Not before it is needed: a model that is only answered need not have a schema of what is read.
        return _Types(self.schema("validation"))

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
            raise TypeError(f"the model {self._cls.__qualname__} cannot travel as JSON: {error.message}") from error

    @property
    def decode(self) -> Convert:
        adapter = self._adapter

        def convert(value: Any) -> Any:
            try:
                if unfit := self._types.unfit(value):
                    raise _told([(_pointer(_text(path)), message) for path, message in unfit], unfit[0][0])
            except RecursionError:
                raise Mismatch("the value is nested too deeply") from None
            try:
                try:
                    return _read(adapter, value)
                except pydantic.ValidationError as error:
                    if not any(map(_is_whole_number, error.errors(include_url=False, include_context=False))):
                        raise
                return _read(adapter, _with_integers(value))
            except pydantic.ValidationError as error:
                raise _mismatch(error, value) from None  # its text quotes the input

        return convert

    @property
    def encode(self) -> Convert:
        adapter, cls = self._adapter, self._cls

        def convert(value: Any) -> Any:
            if not isinstance(value, cls):
                raise Mismatch(f"expected {cls.__name__}, got {type(value).__name__}")
            try:
                return adapter.dump_python(value, mode="json", by_alias=True, warnings="error")
            except PydanticSerializationError:
                raise Mismatch(f"a field of {cls.__name__} holds what the model does not declare") from None

        return convert


class _Types:
    """The types that a schema of pydantic's names; all else that it says is told by the model itself."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._definitions: dict[str, Any] = schema.get("$defs", {})

    def unfit(self, value: Any) -> list[tuple[Path, str]]:
        """The places in a value whose type is none that is named, and what is wrong there."""
        return self._unfit(self._schema, value, (), {})

    def _unfit(self, schema: Any, value: Any, path: Path, known: Known) -> list[tuple[Path, str]]:
        # Models that contain each other are looked at for the same value again and again: what was found is `known`.
        if not isinstance(schema, dict):
            return []
        if not isinstance(value, dict | list):
            return self._look(schema, value, path, known)
        key = (id(schema), path)
        if key not in known:
            known[key] = self._look(schema, value, path, known)
        return known[key]

    def _look(self, schema: dict[str, Any], value: Any, path: Path, known: Known) -> list[tuple[Path, str]]:
        if (named := schema.get("type")) is not None:
            names = [named] if isinstance(named, str) else named
            if not any([_TYPES[name][1](value) for name in names]):
                return [(path, f"expected {' or '.join(_TYPES[name][0] for name in names)}, got {kind_of(value)}")]
        found: list[tuple[Path, str]] = []
        if (name := schema.get("$ref", "").removeprefix("#/$defs/")) in self._definitions:
            found += self._unfit(self._definitions[name], value, path, known)
        for part in schema.get("allOf", ()):
            found += self._unfit(part, value, path, known)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                found += self._unfit_all(schema[word], value, path, known)
        if isinstance(value, dict):
            fields, others = schema.get("properties", {}), schema.get("additionalProperties")
            for key, part in value.items():
                found += self._unfit(fields.get(key, others), part, (*path, key), known)
        elif isinstance(value, list):
            first, others = schema.get("prefixItems", ()), schema.get("items")
            for index, part in enumerate(value):
                found += self._unfit(first[index] if index < len(first) else others, part, (*path, index), known)
        return found

    def _unfit_all(self, alternatives: list[Any], value: Any, path: Path, known: Known) -> list[tuple[Path, str]]:
        """What is wrong where no alternative fits, by the one that leads furthest into the value."""
        best: list[tuple[Path, str]] = []
        for alternative in alternatives:
            found = self._unfit(alternative, value, path, known)
            if not found:
                return []
            if not best or len(found[0][0]) > len(best[0][0]):
                best = found
        return best


def _read(adapter: pydantic.TypeAdapter[Any], value: Any) -> Any:
    # As JSON, which is what it was: strict models take a date from a string in JSON, and nowhere else.
    return adapter.validate_json(_json.dumps(value))


def _is_whole_number(one: Mapping[str, Any]) -> bool:
    """Whether an error is about a number that JSON Schema counts among the integers, and a strict model does not."""
    return one["type"] == "int_type" and isinstance(one["input"], float) and one["input"].is_integer()


def _with_integers(value: Any) -> Any:
    """The same JSON, in which whole numbers are written as such."""
    if isinstance(value, dict):
        return {key: _with_integers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_integers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _mismatch(error: pydantic.ValidationError, value: Any) -> Mismatch:
    found = error.errors(include_url=False, include_context=True, include_input=False)
    return _told([(_pointer(_text(one["loc"])), _said(one)) for one in found], _present(found[0]["loc"], value))


def _told(errors: Sequence[tuple[str, str]], first: Sequence[int | str]) -> Mismatch:
    """All that is wrong in one message, with the place of each, at the place of the first."""
    told = [f"{pointer or 'the value'}: {message}" for pointer, message in errors[:_MOST]]
    if len(errors) > _MOST:
        told.append(f"and {len(errors) - _MOST} more")
    mismatch = Mismatch("; ".join(told))
    for part in reversed(first):
        mismatch.within(part)
    return mismatch


def _said(one: Mapping[str, Any]) -> str:
    if one["type"] == "union_tag_invalid":  # the only text of pydantic's that quotes the input
        return f"expected {one['ctx']['discriminator']} to be one of {one['ctx']['expected_tags']}"
    return str(one["msg"])


def _text(location: Path) -> list[str]:
    return [str(part) for part in location]


def _pointer(parts: list[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _present(location: Path, value: Any) -> list[str]:
    """What of a location leads through the value: pydantic adds names of alternatives, and of what is missing."""
    parts = []
    for part in location:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and part in range(len(value))):
            value = value[part]  # type: ignore[index]  # looked at in the line above
            parts.append(str(part))
    return parts
