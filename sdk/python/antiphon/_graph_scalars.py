"""What single words in a graph file mean: the core types of YAML 1.2, durations, and text that is whole."""

from __future__ import annotations

import math
import re

from google.protobuf.duration_pb2 import Duration

_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_BASED = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,400}|[0-9]{1,400}(?:\.[0-9]{0,400})?)(?:[eE][-+]?[0-9]{1,4})?")
_CONSTANTS = {"": None, "~": None} | {
    spelled: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelled in (word, word.capitalize(), word.upper())
}

_UNITS = {"d": 86_400_000_000_000, "h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000}
_PART = r"([0-9]{1,9})(?:\.([0-9]{1,9}))?(ms|d|h|m|s)"
_DURATION = re.compile(rf"(?:{_PART})+")
_LONGEST = 365 * _UNITS["d"]


def plain_value(text: str) -> str | int | float | bool | None:
    """The value of a word without quotes. Numbers that no JSON number can be stay text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def duration(text: str) -> Duration | None:
    """A duration such as 250ms, 30s, 1.5h or 1h30m, at most 365 days; None for anything else."""
    if not _DURATION.fullmatch(text):
        return None
    total = 0
    for whole, fraction, unit in re.findall(_PART, text):
        total += int(whole) * _UNITS[unit] + int((fraction or "0").ljust(9, "0")) * _UNITS[unit] // 10**9
    if total > _LONGEST:
        return None
    return Duration(seconds=total // 10**9, nanos=total % 10**9)


def whole_text(text: str) -> str | None:
    """The text with surrogate pairs, as JSON escapes them, made one character; None when a half is left."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None
