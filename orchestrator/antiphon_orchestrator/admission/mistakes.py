"""What can be wrong with a graph, as data. Admission collects every mistake; it never stops at the first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

MOST_COMPARED = 100
"""Names that are looked through for the one that was meant."""


class Code(StrEnum):
    """Stable codes, as antiphon.v1.GraphMistake lists them."""

    UNKNOWN_REFERENCE = "unknown_reference"
    CYCLE = "cycle"
    EXPRESSION = "expression"
    TYPE = "type"
    IMPOSSIBLE_JOIN = "impossible_join"
    DUPLICATE = "duplicate"
    SCHEMA = "schema"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing found: the path of the field, such as tasks[3].when, what is wrong with it, and its code."""

    field: str
    message: str
    code: Code


class GraphInvalid(Exception):
    """The graph is refused; `mistakes` holds all that was found."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(f"{mistake.field}: {mistake.message}" for mistake in mistakes))
        self.mistakes = tuple(mistakes)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word; empty when none is near."""
    # Comparing takes far longer than looking at lengths; a word that differs by more is seldom meant.
    candidates = [name for name in known if abs(len(name) - len(word)) <= 4][:MOST_COMPARED]
    near = get_close_matches(word, candidates, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
