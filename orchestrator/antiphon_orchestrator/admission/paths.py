"""Paths: the chains of selections in expressions, such as tasks.a.output.name, and the values that they lead to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .syntax import Path
from .values import Unusable

Lookup = Callable[[Path], tuple[object, int]]
"""Gives the value of a source and its size in bytes of JSON; raises Unusable. A source is the start of a path that
names a whole value: input, item, index, iteration, previous, output, other, tasks.ID.output, tasks.ID.state,
tasks.ID.failure, or context.SCOPE.KEY, whose value is ABSENT where there is no such entry."""

ABSENT = object()
"""In place of the value of an entry that is not in shared context: CEL's `has` says false, and all else fails."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def source_of(path: Path) -> Path:
    """The start of a path that names a whole value."""
    return path[:3] if path[0] in ("tasks", "context") else path[:1]


class Origin(NamedTuple):
    """A path taken apart: the whole value it begins with, and the way to its part."""

    source: Path
    inside: Path


def origins_of(paths: Iterable[Path]) -> tuple[Origin, ...]:
    """The paths taken apart, in their order."""
    return tuple(Origin(source_of(path), path[len(source_of(path)) :]) for path in paths)


def path_text(path: Iterable[str]) -> str:
    """The path as an author writes it."""
    first, *rest = path
    return first + "".join(f".{name}" if _PLAIN.fullmatch(name) else f"[{name!r}]" for name in rest)


class Selection:
    """A plain chain of selections, the usual expression: answered here, without CEL."""

    __slots__ = ("_path", "_source")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = source_of(path)

    def value(self, lookup: Lookup) -> object:
        """What the path leads to. Raises Unusable for an entry that is absent, a missing field, and a field of what
        is no object."""
        path, source = self._path, self._source
        value = lookup(source)[0]
        if value is ABSENT:
            raise Unusable(f"{path_text(source)} is not in shared context")
        for place in range(len(source), len(path)):
            if not isinstance(value, dict):
                raise Unusable(f"{path_text(path[:place])} is {kind_of(value)} and has no field {path[place]!r}")
            if path[place] not in value:
                raise Unusable(f"{path_text(path[:place])} has no field {path[place]!r}")
            value = value[path[place]]
        return value


def kind_of(value: object) -> str:
    """What JSON calls the value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a bool"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
