"""Everything that is wrong with a graph in a file, in one go: how it is spelled, and what it means.

What is misspelt leaves a hole, and admission, which looks at the rest, finds mistakes that are mistakes only because of
the hole: a task that waits for nobody because `needs` could not be read. So that every mistake that is told is one,
those that may rest on a hole are left out: in the field itself, and where its absence changes what another field may
say. They come to light once the hole is mended.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from .. import LoadedGraph, Mistake
from ..v1.graph_pb2 import Graph, GraphTask
from ..v1.graph_service_pb2 import GraphMistake

_PLACE = re.compile(r"tasks\[([0-9]+)\](?:\.([^.\[]+))?")
_FIELDS = frozenset(GraphTask.DESCRIPTOR.fields_by_name)
_KINDS = frozenset({"capability", "graph", "wait"})
_NAMING = frozenset({"for_each", "until", "quorum"})
"""Fields that give the expressions of their task names of its own, such as item."""
_REFERRING = frozenset({"needs", "when", "for_each", "input", "wait", "until", "quorum"})
"""Fields that make other tasks the needs of theirs, which a join counts."""
_SHAPING = _KINDS | _NAMING | _REFERRING


class Finding(NamedTuple):
    """A mistake or a warning, and where it stands."""

    line: int
    column: int
    field: str
    message: str
    code: str

    def __str__(self) -> str:
        """As compilers spell it and editors read it, but for the file."""
        return f"{self.line}:{self.column}: {self.field + ': ' if self.field else ''}{self.message} [{self.code}]"

    @classmethod
    def of(cls, one: Mistake) -> Finding:
        """A mistake of spelling."""
        return cls(one.line, one.column, one.field, one.message, one.code)

    @classmethod
    def at(cls, loaded: LoadedGraph, one: GraphMistake) -> Finding:
        """One of meaning, at the place of its field, or of the nearest part around it that the file spells out."""
        field = one.field
        while field and field not in loaded.positions:
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return cls(*loaded.positions.get(field, (1, 1)), one.field, one.message, one.code)


def mistakes_of(loaded: LoadedGraph) -> list[Finding]:
    """All mistakes of a graph with some of spelling, in the order of the file; those of meaning where the server's own
    code is installed."""
    found = [Finding.of(one) for one in loaded.mistakes]
    if loaded.graph.tasks and (admitted := admit(loaded.graph)) is not None:
        holes = _Holes(loaded)
        found += [Finding.at(loaded, one) for one in admitted[0] if holes.leave(one)]
    return sorted(found)


def admit(graph: Graph) -> tuple[Sequence[GraphMistake], Sequence[GraphMistake]] | None:
    """The mistakes and warnings that the server's own code finds; None where it is not installed."""
    try:
        from antiphon_orchestrator.admission import GraphInvalid, compile_graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("antiphon_orchestrator"):
            raise
        return None
    try:
        compiled = compile_graph(graph)
    except GraphInvalid as invalid:
        return [GraphMistake(field=one.field, message=one.message, code=one.code) for one in invalid.mistakes], []
    return [], [GraphMistake(field=one.field, message=one.message, code=one.code) for one in compiled.warnings]


class _Holes:
    """What is missing of a graph because it is misspelt."""

    def __init__(self, loaded: LoadedGraph) -> None:
        self._graph: set[str] = set()  # fields of the graph
        self._tasks: defaultdict[int, set[str]] = defaultdict(set)  # fields of tasks, by their number
        for mistake in loaded.mistakes:
            place = _PLACE.match(mistake.field)
            if place is None:
                self._graph.add(_first(mistake.field))
                continue
            name = place[2]
            if name in _FIELDS:
                self._tasks[int(place[1])].add(name)
            elif name:
                start = f"tasks[{place[1]}]."
                self._tasks[int(place[1])] |= {field for field in _meant(name) if start + field not in loaded.positions}
            elif mistake.code == "type":
                self._tasks[int(place[1])] |= _FIELDS  # no task at all
        for number, task in enumerate(loaded.graph.tasks):
            if not task.id:
                self._tasks[number].add("id")
            if not (task.capability or task.graph or task.HasField("wait")):
                self._tasks[number] |= _KINDS
        self._nameless = any("id" in lost for lost in self._tasks.values())

    def leave(self, one: GraphMistake) -> bool:
        """Whether a mistake of meaning is one whatever stands in the holes."""
        if self._nameless and one.code in ("unknown_reference", "impossible_join"):
            return False  # the task that is meant may be one whose id cannot be read
        place = _PLACE.match(one.field)
        if place is None:
            return _first(one.field) not in self._graph
        lost, field = self._tasks.get(int(place[1]), set()), place[2] or "id"
        if field in lost or (field == "join" and lost & _REFERRING):
            return False
        return not (one.code == "unknown_reference" and lost & _NAMING)


def _meant(name: str) -> set[str] | frozenset[str]:
    """What a field that is not known may have been meant to be; where that is unclear, all that others rest on."""
    near = difflib.get_close_matches(name, _FIELDS, 1)
    return set(near) or _SHAPING


def _first(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]
