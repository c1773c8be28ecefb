"""How large a JSON Schema is once its references are followed, which is what checking a value by it costs.

A few lines can refer to each other so that the work doubles with each: 18 such lines take half a minute, 40 for ever,
and a check cannot be interrupted. So the size with every reference written out is bounded when a schema is admitted. A
schema that refers to itself has no such size; the library remembers what it has judged there, but not when it is asked
for reasons: those it collects for every alternative of every level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

LARGEST = 20_000
_REFERENCES = ("$ref", "$dynamicRef")
_DEFINITIONS = ("$defs", "definitions")
_ALTERNATIVES = ("anyOf", "oneOf")


class NotMeasured(Exception):
    """The schema is too large, or refers to something that is not a place in it; the message says which."""


@dataclass(slots=True)
class Extent:
    """`size`: objects and lists, references written out, up to the first that repeats itself. `recursive`: one does.
    `alternatives`: it holds anyOf or oneOf."""

    size: int = 0
    recursive: bool = False
    alternatives: bool = False

    @property
    def explains(self) -> bool:
        """Whether the reason why a value does not fit is found in bounded time."""
        return not self.alternatives or (not self.recursive and self.size <= 1_000)


def measure(schema: object) -> Extent:
    """The extent of a parsed schema. Raises NotMeasured."""
    walk = _Walk(schema)
    try:
        walk.extent.size = walk.size(schema)
    except RecursionError:
        raise NotMeasured("is nested too deeply") from None
    if walk.extent.size > LARGEST:
        raise NotMeasured(f"is larger than {LARGEST} parts once its references are followed")
    return walk.extent


class _Walk:
    def __init__(self, root: object) -> None:
        self.extent = Extent()
        self._root = root
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()
        self._anchors: dict[str, object] | None = None

    def size(self, node: object) -> int:
        if not isinstance(node, dict | list):
            return 0
        key = id(node)
        if key in self._open:
            self.extent.recursive = True
            return 1
        known = self._sizes.get(key)
        if known is not None:
            return known
        self._open.add(key)
        total = 1
        if isinstance(node, list):
            total += sum(self.size(item) for item in node)
        else:
            if isinstance(node.get("$id"), str) and node is not self._root:
                # References inside would count from there.
                raise NotMeasured("holds a part with an $id of its own; put it under $defs without one")
            for name, value in node.items():
                if name in _REFERENCES and isinstance(value, str):
                    total += self.size(self._target(value))
                elif name not in _DEFINITIONS:
                    self.extent.alternatives |= name in _ALTERNATIVES
                    total += self.size(value)
        self._open.discard(key)
        self._sizes[key] = total
        return total

    def _target(self, reference: str) -> object:
        base, _, place = reference.partition("#")
        if base:
            raise NotMeasured(f"{reference} is outside the schema; put the definition under $defs")
        if place and not place.startswith("/"):
            if self._anchors is None:
                self._anchors = dict(_anchors(self._root))
            return self._anchors.get(place)
        node: Any = self._root
        for step in unquote(place).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(step)] if isinstance(node, list) else node[step]
            except (KeyError, ValueError, IndexError, TypeError):
                return None  # the library says so
        return node


def _anchors(root: object) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found += [(node[name], node) for name in ("$anchor", "$dynamicAnchor") if isinstance(node.get(name), str)]
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found
