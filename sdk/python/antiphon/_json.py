"""JSON in the one form that travels: UTF-8, no NaN or infinity, no blanks. Payloads are small and many, so encoder and
decoder are made once.
"""

from __future__ import annotations

import base64
import dataclasses
import json
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
        return _decode(data.decode())
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


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
_decode = json.JSONDecoder(parse_constant=_refuse).decode
