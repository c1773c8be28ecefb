"""Messages of any type of ours as a strategy of hypothesis: whatever somebody may say who speaks the language.

Read from the descriptors and the rules in the image, so a new field is met without a line. What is made keeps the rules
of single fields, or nothing would get past the first check of a call; rules over several fields it may break. Numbers
go to the edges of their rules and of their types, and values of enums go beyond those that are defined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.contract.contract import Contract, is_map

M = TypeVar("M", bound=Message)
Given = Mapping[str, st.SearchStrategy[Any]]
Known = Mapping[str, Sequence[str | bytes | int]]


@dataclasses.dataclass(frozen=True)
class _About:
    """`made`: strategies by what they are for. To make one costs more than to draw from it."""

    given: Given
    known: Known
    without: Collection[str]
    made: dict[tuple[str, int], st.SearchStrategy[Any]] = dataclasses.field(default_factory=dict)


_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_DEEPEST = 6
"""Levels of messages in messages; below them only what must be there."""
_FIELDS, _ITEMS, _LENGTH = 4, 3, 24
"""Most fields that are set without need, items of a list, and characters but for the longest there may be."""
_LONGEST = 300
_UNKNOWN = (99, (1 << 31) - 1, -1)
"""Values of enums that nobody has defined."""


def messages(
    kind: type[M], given: Given | None = None, known: Known | None = None, without: Collection[str] = ()
) -> st.SearchStrategy[M]:
    """Messages of a generated class.

    By `Message.field`, or by `field` wherever it is, a field gets what is `given` and nothing else, and what is `known`
    to exist beside what is made up. What it goes `without`, as `Message.field`, is never set.
    """
    return _messages(kind.DESCRIPTOR, _About(given or {}, known or {}, without), 0).map(lambda made: _as(kind, made))


def serialised(
    descriptor: Descriptor, given: Given | None = None, known: Known | None = None
) -> st.SearchStrategy[bytes]:
    """The same of a type by its descriptor, serialised."""
    return _messages(descriptor, _About(given or {}, known or {}, ()), 0).map(
        lambda made: bytes(made.SerializeToString())
    )


def _as(kind: type[M], made: Message) -> M:
    """The message as the generated class has it: one of the image's pool is of another."""
    return kind.FromString(made.SerializeToString())


@cache
def _contract() -> Contract:
    return Contract()


@cache
def _rules(field: FieldDescriptor) -> Any:
    return _contract().rules(field)


@cache
def _pairs(field: FieldDescriptor) -> st.SearchStrategy[dict[Any, Any]]:
    """What a map may hold."""
    rules = _rules(field)
    bound = getattr(rules, rules.WhichOneof("type") or "", None)
    keys, values = (field.message_type.fields_by_name[part] for part in ("key", "value"))
    return st.dictionaries(
        _scalars(keys, bound.keys if bound else None),
        _scalars(values, bound.values if bound else None),
        min_size=bound.min_pairs if bound else 0,
        max_size=_ITEMS,
    )


@cache
def _required(oneof: OneofDescriptor) -> bool:
    return _contract().required(oneof)


def _messages(descriptor: Descriptor, about: _About, depth: int) -> st.SearchStrategy[Any]:
    if (made := about.made.get((descriptor.full_name, depth))) is not None:
        return made
    known = _contract().pool.FindMessageTypeByName(descriptor.full_name)

    @st.composite
    def one(draw: st.DrawFn) -> Any:
        message = _contract().message(known)
        chosen = _chosen(draw, known, about, depth)
        for field in known.fields:
            if field in chosen:
                _set(draw, message, field, about, depth)
        return message

    about.made[descriptor.full_name, depth] = one()
    return about.made[descriptor.full_name, depth]


def _chosen(draw: st.DrawFn, descriptor: Descriptor, about: _About, depth: int) -> list[FieldDescriptor]:
    """Fields to set: those that must be, and some others; of a oneof one at most."""
    needed = [field for field in descriptor.fields if field.containing_oneof is None and _needed(field)]
    groups = {}
    for oneof in descriptor.oneofs:
        if _required(oneof) or (depth < _DEEPEST and draw(st.booleans())):
            groups[oneof.name] = draw(st.sampled_from(list(oneof.fields)))
    chosen = [*needed, *groups.values()]
    rest = [
        field
        for field in descriptor.fields
        if field.containing_oneof is None
        and field not in needed
        and f"{descriptor.name}.{field.name}" not in about.without
    ]
    if rest and depth < _DEEPEST:
        chosen += draw(st.lists(st.sampled_from(rest), unique_by=lambda field: field.name, max_size=_FIELDS))
    return chosen


@cache
def _needed(field: FieldDescriptor) -> bool:
    """Whether a message without the field breaks one of its rules."""
    rules = _rules(field)
    if rules.required:
        return True
    kind = rules.WhichOneof("type")
    if kind is None or (field.has_presence and not field.is_repeated):
        return False
    bound = getattr(rules, kind)
    if kind == "repeated":
        return bool(bound.min_items)
    if kind == "map":
        return bool(bound.min_pairs)
    if kind in ("string", "bytes"):
        return bool(bound.min_len) or bool(getattr(bound, "pattern", ""))
    if kind == "enum":
        return 0 in bound.not_in
    return kind not in ("duration", "timestamp") and bound.HasField("gte") and bound.gte > 0


