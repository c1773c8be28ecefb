"""Parts of JSON values: those that a schema declares, those that carry labels, those that are struck out.

An agent gets what the input schema of its capability declares. A place of a schema is *closed* when it declares
properties and does not say that others may come (`additionalProperties` or `unevaluatedProperties` that are not false,
`patternProperties`); whatever else a value has there is left out. Schemas that apply to the same place together (allOf,
anyOf, oneOf, if, references) declare together what each of them declares. A property whose schema says
`"x-antiphon-labels": ["pii"]` carries these labels.

Pure, and linear in the value: what is known of a place is worked out once. Values are never changed, only made anew. A
value that is nested deeper than DEEPEST is not walked: that raises Unusable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .values import Unusable

LABELS = "x-antiphon-labels"
DEEPEST = 100
"""Levels of a value that are walked; the pointers of its parts, and the stack, are as long."""

MOST_LABELS = 16
"""Labels of one part, as the contract of a payload has it."""

_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_TOGETHER = ("allOf", "anyOf", "oneOf")
_CONDITIONAL = ("if", "then", "else")
_OTHERS = ("additionalProperties", "unevaluatedProperties")
# What may stand in an alternative that says nothing of an object's fields.
_SILENT = frozenset({"type", "title", "description", "$comment", "default", "examples"})
_PLACES_KEPT = 4096

Pointer = tuple[str, ...]


class LabelsInvalid(Exception):
    """A schema's labels cannot be read; the message says where and why."""


@dataclass(slots=True)
class _Place:
    """What is known of the values at one place of a schema."""

    declared: dict[str, list[Any]] = field(default_factory=dict)
    open: bool = False
    others: list[Any] = field(default_factory=list)
    first_items: list[list[Any]] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    labels: tuple[str, ...] = ()


class Fields:
    """The fields of one schema. `may_drop`: some value could have a field it does not declare; `all_labels`: those of
    any field."""

    def __init__(self, schema: object) -> None:
        """`schema` is parsed, and a schema that can be used. Raises LabelsInvalid."""
        self._root = schema
        self._places: dict[tuple[int, ...], _Place] = {}
        self._received: dict[str, bool] = {}
        self.may_drop = False
        labels: set[str] = set()
        nested = False
        for pointer, node in _objects(schema, ""):
            if LABELS in node:
                labels.update(_checked(node[LABELS], pointer))
            if isinstance(node.get("properties"), dict) and not any(name in node for name in _OTHERS):
                self.may_drop = True
                nested |= node is not schema
        self.all_labels = tuple(sorted(labels))
        # Most schemas are flat: one look at the names of a value tells that nothing is to be dropped.
        self._names: frozenset[str] | None = None
        if self.may_drop and not nested:
            place = self._place([schema])
            self._names = None if place.open else frozenset(place.declared)

    def covers(self, value: object) -> bool:
        """Whether it is plain that the schema declares all of a value. False decides nothing."""
        return not self.may_drop or (
            self._names is not None and (not isinstance(value, dict) or value.keys() <= self._names)
        )

    def may_receive(self, pointer: str) -> bool:
        """Whether some value, less what the schema does not declare, has a part there; * is any place of a list."""
        known = self._received.get(pointer)
        if known is None:
            if len(self._received) >= _PLACES_KEPT:
                self._received.clear()
            known = self._received[pointer] = not self.may_drop or self._reaches([self._root], steps_of(pointer))
        return known

    def _reaches(self, nodes: list[Any], steps: Pointer) -> bool:
        if not steps:
            return True
        place, step, rest = self._place(nodes), steps[0], steps[1:]
        ways: list[list[Any]] = []
        if step in place.declared:
            ways.append(place.declared[step])
        elif place.open:
            ways.append(place.others)
        if step == "*" or step.isdecimal():
            # A place of a list, of whatever number; a list is never left out of itself.
            ways += [*place.first_items, place.items]
        return any(self._reaches(way, rest) for way in ways)

    def declared(self, value: object) -> tuple[object, list[Pointer]]:
        """What the schema declares of a value that fits it, and what was left out. The value itself when it is all."""
        left_out: list[Pointer] = []
        if not self.may_drop:
            return value, left_out
        return self._declared(value, [self._root], (), left_out), left_out

    def labels(self, value: object) -> Iterator[tuple[Pointer, tuple[str, ...]]]:
        """The parts of a value that the schema labels."""
        if self.all_labels:
            yield from self._labels(value, [self._root], ())

    def _declared(self, value: object, nodes: list[Any], at: Pointer, left_out: list[Pointer]) -> object:
        if not isinstance(value, dict | list) or not value:
            return value
        _check_depth(at)
        place = self._place(nodes)
        if isinstance(value, list):
            items = [
                self._declared(item, self._item(place, index), (*at, str(index)), left_out)
                for index, item in enumerate(value)
            ]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        kept: dict[str, object] = {}
        for name, part in value.items():
            if name in place.declared:
                kept[name] = self._declared(part, place.declared[name], (*at, name), left_out)
            elif place.open:
                kept[name] = self._declared(part, place.others, (*at, name), left_out)
            else:
                left_out.append((*at, name))
        same = len(kept) == len(value) and all(kept[name] is part for name, part in value.items())
        return value if same else kept

    def _labels(self, value: object, nodes: list[Any], at: Pointer) -> Iterator[tuple[Pointer, tuple[str, ...]]]:
        _check_depth(at)
        place = self._place(nodes)
        if place.labels:
            yield at, place.labels
        if isinstance(value, dict):
            for name, part in value.items():
                yield from self._labels(part, place.declared.get(name, place.others), (*at, name))
        elif isinstance(value, list):
            for index, part in enumerate(value):
                yield from self._labels(part, self._item(place, index), (*at, str(index)))

    @staticmethod
    def _item(place: _Place, index: int) -> list[Any]:
        return place.first_items[index] if index < len(place.first_items) else place.items

    def _place(self, nodes: list[Any]) -> _Place:
        key = tuple(map(id, nodes))
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= _PLACES_KEPT:
                self._places.clear()
            place = self._places[key] = self._look(nodes)
        return place

    def _look(self, nodes: list[Any]) -> _Place:
        place = _Place()
        labels: dict[str, None] = {}
        for node in self._applicable(nodes):
            if not isinstance(node, dict):
                place.open |= node is True
                continue
            for name, schema in _dict(node.get("properties")).items():
                place.declared.setdefault(name, []).append(schema)
            for name in _OTHERS:
                if node.get(name, False) is not False:
                    place.open = True
                    place.others.append(node[name])
            place.open |= "patternProperties" in node
            for index, schema in enumerate(_list(node.get("prefixItems"))):
                if index == len(place.first_items):
                    place.first_items.append([])
                place.first_items[index].append(schema)
            if "items" in node:
                place.items.append(node["items"])
            labels.update(dict.fromkeys(_list(node.get(LABELS))))
        # Where there is nothing but lists, an object has no field that was declared.
        lists = bool(nodes) and all(isinstance(node, dict) and node.get("type") == "array" for node in nodes)
        place.open |= not place.declared and not lists
        if place.others:  # in another alternative the property may be one of these
            for schemas in place.declared.values():
                schemas += place.others
        place.labels = tuple(labels)
        return place

    def _applicable(self, nodes: Sequence[Any]) -> Iterator[Any]:
        """Every schema that applies to a place together with these; True stands for one that allows any field."""
        waiting, seen = list(nodes), set[int]()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            if not isinstance(node, dict):
                continue
            for name in _TOGETHER:
                for part in _list(node.get(name)):
                    if name != "allOf" and (part is True or (isinstance(part, dict) and _allows_anything(part))):
                        yield True
                    elif part is not True:
                        waiting.append(part)
            waiting.extend(node[name] for name in _CONDITIONAL if isinstance(node.get(name), dict))
            waiting.extend(_dict(node.get("dependentSchemas")).values())
            for name in ("$ref", "$dynamicRef"):
                if isinstance(node.get(name), str):
                    waiting.append(self._target(node[name]))

    def _target(self, reference: str) -> Any:
        """What a reference names; True, which drops nothing, where that is not a plain path."""
        base, _, path = reference.partition("#")
        if base or (path and not path.startswith("/")):
            return True
        node: Any = self._root
        for step in unquote(path).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(step)] if isinstance(node, list) else node[step]
            except (KeyError, ValueError, IndexError, TypeError):
                return True
        return node


