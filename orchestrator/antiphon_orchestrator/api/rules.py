"""Whether a message keeps the rules of its contract, told quickly; every doubt is left to the library.

A `Shape` holds the rules of a message type as plain comparisons: bounds of lengths, numbers, counts and durations,
patterns, values of enums, choices that must be made. `keeps` answers True only for a message that surely keeps all its
rules; False means: ask protovalidate, which has the last word, and the words of a violation. Of a report this takes
less than half of the library's time, and a server that is never asked for what breaks the contract need not load it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from .times import is_duration, is_time, is_timestamp

_FAR = 1 << 64
_NANOS = 1_000_000_000

Check = Callable[[Any], bool]


class Shape:
    """The rules of one message type, as `shapes` finds them."""

    def __init__(self) -> None:
        self.lengths: list[tuple[str, int, int]] = []
        self.numbers: list[tuple[str, int, int]] = []
        self.choices: list[tuple[str, bool, dict[str, Shape], dict[str, Check]]] = []
        """Name of a oneof, whether one must be set, the shapes of those that are messages, and checks of others."""
        self.messages: list[tuple[str, Shape]] = []
        self.lists: list[tuple[str, int, Shape]] = []
        self.required: list[str] = []
        """Fields that are to be set, and can be told from those that are not."""
        self.always: list[tuple[str, Check]] = []
        """Fields whose rules a value may break that was never set."""
        self.present: dict[str, Check] = {}
        """Fields whose rules hold while they are not set."""
        self.doubtful = False
        """Only the library can tell, whatever the message holds."""

    def keeps(self, message: Any) -> bool:
        """Whether a message surely keeps every rule of its type and of the types in it."""
        if self.doubtful:
            return False
        for name, shortest, longest in self.lengths:
            if not shortest <= len(getattr(message, name)) <= longest:
                return False
        for name, least, most in self.numbers:
            if not least <= getattr(message, name) <= most:
                return False
        for name, required, shapes, checks in self.choices:
            chosen = message.WhichOneof(name)
            if chosen is None:
                if required:
                    return False
            elif (inner := shapes.get(chosen)) is not None:
                if not inner.keeps(getattr(message, chosen)):
                    return False
            elif (holds := checks.get(chosen)) is not None and not holds(getattr(message, chosen)):
                return False
        for name in self.required:
            if not message.HasField(name):
                return False
        for name, shape in self.messages:
            if message.HasField(name) and not shape.keeps(getattr(message, name)):
                return False
        for name, most, shape in self.lists:
            items = getattr(message, name)
            if items and (len(items) > most or not shape.all_keep(items)):
                return False
        for name, check in self.always:
            if not check(getattr(message, name)):
                return False
        if self.present:
            for field, value in message.ListFields():
                found = self.present.get(field.name)
                if found is not None and not found(value):
                    return False
        return True

    def all_keep(self, messages: Any) -> bool:
        """The same of each of several."""
        for message in messages:  # noqa: SIM110  # compiled, a loop costs half of a generator
            if not self.keeps(message):
                return False
        return True


@dataclass(slots=True)
class _Choice:
    """What is known of the members of a oneof, by their names."""

    shapes: dict[str, Shape]
    checks: dict[str, Check]


class _Unknown(Exception):
    """A rule that only the library can judge."""


class Shapes:
    """Shapes by type. `rules` gives the buf.validate rules of a field as a message; `required` says whether one of a
    oneof must be set, `whole` whether a type has rules over several of its fields."""

    def __init__(
        self,
        rules: Callable[[FieldDescriptor], Any],
        required: Callable[[OneofDescriptor], bool],
        whole: Callable[[Descriptor], bool],
    ) -> None:
        self._rules = rules
        self._required = required
        self._whole = whole
        self._known: dict[str, Shape] = {}

    def of(self, descriptor: Descriptor) -> Shape:
        """The shape of a type; a type may hold itself."""
        shape = self._known.get(descriptor.full_name)
        if shape is None:
            shape = self._known[descriptor.full_name] = Shape()
            shape.doubtful = self._whole(descriptor)
            choices = {oneof.name: _Choice({}, {}) for oneof in descriptor.oneofs}
            for field in descriptor.fields:
                group = field.containing_oneof
                self._add(shape, field, self._rules(field), choices[group.name] if group is not None else None)
            for oneof in descriptor.oneofs:
                choice, required = choices[oneof.name], self._required(oneof)
                if required or choice.shapes or choice.checks:
                    shape.choices.append((oneof.name, required, choice.shapes, choice.checks))
        return shape

    def _add(self, shape: Shape, field: FieldDescriptor, rules: Any, choice: _Choice | None) -> None:
        """Adds what is usual in messages of a stream as data, and the rest as checks."""
        name, (kind, told) = field.name, _told(rules)
        if rules.required and field.has_presence:
            shape.required.append(name)
        elif rules.required:
            shape.always.append((name, bool))
        if field.message_type is not None and not rules.cel and not _is_map(field) and not is_time(field):
            if field.is_repeated and told <= {"max_items"}:
                most = rules.repeated.max_items if told else _FAR
                shape.lists.append((name, most, self.of(field.message_type)))
                return
            if not field.is_repeated and not kind:
                if choice is not None:
                    choice.shapes[name] = self.of(field.message_type)
                else:
                    shape.messages.append((name, self.of(field.message_type)))
                return
        bounds: Any = getattr(rules, kind) if kind else None
        if not field.is_repeated and not field.has_presence and not rules.cel:
            if kind in ("string", "bytes") and told <= {"min_len", "max_len"}:
                most = bounds.max_len if bounds.HasField("max_len") else _FAR
                shape.lengths.append((name, bounds.min_len, most))
                return
            if kind in ("int32", "int64", "uint32", "uint64") and told <= {"gte", "lte"}:
                least = bounds.gte if bounds.HasField("gte") else -_FAR
                shape.numbers.append((name, least, bounds.lte if bounds.HasField("lte") else _FAR))
                return
        try:
            check = self._several(field, rules) if field.is_repeated else self._one(field, rules)
        except _Unknown:
            check = _never
        if check is None:
            return
        if choice is not None and field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            choice.checks[name] = check  # what is optional is a oneof of one, and may be one of many
        elif field.has_presence or (field.is_repeated and not told & {"min_items", "min_pairs"}):
            shape.present[name] = check
        else:
            shape.always.append((name, check))

    def _several(self, field: FieldDescriptor, rules: Any) -> Check | None:
        """The check of a list or a map."""
        kind, told = _told(rules)
        if rules.cel or not told <= {
            "min_items",
            "max_items",
            "unique",
            "items",
            "min_pairs",
            "max_pairs",
            "keys",
            "values",
        }:
            raise _Unknown
        bounds: Any = getattr(rules, kind) if kind else None
        if _is_map(field):
            assert field.message_type is not None
            parts = field.message_type.fields_by_name
            key = self._one(parts["key"], bounds.keys if "keys" in told else None)
            value = self._one(parts["value"], bounds.values if "values" in told else None)
            least = bounds.min_pairs if bounds is not None else 0
            most = bounds.max_pairs if bounds is not None and bounds.HasField("max_pairs") else _FAR

            def pairs(found: Any) -> bool:
                if not least <= len(found) <= most:
                    return False
                # A look at a map's values by key makes those that are messages; items() does not.
                return all((key is None or key(k)) and (value is None or value(v)) for k, v in found.items())

            return pairs
        item = self._one(field, bounds.items if "items" in told else None)
        least = bounds.min_items if bounds is not None else 0
        most = bounds.max_items if bounds is not None and bounds.HasField("max_items") else _FAR
        unique = bounds is not None and bounds.unique
        if unique and field.message_type is not None:
            raise _Unknown
        if not told and item is None:
            return None

        def items(found: Any) -> bool:
            if not least <= len(found) <= most or (unique and len(set(found)) != len(found)):
                return False
            return item is None or all(item(one) for one in found)

        return items

    def _one(self, field: FieldDescriptor, rules: Any) -> Check | None:
        """The check of one value: of a field, or of those in a list or a map, whose rules are given."""
        kind, told = _told(rules)
        if rules is not None and rules.cel:
            raise _Unknown
        bounds: Any = getattr(rules, kind) if kind else None
        if field.message_type is not None:
            return self._message(field, bounds, told)
        if not told:
            return None
        if kind in ("string", "bytes") and told <= {"min_len", "max_len", "pattern"}:
            pattern = _pattern(bounds.pattern) if "pattern" in told else None
            shortest = bounds.min_len
            longest = bounds.max_len if bounds.HasField("max_len") else _FAR
            if pattern is None:
                return lambda value: shortest <= len(value) <= longest
            return lambda value: shortest <= len(value) <= longest and pattern.search(value) is not None
        if kind == "enum" and told <= {"defined_only", "not_in"} and field.enum_type is not None:
            known = frozenset(field.enum_type.values_by_number)
            refused = frozenset(bounds.not_in)
            if not bounds.defined_only:
                return lambda value: value not in refused
            return lambda value: value in known and value not in refused
        if kind in ("int32", "int64", "uint32", "uint64", "double") and told <= {"gte", "lte"}:
            least = bounds.gte if "gte" in told else -_FAR
            most = bounds.lte if "lte" in told else _FAR
            return lambda value: least <= value <= most  # no number is neither
        raise _Unknown

    def _message(self, field: FieldDescriptor, bounds: Any, told: set[str]) -> Check:
        assert field.message_type is not None
        if field.message_type.full_name == "google.protobuf.Timestamp" and not told:
            return lambda value: is_timestamp(value.seconds, value.nanos)
        if field.message_type.full_name == "google.protobuf.Duration" and told <= {"gte", "lte"}:
            shortest = _span(bounds.gte) if "gte" in told else -_FAR * _NANOS
            longest = _span(bounds.lte) if "lte" in told else _FAR * _NANOS
            return lambda value: is_duration(value.seconds, value.nanos) and shortest <= _span(value) <= longest
        if told:
            raise _Unknown
        return self.of(field.message_type).keeps


def _told(rules: Any) -> tuple[str, set[str]]:
    """The kind of a field's rules, and which of that kind are given."""
    kind = "" if rules is None else rules.WhichOneof("type") or ""
    return kind, {option.name for option, _ in getattr(rules, kind).ListFields()} if kind else set()


def _never(value: Any) -> bool:
    return False


def _span(duration: Any) -> int:
    """Nanoseconds."""
    seconds: int = duration.seconds
    nanos: int = duration.nanos
    return seconds * _NANOS + nanos


def _pattern(text: str) -> re.Pattern[str]:
    """The pattern as Python has it, which is the same for what needs no classes beyond brackets; but for the end, which
    in Python may have a line's end behind it."""
    if not text.endswith("$") or re.search(r"\\[^.]|\(\?|\[\[", text):
        raise _Unknown
    return re.compile(text[:-1] + r"\Z")


def _is_map(field: FieldDescriptor) -> bool:
    entry = field.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)
