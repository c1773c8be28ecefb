"""pydantic models as annotations: their schema, their validation, their errors.

Imported only when an annotation is one of pydantic's own classes, so whoever has one has imported pydantic already. A
message names the place and what pydantic has to say of it, never the value, which may be confidential.

Reading is strict, as the schema is, which allows no `true` and no "1" for an integer; but 1.0 is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import pydantic
from pydantic_core import PydanticSerializationError

from . import _json
from ._convert import Convert, Mismatch

_MOST = 16
"""Errors of one value that are told; a list of thousands fails thousands of times."""
Mode = Literal["validation", "serialization"]


class Model:
    """One model, or dataclass of pydantic's, and how it travels. Raises `TypeError` for one that cannot as JSON."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        with self._told():
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(cls)

    def schema(self, mode: Mode) -> dict[str, Any]:
        """What is accepted, or what is answered; its `$defs` are named as pydantic names them. Raises `TypeError`."""
        with self._told():
            return self._adapter.json_schema(mode=mode)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
            raise TypeError(f"the model {self._cls.__qualname__} cannot travel as JSON: {error.message}") from error

    @property
    def decode(self) -> Convert:
        adapter = self._adapter

        def convert(value: Any) -> Any:
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


def _read(adapter: pydantic.TypeAdapter[Any], value: Any) -> Any:
    # As JSON, which is what it was: strictly, a date is taken from a string in JSON, and nowhere else.
    return adapter.validate_json(_json.dumps(value), strict=True)


def _is_whole_number(one: Mapping[str, Any]) -> bool:
    """Whether an error is about a number that JSON Schema counts among the integers, and pydantic does not."""
    return one["type"] == "int_type" and isinstance(one["input"], float) and one["input"].is_integer()


def _with_integers(value: Any) -> Any:
    """The same JSON, in which whole numbers are written as such."""
    if isinstance(value, dict):
        return {key: _with_integers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_integers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _mismatch(error: pydantic.ValidationError, value: Any) -> Mismatch:
    """All that is wrong in one message, at the place of the first."""
    found = error.errors(include_url=False, include_context=True, include_input=False)
    told = [f"{_pointer(_text(one['loc'])) or 'the value'}: {_said(one)}" for one in found[:_MOST]]
    if len(found) > _MOST:
        told.append(f"and {len(found) - _MOST} more")
    mismatch = Mismatch("; ".join(told))
    for part in reversed(_present(found[0]["loc"], value)):
        mismatch.within(part)
    return mismatch


def _said(one: Mapping[str, Any]) -> str:
    if one["type"] == "union_tag_invalid":  # the only text of pydantic's that quotes the input
        return f"expected {one['ctx']['discriminator']} to be one of {one['ctx']['expected_tags']}"
    return str(one["msg"])


def _text(location: tuple[int | str, ...]) -> list[str]:
    return [str(part) for part in location]


def _pointer(parts: list[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _present(location: tuple[int | str, ...], value: Any) -> list[str]:
    """What of a location leads through the value: pydantic adds names of alternatives, and of what is missing."""
    parts = []
    for part in location:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and part in range(len(value))):
            value = value[part]  # type: ignore[index]  # looked at in the line above
            parts.append(str(part))
    return parts
