"""Converters between parsed JSON and plain Python values, and the one exception they raise.

A message never holds a value: values may be confidential. It names what was expected and what kind of JSON came.
"""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

Convert = Callable[[Any], Any]
_ATOMS = (str, int, float, bool, type(None))
_UNFIT = object()
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}


class Mismatch(ValueError):
    """A value does not fit; `pointer` is the JSON pointer (RFC 6901) of the part at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._path: list[str] = []

    def within(self, part: str | int) -> Mismatch:
        """The same, seen from one level further out."""
        self._path.append(str(part).replace("~", "~0").replace("/", "~1"))
        return self

    @property
    def pointer(self) -> str:
        return "".join(f"/{part}" for part in reversed(self._path))


def inside(convert: Convert, value: Any, part: str | int) -> Any:
    try:
        return convert(value)
    except Mismatch as error:
        raise error.within(part) from None


class _Made(threading.local):
    """What alternatives have made of each value, while the outermost of them is tried in this thread."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[Any, Any]] | None = None


_made = _Made()


def first(alternatives: list[Convert]) -> Convert:
    """The first alternative that fits.

    What is made of a value is kept: classes that contain each other are tried for the same value again and again, and
    each time for all that it holds, which is twice as much work with each level of it.
    """

    def convert(value: Any) -> Any:
        known, key = None, (id(alternatives), id(value))
        if type(value) not in _ATOMS:
            known = _made.known
            if known is None:
                _made.known = {}
                try:
                    return convert(value)
                finally:
                    _made.known = None
        if known is not None and key in known:
            _, made = known[key]
        else:
            made = _UNFIT
            for alternative in alternatives:
                try:
                    made = alternative(value)
                    break
                except Mismatch:
                    continue
            if known is not None:
                known[key] = (value, made)  # with the value, whose id is nobody else's for as long
        if made is _UNFIT:
            raise Mismatch(f"{kind_of(value)} fits none of the alternatives")
        return made

    return convert


def same(value: Any) -> Any:
    return value


def kind_of(value: Any) -> str:
    """What JSON calls the kind of a value; never the value."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), type(value).__name__)


def exactly(kind: type, what: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not kind and (kind is bool or isinstance(value, bool) or not isinstance(value, kind)):
            raise Mismatch(f"expected {what}, got {kind_of(value)}")
        return value

    return convert


def null(value: Any) -> None:
    if value is not None:
        raise Mismatch(f"expected null, got {kind_of(value)}")


def integer(value: Any) -> int:
    if type(value) is float and value.is_integer():
        return int(value)  # JSON Schema counts 1.0 among the integers
    if type(value) is not int:
        raise Mismatch(f"expected an integer, got {kind_of(value)}")
    return value


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Mismatch(f"expected a number, got {kind_of(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise Mismatch("expected a finite number")
    return result


def bytes_from(value: Any) -> bytes:
    try:
        return base64.b64decode(value if type(value) is str else b"?", validate=True)
    except ValueError:
        raise Mismatch(f"expected base64 text, got {kind_of(value)}") from None


def bytes_to(value: Any) -> str:
    if not isinstance(value, bytes):
        raise Mismatch(f"expected bytes, got {kind_of(value)}")
    return base64.b64encode(value).decode()


def moment_from(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if type(value) is str else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Mismatch("expected a date-time with offset, such as 2026-03-01T12:00:00Z")
    return moment


def moment_to(value: Any) -> str:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Mismatch(f"expected an aware datetime, got {kind_of(value)}")
    return value.isoformat()


def day_from(value: Any) -> date:
    try:
        return date.fromisoformat(value if type(value) is str else "")
    except ValueError:
        raise Mismatch("expected a date, such as 2026-03-01") from None


def day_to(value: Any) -> str:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise Mismatch(f"expected a date, got {kind_of(value)}")
    return value.isoformat()
