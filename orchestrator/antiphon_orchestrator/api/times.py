"""Durations and timestamps that are none. On the wire both are two integers, and no rule says that they must be a time;
every conversion raises for what is not, so a request that holds one is refused before anybody converts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_LONGEST = 315_576_000_000
_NANOS = 1_000_000_000
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_TIMES = ("google.protobuf.Duration", "google.protobuf.Timestamp")


class Times:
    """Finds durations and timestamps that are none."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[int]] = {}

    def wrong(self, message: Any) -> Iterator[tuple[str, str]]:
        """The path of each, and what is wrong with it."""
        leading = self._leading(message.DESCRIPTOR)
        if not leading:
            return
        for field, value in message.ListFields():
            if field.number not in leading:
                continue
            for index, inner in enumerate(value if field.is_repeated else (value,)):
                path = f"{field.name}[{index}]" if field.is_repeated else field.name
                if not is_time(field):
                    yield from ((f"{path}.{rest}", wrong) for rest, wrong in self.wrong(inner))
                elif inner.DESCRIPTOR.name == "Duration" and not is_duration(inner.seconds, inner.nanos):
                    yield path, "must be a duration of at most 10,000 years; nanoseconds have the sign of the seconds"
                elif inner.DESCRIPTOR.name == "Timestamp" and not is_timestamp(inner.seconds, inner.nanos):
                    yield path, "must be a time in the years 1 to 9999"

    def _leading(self, descriptor: Descriptor) -> frozenset[int]:
        """The numbers of the fields that are times, or in which there may be some."""
        name = descriptor.full_name
        if name not in self._known:
            self._known[name] = frozenset(
                field.number for field in descriptor.fields if is_time(field) or _leads(field, set())
            )
        return self._known[name]


def _leads(field: FieldDescriptor, seen: set[str]) -> bool:
    """Whether there may be times in the messages of a field; `seen` are types that were looked at."""
    inner = field.message_type
    if inner is None or inner.GetOptions().map_entry or inner.full_name in seen:
        return False
    seen.add(inner.full_name)
    return any(is_time(each) or _leads(each, seen) for each in inner.fields)


def is_time(field: FieldDescriptor) -> bool:
    """Whether a field holds durations or timestamps."""
    return field.message_type is not None and field.message_type.full_name in _TIMES


def is_duration(seconds: int, nanos: int) -> bool:
    """Whether a duration is at most 10,000 years long, and all of it has one sign."""
    return -_LONGEST <= seconds <= _LONGEST and -_NANOS < nanos < _NANOS and (seconds * nanos >= 0)


def is_timestamp(seconds: int, nanos: int) -> bool:
    """Whether a time is in the years 1 to 9999."""
    return _FIRST <= seconds <= _LAST and 0 <= nanos < _NANOS
