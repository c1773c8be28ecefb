"""Versions of capabilities and the requirements that tasks put on them.

A version is one to three numbers; missing ones are zero, so 1 and 1.0.0 are the same version. A requirement names a
capability and the versions that will do:

    text.summarize@1          any 1.x          (at least 1, below 2)
    text.summarize@1.2        at least 1.2, below 2
    text.summarize@=1.2.3     exactly that one
    text.summarize@>=1,<3     every comparison holds; = > >= < <= are known
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,7}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}")
_COMPARISON = re.compile(r"(>=|<=|=|>|<)?\s*([0-9.]+)")


class Version(NamedTuple):
    """A version; versions compare number by number."""

    major: int
    minor: int = 0
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version written as 1, 1.2 or 1.2.3; raises ValueError."""
        if not _VERSION.fullmatch(text):
            raise ValueError(f"{text!r} is not a version; write 1, 1.2 or 1.2.3")
        return cls(*(int(number) for number in text.split(".")))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


_OPERATORS: dict[str, Callable[[Version, Version], bool]] = {
    "=": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a task asks for: a capability's name and comparisons that its version must all meet."""

    name: str
    comparisons: tuple[tuple[str, Version], ...]

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """The requirement written as in the module's table; raises ValueError with what to write instead."""
        name, at, wanted = text.partition("@")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a capability's name; write lower case with dots, such as text.summarize")
        if not at:
            raise ValueError(f"{text!r} has no version; write {name}@1 for any 1.x")
        parts = wanted.split(",")
        comparisons: list[tuple[str, Version]] = []
        for part in parts:
            matched = _COMPARISON.fullmatch(part.strip())
            if matched is None or (matched[1] is None and len(parts) > 1):
                raise ValueError(f"{part!r} is not a version requirement; write 1, 1.2, =1.2.3 or >=1,<3")
            version = Version.parse(matched[2])
            if matched[1] is None:
                comparisons += [(">=", version), ("<", Version(version.major + 1))]
            else:
                comparisons.append((matched[1], version))
        return cls(name, tuple(comparisons))

    def matches(self, version: Version) -> bool:
        """Whether that version of the capability will do."""
        return all(_OPERATORS[sign](version, bound) for sign, bound in self.comparisons)