def _set(draw: st.DrawFn, message: Any, field: FieldDescriptor, about: _About, depth: int) -> None:
    name, rules = field.name, _rules(field)
    bound = getattr(rules, rules.WhichOneof("type") or "", None)
    if is_map(field):
        getattr(message, name).update(draw(about.given.get(f"{message.DESCRIPTOR.name}.{name}", _pairs(field))))
    elif field.is_repeated:
        least = bound.min_items if bound else 0
        items = _items(message, field, bound.items if bound else None, about, depth)
        unique = repr if bound is not None and bound.unique else None
        getattr(message, name).extend(
            draw(st.lists(items, min_size=least, max_size=max(least, _ITEMS), unique_by=unique))
        )
    elif field.message_type is not None:
        getattr(message, name).CopyFrom(draw(_items(message, field, rules, about, depth)))
        getattr(message, name).SetInParent()
    else:
        setattr(message, name, draw(_items(message, field, rules, about, depth)))


def _items(message: Any, field: FieldDescriptor, rules: Any, about: _About, depth: int) -> st.SearchStrategy[Any]:
    key = (field.full_name, depth)
    if key not in about.made:
        about.made[key] = _made(message, field, rules, about, depth)
    return about.made[key]


def _made(message: Any, field: FieldDescriptor, rules: Any, about: _About, depth: int) -> st.SearchStrategy[Any]:
    full = f"{message.DESCRIPTOR.name}.{field.name}"
    chosen = about.given.get(full, about.given.get(field.name))
    if chosen is not None:
        if field.message_type is None:
            return chosen
        own = _contract().message(field.message_type).__class__
        return chosen.map(lambda value: own.FromString(value.SerializeToString()))
    if field.message_type is None:
        values = [value for value in about.known.get(full, about.known.get(field.name, ())) if _fits(field, value)]
        return st.one_of(*[st.sampled_from(values)] * 3, _scalars(field, rules)) if values else _scalars(field, rules)
    if field.message_type.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
        return _times(field.message_type, rules)
    return _messages(field.message_type, about, depth + 1)


def _fits(field: FieldDescriptor, value: str | bytes | int) -> bool:
    kinds = {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BYTES: bytes}
    return type(value) is kinds.get(field.type, int)


def _times(descriptor: Descriptor, rules: Any) -> st.SearchStrategy[Any]:
    """Durations within their rules, and whatever a duration or timestamp without any may hold."""
    kind = rules.WhichOneof("type") if rules is not None else None
    bound = getattr(rules, kind) if kind else None
    least, most = -(1 << 63), (1 << 63) - 1
    if bound is not None:
        least = bound.gte.seconds + (bound.gte.nanos > 0) if bound.HasField("gte") else least
        most = bound.lte.seconds if bound.HasField("lte") else most
    nanos = st.just(0) if bound is not None else _numbers(-(1 << 31), (1 << 31) - 1)
    made: Any = _contract().message(descriptor).__class__
    return st.builds(lambda seconds, rest: made(seconds=seconds, nanos=rest), _numbers(least, most), nanos)


def _numbers(least: int, most: int) -> st.SearchStrategy[int]:
    edges = sorted({least, most, *(n for n in (0, 1, 1_000_000, 1 << 31, 1 << 53) if least <= n <= most)})
    return st.sampled_from(edges) | st.integers(least, most)


def _scalars(field: FieldDescriptor, rules: Any) -> st.SearchStrategy[Any]:
    """Values of a field, or of an item, key or value of one, that keep its rules."""
    kind = rules.WhichOneof("type") if rules is not None else None
    bound = getattr(rules, kind) if kind else None
    if field.cpp_type in _INTEGERS:
        least, most = _INTEGERS[field.cpp_type]
        if bound is not None:
            least = bound.gte if bound.HasField("gte") else least
            most = bound.lte if bound.HasField("lte") else most
        return _numbers(least, most)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        defined = [value.number for value in field.enum_type.values]
        open_ended = bound is None or not bound.defined_only
        refused = tuple(bound.not_in) if bound is not None else ()
        return st.sampled_from([n for n in (*defined, *(_UNKNOWN if open_ended else ())) if n not in refused])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        if bound is None:
            return st.floats()
        low = bound.gte if bound.HasField("gte") else None
        high = bound.lte if bound.HasField("lte") else None
        return st.floats(low, high, allow_nan=low is None and high is None)
    return _texts(field, bound)


def _texts(field: FieldDescriptor, bound: Any) -> st.SearchStrategy[Any]:
    least = bound.min_len if bound is not None else 0
    most = (bound.max_len or _LONGEST) if bound is not None else _LONGEST
    usual = max(least, min(most, _LENGTH))
    if field.type == FieldDescriptor.TYPE_BYTES:
        longest = st.just(b"\xff" * min(most, _LONGEST))
        return st.one_of(st.binary(min_size=least, max_size=usual), longest)
    if bound is not None and bound.pattern:
        # Any longer than `most`, and it would be another rule's.
        return st.from_regex(bound.pattern, fullmatch=True).filter(lambda text: least <= len(text) <= most)
    longest = st.just("x" * min(most, _LONGEST))
    return st.one_of(st.text(_CHARACTERS, min_size=least, max_size=usual), longest)


_CHARACTERS = st.characters(exclude_categories=("Cs",))
