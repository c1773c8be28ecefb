"""JSON Schemas of capabilities and graphs: compiled once, checked on payloads, compared with each other.

Schemas are read as draft 2020-12 and are closed: a reference to anything outside the schema is refused, since the
library would fetch it otherwise. Patterns run on an engine of linear time. Messages never hold the value itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs
from antiphon.v1.payload_pb2 import FieldLabels, Label, Payload

from .extent import NotMeasured, measure
from .fields import Fields, LabelsInvalid, Pointer, pointer_of, steps_of, strike_out
from .paths import kind_of
from .values import Known, Unusable, Values, decode_json, encode_json, in_utf8, inline_bytes

_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1024 * 1024, dfa_size_limit=1024 * 1024)
_OUTSIDE = re.compile(r"Resource '(.*?)' is not present in a registry")


class SchemaInvalid(Exception):
    """The text is not a JSON Schema that can be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class SchemaViolation:
    """Where a value breaks its schema, as a JSON pointer ("" is the whole value), and how."""

    pointer: str
    message: str


@dataclass(frozen=True, slots=True)
class Reduced:
    """A payload without some of its parts. `withheld`: JSON pointer and reason of each part, of the first
    WITHHELD_NAMED; `count` of them in all."""

    payload: bytes
    withheld: tuple[tuple[str, str], ...]
    count: int


WITHHELD_NAMED = 64
MOST_FIELD_LABELS = 256
"""Labelled parts of a payload, as its contract has it; beyond them a label is one of the whole."""

BY_SCHEMA = "schema"
"""Reason of what a schema does not declare, and who asserts the labels that it declares."""


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
        Fields(schema)
    except (NotMeasured, LabelsInvalid) as unknown:
        raise SchemaInvalid(in_utf8(f"is not a JSON Schema: {unknown}")) from None
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
        self._fields: dict[str, Fields] = {}

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

    def fields(self, text: str) -> Fields:
        """The fields of a schema that was added; of the empty text those of one that accepts anything."""
        found = self._fields.get(text)
        if found is None:
            if len(self._fields) >= self._max_entries:
                del self._fields[next(iter(self._fields))]
            found = self._fields[text] = Fields(decode_json(text) if text else True)
        return found

    def label(self, text: str, payload: bytes) -> bytes:
        """A payload with the labels that its schema declares of its fields.

        What cannot be looked into could have any of the fields, and is labelled whole."""
        fields = self.fields(text)
        if not payload or not fields.all_labels:
            return payload
        known = self.values.known(payload)
        try:
            labelled = list(fields.labels(known.value))
        except Unusable:
            labelled = [((), fields.all_labels)]
        if not labelled:
            return payload
        message = Payload.FromString(payload)
        present = {(part.pointer, label.key) for part in message.field_labels for label in part.labels}
        for steps, keys in labelled:
            pointer = pointer_of(steps)
            fresh = [Label(key=key, asserted_by=BY_SCHEMA) for key in keys if (pointer, key) not in present]
            if not fresh:
                continue
            told = len(pointer) <= 512 and in_utf8(pointer) == pointer
            if pointer and told and len(message.field_labels) < MOST_FIELD_LABELS:
                message.field_labels.append(FieldLabels(pointer=pointer, labels=fresh))
            else:  # the whole is as sensitive as its parts
                whole = {label.key for label in message.labels}
                message.labels.extend(label for label in fresh if label.key not in whole)
        return message.SerializeToString()

    def reduce(self, text: str, payload: bytes, redactions: Sequence[str], reason: str) -> Reduced | None:
        """What the schema declares of a payload, without the redactions (JSON pointers, and label:KEY); None when that
        is all of it. `reason`: of the redactions, in the record. Raises Unusable when it cannot be looked into.
        """
        fields = self.fields(text)
        known = self.values.known(payload)
        if not redactions and (known.by_reference or fields.covers(known.value)):
            return None  # what is kept by reference is not looked into for the check of its schema either
        value, left_out = fields.declared(known.value)
        return self._without(fields, payload, known, value, left_out, redactions, reason)

    def strike(self, text: str, payload: bytes, redactions: Sequence[str], reason: str) -> Reduced | None:
        """A payload without the redactions alone; the schema only says which fields carry labels. As `reduce`."""
        known = self.values.known(payload)
        return self._without(self.fields(text), payload, known, known.value, [], redactions, reason)

    def _without(
        self,
        fields: Fields,
        payload: bytes,
        known: Known,
        value: object,
        left_out: list[Pointer],
        redactions: Sequence[str],
        reason: str,
    ) -> Reduced | None:
        pointers = [steps_of(one) for one in redactions if one.startswith("/")]
        keys = {one.removeprefix("label:") for one in redactions if not one.startswith("/")}
        if keys:
            pointers += self._labelled(known.payload, fields, known.value, keys)
        value, struck = strike_out(value, pointers)
        if not left_out and not struck:
            return None
        withheld = [(one, BY_SCHEMA) for one in left_out] + [(one, reason) for one in struck]
        message = Payload()
        if payload:
            message.ParseFromString(payload)
        message.inline = inline_bytes(encode_json(value))
        gone = {*left_out, *struck}
        kept = [part for part in message.field_labels if not _inside(steps_of(part.pointer), gone)]
        del message.field_labels[:]
        message.field_labels.extend(kept)
        if () in gone:
            del message.labels[:]  # of null there is nothing to keep from anybody
        named = tuple((in_utf8(pointer_of(one)), why) for one, why in withheld[:WITHHELD_NAMED])
        return Reduced(message.SerializeToString(), named, len(withheld))

    def _labelled(self, message: Payload | None, fields: Fields, value: object, keys: set[str]) -> list[Pointer]:
        """The parts that carry one of the labels, by the payload or by the schema."""
        found = [steps for steps, labels in fields.labels(value) if not keys.isdisjoint(labels)]
        if message is not None:
            if any(label.key in keys for label in message.labels):
                found.append(())
            found += [
                steps_of(part.pointer)
                for part in message.field_labels
                if any(label.key in keys for label in part.labels)
            ]
        return found

    def _validator(self, text: str) -> Any:
        validator = self._validators.get(text)
        if validator is None:
            validator = compile_schema(text)
            if len(self._validators) >= self._max_entries:
                del self._validators[next(iter(self._validators))]
            self._validators[text] = validator
        return validator


def _inside(steps: Pointer, gone: set[Pointer]) -> bool:
    return any(steps[:length] in gone for length in range(len(steps) + 1))


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
