"""JSON Schemas of capabilities and graphs: compiled once, checked on payloads, compared with each other.

Schemas are read as draft 2020-12 and are closed: a reference to anything outside the schema is refused, since the
library would fetch it otherwise. Patterns run on an engine of linear time. Messages never hold the value itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs

from .expression import kind_of
from .extent import NotMeasured, measure
from .values import Unusable, Values, decode_json, encode_json

_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1024 * 1024, dfa_size_limit=1024 * 1024)
_OUTSIDE = re.compile(r"Resource '(.*?)' is not present in a registry")


class SchemaInvalid(Exception):
    """The text is not a JSON Schema that can be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class SchemaViolation:
    """Where a value breaks its schema, as a JSON pointer ("" is the whole value), and how."""

    pointer: str
    message: str


def _refuse(uri: str) -> NoReturn:
    raise ValueError(uri)


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def compile_schema(text: str) -> Any:
    """The validator of a schema's text; raises SchemaInvalid."""
    try:
        schema = decode_json(text)
    except Unusable as unusable:
        raise SchemaInvalid(str(unusable)) from None
    if not isinstance(schema, dict | bool):
        raise SchemaInvalid(f"is not a JSON Schema: it is {kind_of(schema)}, not an object")
    try:
        measure(schema)
    except NotMeasured as unknown:
        raise SchemaInvalid(f"is not a JSON Schema: {unknown}") from None
    try:
        return jsonschema_rs.Draft202012Validator(
            schema, retriever=_refuse, pattern_options=_PATTERNS, validate_formats=False, mask="the value"
        )
    except (ValueError, TypeError) as error:  # ValidationError is a ValueError
        message = getattr(error, "message", None) or str(error)
        if outside := _OUTSIDE.match(message):
            message = f"{outside[1]} is outside the schema; put the definition under $defs"
        where = _pointer(getattr(error, "instance_path", []))
        raise SchemaInvalid(f"is not a JSON Schema: {where + ': ' if where else ''}{message}"[:1000]) from None


class SchemaSet:
    """Validators by their schema's text; the least recently added go when there are too many."""

    def __init__(self, values: Values, max_entries: int = 1024) -> None:
        """`values` is shared with the evaluators, so that a payload is parsed once for both."""
        self.values = values
        self._max_entries = max_entries
        self._validators: dict[str, Any] = {}

    def add(self, text: str) -> None:
        """Makes sure that the text is a usable schema; empty accepts anything. Raises SchemaInvalid."""
        if text:
            self._validator(text)

    def check(self, text: str, payload: bytes) -> SchemaViolation | None:
        """Checks a serialised Payload against a schema's text. Raises SchemaInvalid for a text that was never added.

        A value that is kept by reference is not looked into.
        """
        if not text:
            return None
        known = self.values.known(payload)
        if known.by_reference:
            return None
        try:
            validator = self._validator(text)
            # First the answer, which is quick whatever the schema; the reason takes far longer, and is asked for once.
            if validator.is_valid(known.value):
                return None
            if not measure(decode_json(text)).explains:
                return SchemaViolation("", "the value does not fit the schema, in any of its alternatives")
            validator.validate(known.value)
        except Unusable as unusable:
            return SchemaViolation("", f"the value {unusable}")
        except jsonschema_rs.ValidationError as violation:
            return SchemaViolation(_pointer(violation.instance_path), violation.message[:1000])
        except ValueError as error:
            return SchemaViolation("", str(error)[:1000])
        return None

    def _validator(self, text: str) -> Any:
        validator = self._validators.get(text)
        if validator is None:
            validator = compile_schema(text)
            if len(self._validators) >= self._max_entries:
                del self._validators[next(iter(self._validators))]
            self._validators[text] = validator
        return validator


def difference(a_text: str, b_text: str) -> str:
    """What is first different between two schemas, for people; empty when they are equal as JSON.

    Raises SchemaInvalid when one of them is not JSON.
    """
    try:
        a, b = (decode_json(text) if text else True for text in (a_text, b_text))
    except Unusable as error:
        raise SchemaInvalid(str(error)) from None
    return _difference(a, b, "")


def _difference(a: object, b: object, pointer: str) -> str:
    where = pointer or "the schema"
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            inner = pointer + _pointer([name])
            if name not in b:
                return f"{inner} is only in the first"
            if name not in a:
                return f"{inner} is only in the second"
            if found := _difference(a[name], b[name], inner):
                return found
        return ""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{where} has {len(a)} items in the first and {len(b)} in the second"
        for place, (left, right) in enumerate(zip(a, b, strict=True)):
            if found := _difference(left, right, f"{pointer}/{place}"):
                return found
        return ""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    if a == b and (numbers or type(a) is type(b)):
        return ""
    return f"{where} is {_brief(a)} in the first and {_brief(b)} in the second"


def _brief(value: object) -> str:
    if isinstance(value, dict | list):
        return kind_of(value)
    text = encode_json(value)
    return text if len(text) <= 60 else text[:59] + "…"
