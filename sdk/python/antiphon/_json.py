"""JSON in the one form that travels: UTF-8, no NaN or infinity, no blanks. Payloads are small and many, so encoder and
decoder are made once, also those parts of them that the library makes, or looks for blanks with, for each value.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import json.encoder
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from typing import Any, NoReturn


def dumps(value: Any) -> bytes:
    """`value`, with dataclasses, models, enums, dates and bytes in it, as JSON. Raises `ValueError` or `TypeError`."""
    try:
        return _encode(value).encode()
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None


def loads(data: bytes) -> Any:
    """The value that JSON spells. Raises `ValueError`."""
    try:
        text = data.decode()
        if text[:1] not in _BLANK:
            try:
                value, end = _scan(text, 0)
            except StopIteration:
                end = -1
            if end == len(text):
                return value
        return _decoder.decode(text)  # what is around the value, or wrong with it
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None


def _plain(value: Any) -> Any:
    if (model := getattr(type(value), "__pydantic_serializer__", None)) is not None:
        return model.to_python(value, mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _encoder() -> Callable[[Any], str]:
    whole = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    if (make := json.encoder.c_make_encoder) is None:  # type: ignore[attr-defined]  # not in CPython
        return whole.encode
    # Without a record of what a value is within: one that is within itself is nested too deeply.
    parts = make(None, _plain, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(parts(value, 0))


_encode = _encoder()
_decoder = json.JSONDecoder(parse_constant=_refuse)
_scan: Any = _decoder.scan_once  # type: ignore[attr-defined]
_BLANK = ("", " ", "\t", "\n", "\r")
