"""Messages made from their rules: valid ones, valid others, and ones that break exactly one rule. Pure.

Facts make them richer: where a field's name says what it holds (a run id, an agent), the value is one that exists. A
fact that breaks a field's own rule is not used. A rule of a kind that is not known here raises `UnknownRule`, so that
no rule goes untested in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import EllipsisType
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.contract.contract import TEXT, Contract, is_map, is_own

MARK = "unspeakable"
"""What every text of a sensitive field begins with; nothing that a log may say contains it."""

_NO_VALUE = 2_000_003  # of no enum of ours, now or ever
_INTEGERS = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint64": (0, (1 << 64) - 1),
}
_KNOWN = {
    "string": {"min_len", "max_len", "pattern"},
    "bytes": {"min_len", "max_len"},
    "enum": {"defined_only", "not_in"},
    "repeated": {"min_items", "max_items", "unique", "items"},
    "map": {"min_pairs", "max_pairs", "keys", "values"},
    **{number: {"lte", "gte"} for number in (*_INTEGERS, "double", "duration")},
}

Fact = str | bytes | int | Callable[[str], str] | EllipsisType | None
Facts = Mapping[str, Fact]
"""By `Message.field`, by `field`, or for fields called `name` by what they name (`Agent`). A function gets what the
message is for, and answers something of its own for each; None leaves the field alone, and `...` says that a message
without it is of no use."""


class UnknownRule(Exception):
    """A rule that nobody has taught this module to break."""


class Broken(NamedTuple):
    """A message with one rule broken: which, where, and the message."""

    rule: str
    path: str
    message: Any


class Values:
    """Values for one purpose: `tag` tells the ids of this purpose from those of others."""

    def __init__(self, contract: Contract, facts: Facts, tag: str) -> None:
        self._contract = contract
        self._facts = facts
        self._tag = tag

    def valid(self, descriptor: Descriptor, *, full: bool = False) -> Any:
        """The smallest valid message, or one with every field set."""
        return self._valid(descriptor, full, ())

    def others(self, descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
        """Messages that differ from the smallest valid one in one field, and where; only fields that are content.

        Not booleans and timeouts, which say how to answer, nor ids.
        """
        for field in descriptor.fields:
            if field.type == FieldDescriptor.TYPE_BOOL or field.name == "timeout" or field.name.endswith("_id"):
                continue
            if self._left_alone(field):
                continue
            where = (*path, field.name)
            if is_own(field.message_type):
                if len(path) < 2 and not (field.has_presence and field.containing_oneof):
                    yield from self._inner_others(descriptor, field, where)
                continue
            message = self.valid(descriptor)
            before = message.SerializeToString(deterministic=True)
            if self._known(field) is None:
                self._fill(message, field, other=True)
            if message.SerializeToString(deterministic=True) != before:
                yield ".".join(where), message

    def _inner_others(
        self, descriptor: Descriptor, field: FieldDescriptor, path: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        for where, inner in self.others(field.message_type, path):
            message = self.valid(descriptor)
            if field.is_repeated:
                del getattr(message, field.name)[:]
                getattr(message, field.name).add().CopyFrom(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
            yield where, message

    def broken(self, descriptor: Descriptor) -> Iterator[Broken]:
        """Every rule of the message and of those in it, broken once, in a message that is otherwise the smallest."""
        yield from self._broken(descriptor, lambda: self.valid(descriptor), lambda root: root, "", ())

    # Valid values

    def _valid(self, descriptor: Descriptor, full: bool, inside: tuple[str, ...]) -> Any:
        message = self._contract.message(descriptor)
        inside = (*inside, descriptor.full_name)
        for oneof in descriptor.oneofs:
            if full or self._contract.required(oneof):
                self._set(message, oneof.fields[0], full, inside)
        for field in descriptor.fields:
            if field.containing_oneof is None and (full or self._needed(field)):
                self._set(message, field, full, inside)
        return message

    def _needed(self, field: FieldDescriptor) -> bool:
        """Whether a message without the field breaks a rule, or says less than a fact knows."""
        rules = self._contract.rules(field)
        kind = rules.WhichOneof("type")
        if rules.required or self._facts.get(field.name) is ... or self._known(field) is not None:
            return True
        if kind is None or (field.has_presence and not field.is_repeated):
            return False
        bound = getattr(rules, kind)
        if kind in ("repeated", "map"):
            return bool(bound.min_items if kind == "repeated" else bound.min_pairs)
        return not _keeps(kind, bound, field.default_value)

    def _set(self, message: Any, field: FieldDescriptor, full: bool, inside: tuple[str, ...]) -> None:
        if self._left_alone(field):
            return
        if is_own(field.message_type):
            if field.message_type.full_name in inside and not self._contract.rules(field).required:
                return
            value = self._valid(field.message_type, full, inside)
            (getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)).CopyFrom(value)
            getattr(message, field.name).SetInParent() if not field.is_repeated else None
            return
        self._fill(message, field)

    def _fill(self, message: Any, field: FieldDescriptor, *, other: bool = False) -> None:
        """Give a field of no message type of ours a valid value; `other`: not the usual one."""
        rules = self._contract.rules(field)
        if is_map(field):
            keys, values = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            key = self._scalar(keys, rules.map.keys, other)
            getattr(message, field.name)[key] = self._scalar(values, rules.map.values, other)
        elif field.is_repeated:
            for _ in range(max(1, rules.repeated.min_items)):
                getattr(message, field.name).append(self._scalar(field, rules.repeated.items, other))
        elif field.message_type is not None:
            _set_message(getattr(message, field.name), rules, other)
        else:
            setattr(message, field.name, self._scalar(field, rules, other))

    def _scalar(self, field: FieldDescriptor, rules: Any, other: bool = False) -> Any:
        known = None if other else self._known(field)
        if known is not None:
            return known(self._tag) if callable(known) else known
        kind = rules.WhichOneof("type")
        bound = getattr(rules, kind) if kind else None
        if field.enum_type is not None:
            allowed = [v.number for v in field.enum_type.values if v.number and v.number not in _list(bound, "not_in")]
            return allowed[-1 if other else 0]
        if field.type in TEXT:
            text = self._text(field, bound, other)
            return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
        if field.type == FieldDescriptor.TYPE_BOOL:
            return True
        least = bound.gte if bound is not None and bound.HasField("gte") else 0
        most = bound.lte if bound is not None and bound.HasField("lte") else None
        wanted = max(least, 2 if other else 1)
        return wanted if most is None else min(wanted, most)

    def _text(self, field: FieldDescriptor, bound: Any, other: bool) -> str:
        if bound is not None and field.type == FieldDescriptor.TYPE_STRING and bound.pattern:
            return sample(bound.pattern, last=other)
        least, most = (bound.min_len, bound.max_len or 4096) if bound is not None else (0, 4096)
        text = ("y" if other else "x") * max(1, least)
        if self._contract.sensitive(field):
            text = f'"{MARK} {self._tag}{" other" * other}"'
        return text[:most].ljust(least, "x")

    def _left_alone(self, field: FieldDescriptor) -> bool:
        names = (f"{field.containing_type.name}.{field.name}", field.name)
        return any(name in self._facts and self._facts[name] is None for name in names)

    def _known(self, field: FieldDescriptor) -> Fact:
        """A fact about the field that keeps its rules."""
        owner = field.containing_type.name
        fact = self._facts.get(f"{owner}.{field.name}")
        if fact is None and field.name == "name":
            # The name of something is a fact where a message asks for it, not where it is that thing.
            nouns = [noun for noun in self._facts if noun.istitle() and noun in owner and noun != owner]
            fact = self._facts[nouns[0]] if nouns else None
        if fact is None:
            fact = self._facts.get(field.name)
        if fact is None or fact is ... or field.message_type is not None:
            return None
        rules = self._contract.rules(field)
        if field.is_repeated:
            rules = rules.repeated.items
        kind = rules.WhichOneof("type")
        value = fact(self._tag) if callable(fact) else fact
        fits = isinstance(value, {9: str, 12: bytes}.get(field.type, int))
        return fact if fits and (kind is None or _keeps(kind, getattr(rules, kind), value)) else None

    # Broken rules

    def _broken(
        self,
        descriptor: Descriptor,
        make: Callable[[], Any],
        reach: Callable[[Any], Any],
        path: str,
        inside: tuple[str, ...],
    ) -> Iterator[Broken]:
        """`make` gives a valid root, `reach` finds in it the message at `path`, putting it there if need be."""
        if self._contract.whole(descriptor):
            raise UnknownRule(f"{descriptor.full_name}: rules in CEL have no known way to be broken")
        inside = (*inside, descriptor.full_name)
        for oneof in descriptor.oneofs:
            if self._contract.required(oneof):
                root = make()
                chosen = reach(root).WhichOneof(oneof.name)
                reach(root).ClearField(chosen)
                yield Broken("oneof", path + oneof.name, root)
        for field in descriptor.fields:
            where = path + field.name
            for rule, suffix, spoil in self._spoils(field):
                root = make()
                spoil(reach(root))
                yield Broken(rule, where + suffix, root)
            inner = field.message_type
            if is_own(inner) and inner.full_name not in inside:
                step = "[0]." if field.is_repeated else "."
                yield from self._broken(inner, make, self._step(reach, field), where + step, inside)

    def _step(self, reach: Callable[[Any], Any], field: FieldDescriptor) -> Callable[[Any], Any]:
        def step(root: Any) -> Any:
            message = reach(root)
            if field.is_repeated:
                items = getattr(message, field.name)
                if not items:
                    items.add().CopyFrom(self.valid(field.message_type))
                return items[0]
            if not message.HasField(field.name):
                getattr(message, field.name).CopyFrom(self.valid(field.message_type))
                getattr(message, field.name).SetInParent()
            return getattr(message, field.name)

        return step

    def _spoils(self, field: FieldDescriptor) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
        """Ways to break the rules of one field: the rule, what follows the field in the path, and the deed."""
        rules = self._contract.rules(field)
        name = field.name
        if rules.cel:
            raise UnknownRule(f"{field.full_name}: a rule in CEL has no known way to be broken")
        if rules.required:
            yield "required", "", lambda message: message.ClearField(name)
        kind = rules.WhichOneof("type")
        if kind is None:
            return
        bound = getattr(rules, kind)
        unknown = {option.name for option, _ in bound.ListFields()} - _KNOWN[kind]
        if unknown:
            raise UnknownRule(f"{field.full_name}: {kind} {sorted(unknown)}")
        if kind == "map":
            yield from self._spoilt_map(field, bound)
        elif kind == "repeated":
            yield from self._spoilt_list(field, bound)
        elif kind == "duration":
            for rule, seconds in _outside(bound, lambda edge: edge.seconds):
                yield rule, "", lambda message, seconds=seconds: _assign(getattr(message, name), seconds)
        else:
            for rule, value in self._bad(field, kind, bound):
                yield rule, "", lambda message, value=value: setattr(message, name, value)

    def _spoilt_list(self, field: FieldDescriptor, bound: Any) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
        name = field.name

        def fill(message: Any, count: int) -> None:
            items = getattr(message, name)
            del items[:]
            if is_own(field.message_type):
                items.extend([self.valid(field.message_type)] * count)
            else:
                item = self._scalar(field, bound.items)
                distinct = bound.unique and isinstance(item, str)
                items.extend([f"{item}{n}" if distinct else item for n in range(count)])

        if bound.min_items:
            yield "min_items", "", lambda message: fill(message, bound.min_items - 1)
        if bound.max_items:
            yield "max_items", "", lambda message: fill(message, bound.max_items + 1)
        if bound.unique:

            def twice(message: Any) -> None:
                fill(message, 1)
                getattr(message, name).append(getattr(message, name)[0])

            yield "unique", "", twice
        kind = bound.items.WhichOneof("type")
        if kind is not None:
            for rule, value in self._bad(field, kind, getattr(bound.items, kind)):

                def put(message: Any, value: Any = value) -> None:
                    del getattr(message, name)[:]
                    getattr(message, name).append(value)

                yield f"items {rule}", "[0]", put

    def _spoilt_map(self, field: FieldDescriptor, bound: Any) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
        name = field.name
        keys, values = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        value = self._scalar(values, bound.values)

        def fill(message: Any, count: int) -> None:
            getattr(message, name).clear()
            for number in range(count):
                getattr(message, name)[f"k{number}"] = value

        if bound.min_pairs:
            yield "min_pairs", "", lambda message: fill(message, bound.min_pairs - 1)
        if bound.max_pairs:
            yield "max_pairs", "", lambda message: fill(message, bound.max_pairs + 1)
        for part, rules, is_key in ((keys, bound.keys, True), (values, bound.values, False)):
            kind = rules.WhichOneof("type")
            for rule, bad in self._bad(part, kind, getattr(rules, kind)) if kind else ():
                key = bad if is_key else self._scalar(keys, bound.keys)

                def put(message: Any, key: Any = key, value: Any = value if is_key else bad) -> None:
                    getattr(message, name)[key] = value

                yield f"{'keys' if is_key else 'values'} {rule}", f'["{key}"]', put

    def _bad(self, field: FieldDescriptor, kind: str, bound: Any) -> Iterator[tuple[str, Any]]:
        """Values that break one rule of a scalar each."""
        unknown = {option.name for option, _ in bound.ListFields()} - _KNOWN[kind]
        if unknown:
            raise UnknownRule(f"{field.full_name}: {kind} {sorted(unknown)}")
        if kind in ("string", "bytes"):
            mark = f"{MARK} {self._tag} " if self._contract.sensitive(field) else "x"
            for rule, length in (("min_len", int(bound.min_len) - 1), ("max_len", int(bound.max_len) + 1)):
                if getattr(bound, rule):
                    text = (mark * (length // len(mark) + 1))[:length]
                    yield rule, text if kind == "string" else text.encode()
            if kind == "string" and bound.pattern:
                yield "pattern", next(bad for bad in ("", "~ ~", "\n") if not re.search(bound.pattern, bad))
        elif kind == "enum":
            if bound.defined_only:
                yield "defined_only", _NO_VALUE
            yield from ((f"not_in {number}", number) for number in bound.not_in)
        else:
            least, most = _INTEGERS.get(kind, (float("-inf"), float("inf")))
            yield from ((rule, value) for rule, value in _outside(bound, lambda edge: edge) if least <= value <= most)


def sample(pattern: str, *, last: bool = False) -> str:
    """A text that a pattern matches, as short as can be; `last` takes the other end of each choice."""
    text = "".join(_sampled(parser.parse(pattern), last))
    if not re.search(pattern, text):
        raise UnknownRule(f"no text was found that matches {pattern}")
    return text


def _sampled(parts: Any, last: bool) -> Iterator[str]:
    for operation, argument in parts:
        if operation is code.LITERAL:
            yield chr(argument)
        elif operation is code.IN:
            yield _member(argument, last)
        elif operation in (code.MAX_REPEAT, code.MIN_REPEAT):
            least, _, inner = argument
            yield from list(_sampled(inner, last)) * least
        elif operation is code.SUBPATTERN:
            yield from _sampled(argument[-1], last)
        elif operation is code.BRANCH:
            yield from _sampled(argument[1][-1 if last else 0], last)
        elif operation is not code.AT:
            raise UnknownRule(f"a pattern with {operation}")


def _member(members: Any, last: bool) -> str:
    operation, argument = members[-1 if last else 0]
    if operation is code.RANGE:
        return chr(argument[1 if last else 0])
    if operation is code.LITERAL:
        return chr(argument)
    raise UnknownRule(f"a set with {operation}")


def _keeps(kind: str, bound: Any, value: Any) -> bool:
    if kind in ("string", "bytes"):
        fits = bound.min_len <= len(value) <= (bound.max_len or 1 << 32)
        return fits and (kind == "bytes" or not bound.pattern or re.search(bound.pattern, value) is not None)
    if kind == "enum":
        return value not in bound.not_in
    if kind == "duration":
        return True
    return not (bound.HasField("gte") and value < bound.gte) and not (bound.HasField("lte") and value > bound.lte)


def _outside(bound: Any, number: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    if bound.HasField("gte"):
        yield "gte", number(bound.gte) - 1
    if bound.HasField("lte"):
        yield "lte", number(bound.lte) + 1


def _assign(duration: Any, seconds: int) -> None:
    duration.Clear()
    duration.seconds = seconds
    duration.SetInParent()


def _set_message(message: Any, rules: Any, other: bool) -> None:
    """A message that is not ours: a duration within its bounds, or a timestamp."""
    seconds = 7200 if other else 3600
    if rules.WhichOneof("type") == "duration" and rules.duration.HasField("lte"):
        seconds = min(seconds, rules.duration.lte.seconds)
    message.seconds = seconds


def _list(bound: Any, name: str) -> Any:
    return getattr(bound, name) if bound is not None else ()
