"""Payloads as values: what an expression or a schema needs to look inside one.

Serialised payloads are parsed here and nowhere else in admission, at most once while they are remembered: the output
that is parsed for one successor is there for the next, and for the schema check before it. Remembered values are
shared and must never be changed.
"""

from __future__ import annotations

import json
from math import isinf
from typing import Any, NoReturn

from antiphon.v1.payload_pb2 import Payload

MAX_INLINE_BYTES = 65_536
MOST_PARTS = 16
"""Fields whose labels are told apart in what a task asks of an agent."""

_JSON = "application/json"
_SPACE = ("", " ", "\t", "\n", "\r")


class Unusable(Exception):
    """A value cannot be used in the place that asks for it; the message says why, without the value itself."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError("a number is too large")
    return number


_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
_scan: Any = _decoder.scan_once  # type: ignore[attr-defined]  # raw_decode without its frame
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_text = json.encoder.encode_basestring  # what the encoder does with a text, without its frame


def decode_json(text: str) -> object:
    """The value of a JSON text; numbers without a fraction stay ints. Raises Unusable."""
    try:
        if text[:1] not in _SPACE:
            # The usual text has nothing around it; looking for that costs more than a small value.
            try:
                value, end = _scan(text, 0)
            except StopIteration:
                end = -1
            if end == len(text):
                return value
        return _decoder.decode(text)
    except RecursionError:
        raise Unusable("is nested too deeply") from None
    except json.JSONDecodeError as wrong:
        where = f"line {wrong.lineno}, column {wrong.colno}"
        raise Unusable(f"is not JSON: {wrong.msg.lower()} at {where}") from None
    except ValueError as error:
        raise Unusable(f"is not JSON: {error}") from None


def encode_json(value: object) -> str:
    """The value as compact JSON text. Raises Unusable for what JSON cannot hold."""
    if isinstance(value, str):
        return _encode_text(value)
    try:
        return _encode(value)
    except RecursionError:
        raise Unusable("is nested too deeply") from None
    except ValueError:
        raise Unusable("holds a number that JSON has no form for") from None


HALF_PAIR = "holds half of a surrogate pair, which UTF-8 has no form for"


def in_utf8(text: str) -> str:
    """A text as messages and records can hold it: half of a surrogate pair, which JSON can spell, as its escape."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def inline_bytes(text: str) -> bytes:
    """JSON text as the inline content of a payload. Raises Unusable when it is too large or no Unicode."""
    try:
        data = text.encode() if len(text) <= MAX_INLINE_BYTES else b""
    except UnicodeEncodeError:
        raise Unusable(HALF_PAIR) from None
    if not data or len(data) > MAX_INLINE_BYTES:
        raise Unusable(f"is larger than {MAX_INLINE_BYTES} bytes")
    return data


def same_value(one: object, other: object) -> bool:
    """Whether two JSON values are the same; 1 and 1.0 are, 1 and true are not. The order of fields means nothing."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return one == other


class Known:
    """One payload: its size in bytes, whether it is kept by reference, its labels, and its value once somebody has
    asked for it."""

    __slots__ = ("_content", "_media_type", "_parsed", "_value", "by_reference", "label_keys", "payload", "size")

    def __init__(self, content: bytes | None, media_type: str, by_reference: bool, labelled: Payload | None) -> None:
        """`content` is inline, None when there is none here; `labelled` the whole message, None of one without
        labels."""
        self._content = content
        self._media_type = media_type
        self.by_reference = by_reference
        self.payload = labelled
        self.size = len(content) if content is not None else 0
        self.label_keys = label_keys(labelled) if labelled is not None else _NO_LABELS
        self._parsed = False
        self._value: object = None

    def label_parts(self) -> tuple[tuple[str, frozenset[str]], ...]:
        """Label keys that are those of some fields only, by the fields' JSON pointers with * for numbers; sorted.

        Empty when they cannot be told apart: nothing can be left out of a value that is kept by reference, and of a
        value with many labelled fields the labels count as those of the whole.
        """
        if self.payload is None or self.by_reference:
            return ()
        whole = {label.key for label in self.payload.labels}
        parts: dict[str, set[str]] = {}
        for part in self.payload.field_labels:
            keys = {label.key for label in part.labels} - whole
            if keys:
                steps = ["*" if step.isdecimal() else step for step in part.pointer.split("/")]
                parts.setdefault("/".join(steps), set()).update(keys)
        if len(parts) > MOST_PARTS:
            return ()
        return tuple(sorted((pointer, frozenset(keys)) for pointer, keys in parts.items()))

    @property
    def value(self) -> object:
        """The JSON value; null when the payload has no content. Raises Unusable."""
        if not self._parsed:
            self._value = self._parse()
            self._parsed = True
        return self._value

    def _parse(self) -> object:
        if self.by_reference:
            raise Unusable("is kept by reference; pass it whole")
        if self._media_type and not is_json(self._media_type):
            raise Unusable(f"is {self._media_type}, not JSON; pass it whole")
        if self._content is None:
            return None
        try:
            return decode_json(self._content.decode())
        except UnicodeDecodeError:
            raise Unusable("is not UTF-8") from None


_NO_LABELS: frozenset[str] = frozenset()


def label_keys(payload: Payload) -> frozenset[str]:
    """Keys of all labels, those of parts included."""
    return frozenset(
        [label.key for label in payload.labels] + [label.key for part in payload.field_labels for label in part.labels]
    )


def is_json(media_type: str) -> bool:
    """Whether a payload of that media type holds JSON; empty means that it does."""
    essence = media_type.partition(";")[0].strip().lower()
    return essence in ("", _JSON) or essence.endswith("+json")


class Values:
    """Remembers payloads by their bytes; forgets all of them when there are too many or they are too large together.

    Forgetting everything keeps the hot path to one look-up: a chain parses each payload within a few turns or never.
    """

    def __init__(self, max_entries: int = 4096, max_bytes: int = 2 * 1024 * 1024) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._known: dict[bytes, Known] = {}
        self._bytes = 0

    def known(self, data: bytes) -> Known:
        """The payload with these serialised bytes; b"" is null."""
        known = self._known.get(data)
        return self.remember(data, _look_into(Payload.FromString(data))) if known is None else known

    def see(self, data: bytes, payload: Payload) -> None:
        """Makes a payload known that somebody has parsed and will pass on as `data`."""
        if data not in self._known:
            self.remember(data, _look_into(payload))

    def remember(self, data: bytes, known: Known) -> Known:
        """Makes a payload known that somebody has made."""
        self._bytes += len(data)
        if len(self._known) >= self._max_entries or self._bytes > self._max_bytes:
            self._known.clear()
            self._bytes = len(data)
        self._known[data] = known
        return known


def _look_into(payload: Payload) -> Known:
    content = payload.WhichOneof("content")
    labelled: Payload | None = None
    if payload.labels or payload.field_labels:
        labelled = Payload()  # a copy: a message of a stream would keep its whole batch alive
        labelled.CopyFrom(payload)
    return Known(payload.inline if content == "inline" else None, payload.media_type, content == "blob", labelled)