def strike_out(value: object, pointers: Iterable[Pointer]) -> tuple[object, list[Pointer]]:
    """A value without the parts that the pointers name, and those that were there.

    In a list a step that is a number is a place, whose value becomes null; any other step is meant of each item. The
    empty pointer is the whole value, which becomes null.
    """
    struck: list[Pointer] = []
    for pointer in pointers:
        value = _without(value, pointer, (), struck)
    return value, struck


def _without(value: object, steps: Pointer, at: Pointer, struck: list[Pointer]) -> object:
    _check_depth(at)
    if not steps:
        if value is not None:
            struck.append(at)
        return None
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        if step not in value:
            return value
        if not rest:
            struck.append((*at, step))
            return {name: part for name, part in value.items() if name != step}
        inner = _without(value[step], rest, (*at, step), struck)
        return value if inner is value[step] else {**value, step: inner}
    if isinstance(value, list):
        if step.isdecimal():
            place = int(step)
            if place >= len(value):
                return value
            inner = _without(value[place], rest, (*at, step), struck)
            return value if inner is value[place] else [*value[:place], inner, *value[place + 1 :]]
        items = [_without(item, steps, (*at, str(index)), struck) for index, item in enumerate(value)]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def _check_depth(at: Pointer) -> None:
    if len(at) > DEEPEST:
        raise Unusable(f"is nested deeper than {DEEPEST} levels")


def steps_of(pointer: str) -> Pointer:
    """The steps of a JSON pointer (RFC 6901)."""
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])


def pointer_of(steps: Pointer) -> str:
    """The JSON pointer of the steps."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _objects(node: object, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a schema, at whatever place; what only looks like a schema does no harm."""
    waiting: list[tuple[str, Any]] = [(pointer, node)]
    while waiting:
        pointer, node = waiting.pop()
        if isinstance(node, dict):
            yield pointer, node
            waiting += [(f"{pointer}/{name}", part) for name, part in node.items() if name != "examples"]
        elif isinstance(node, list):
            waiting += [(f"{pointer}/{index}", part) for index, part in enumerate(node)]


def _checked(labels: object, pointer: str) -> list[str]:
    if isinstance(labels, dict):
        return []  # a property of that name
    if not isinstance(labels, list) or not all(isinstance(one, str) and _LABEL.fullmatch(one) for one in labels):
        raise LabelsInvalid(f'{pointer}/{LABELS}: is not a list of labels, such as ["pii"]')
    if len(labels) > MOST_LABELS:
        raise LabelsInvalid(f"{pointer}/{LABELS}: has {len(labels)} labels; {MOST_LABELS} are the most")
    return labels


def _allows_anything(node: dict[str, Any]) -> bool:
    kind = node.get("type", "object")
    return node.keys() <= _SILENT and (kind == "object" or (isinstance(kind, list) and "object" in kind))


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
