"""Graphs in files: YAML, or JSON as its subset, to a message, with every mistake of spelling and where it stands.

    name: review
    tasks:
      - id: list
        capability: inventory.list@1
        input: {folder: "${input.folder}"}
      - id: classify
        capability: license.classify@1
        for_each: tasks.list.output
        timeout: 30s
        retry: [{on: [TRANSIENT, LOST], max_attempts: 5, backoff: 1s}]

Judged here: structure, unknown and repeated fields, types, durations, shapes of names. What the words mean (CEL,
references, cycles, schemas) is for admission to judge; `positions` lets whoever has its mistakes show their lines.
No input makes it raise or hang: size, depth and number of nodes (aliases counted each time) are bounded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antiphon.v1 import failure_pb2, graph_pb2

from . import _json
from ._errors import SetupError
from ._graph import bare
from ._graph_scalars import duration, plain_value, whole_text

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

Node = Any
"""A node of PyYAML, whose own types tell too little; its id is scalar, sequence or mapping."""
Field = Callable[[Node, str], Any]
"""Reads one field from its node, given its path."""

_SIZE = 1 << 20
_NODES = 100_000
_DEPTH = 60
_NAMED_DEPTH, _NAME = 8, 64  # what bounds the length of paths

_KINDS = {
    name.removeprefix("FAILURE_KIND_"): number
    for name, number in failure_pb2.FailureKind.items()
    if number not in (failure_pb2.FAILURE_KIND_UNSPECIFIED, failure_pb2.FAILURE_KIND_NO_QUORUM)
}
_DISTINCT = {"agent": graph_pb2.DISTINCT_AGENT, "instance": graph_pb2.DISTINCT_INSTANCE}
_ON_FAILURE = {
    name.removeprefix("ON_FAILURE_").lower(): number
    for name, number in graph_pb2.OnFailure.items()
    if number != graph_pb2.ON_FAILURE_UNSPECIFIED
}
# As in the rules of antiphon.v1.Graph and GraphTask.
_GRAPH_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,7}")
_VERSION = re.compile(r"([0-9]{1,6}(\.[0-9]{1,6}){0,2})?")
_GRAPH_VERSION = re.compile(rf"{_GRAPH_NAME.pattern}(@[0-9]{{1,6}}(\.[0-9]{{1,6}}){{0,2}})?")
_TASK_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,62}")

_SIGNAL = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}")

_RETRY = "[{on: [TRANSIENT], max_attempts: 5}]"
_ALSO_CALLED = {"on": "kinds", "backoff": "initial_backoff"}
"""Fields whose name in the message, and so in a server's mistakes, is another one."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with a graph: the path of the field, such as tasks[3].when, what to write instead, and where."""

    field: str
    message: str
    code: str
    """A code of `antiphon.v1.GraphMistake`: unknown_field, type, duplicate, value."""
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """What could be read of a file. With mistakes, `graph` holds only what is right, and each task at its place: one of
    which nothing is right is there, empty."""

    graph: graph_pb2.Graph
    positions: Mapping[str, tuple[int, int]]
    """Line and column, from 1, of each field by its path."""
    mistakes: tuple[Mistake, ...]


def load_graph(source: Path | str) -> LoadedGraph:
    """The graph in a file (`Path`) or in a text (`str`). Raises `OSError` for a file that cannot be read, only."""
    reader = _Reader()
    if isinstance(source, Path):
        with source.open("rb") as file:
            data = file.read(_SIZE + 1)
        try:
            text = data.decode("utf-8-sig") if len(data) <= _SIZE else None
        except UnicodeDecodeError as error:
            return reader.unreadable(f"this is not UTF-8 text: byte {error.start} cannot be read")
    else:
        text = source if len(source) <= _SIZE else None
    if text is None:
        return reader.unreadable(f"a graph has at most {_SIZE} bytes")
    return reader.load(text)


class _Reader:
    """Walks the nodes of one document. A method for a field answers None where it has recorded a mistake."""

    def __init__(self) -> None:
        self._positions: dict[str, tuple[int, int]] = {"": (1, 1)}
        self._mistakes: list[Mistake] = []
        self._nodes = 0

    def load(self, text: str) -> LoadedGraph:
        root = self._compose(text)
        values = self._fields(root, "", self._graph_fields()) if root is not None else {}
        if root is not None:
            self._require(root, "", values, "name", "tasks")
        if self._nodes > _NODES:
            values = {}  # where it was given up is no boundary of anything
        graph = graph_pb2.Graph(**{name: value for name, value in values.items() if value is not None})
        self._mistakes.sort(key=lambda one: (one.line, one.column))
        return LoadedGraph(graph, self._positions, tuple(self._mistakes))

    def unreadable(self, message: str) -> LoadedGraph:
        return LoadedGraph(graph_pb2.Graph(), self._positions, (Mistake("", message, "value", 1, 1),))

    def _compose(self, text: str) -> Node | None:
        try:
            import yaml
        except ModuleNotFoundError as error:
            raise SetupError(
                'graph files need PyYAML; in a checkout of Antiphon, run: pip install "./sdk/python[cli]"'
            ) from error
        if text.lstrip()[:1] == "{":
            text = text.replace("\t", " ")  # blanks in JSON (in its strings they are escaped), but not in YAML
        try:
            # The base loader resolves no types: `on` is a word here and `no` is one too, as in YAML 1.2.
            root = yaml.compose(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            if mark is not None:
                self._positions[""] = (mark.line + 1, mark.column + 1)
            self._mistake("", "value", f"this is not YAML: {error.problem or error.context or 'it cannot be read'}")
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            reason = next(iter(str(error).splitlines()), "it cannot be read")
            self._mistake("", "value", f"this is not YAML: {reason}")
        except RecursionError:
            self._mistake("", "value", f"it is nested deeper than {_DEPTH} levels")
        else:
            if root is None:
                self._mistake("", "value", "it is empty; a graph has a name and tasks")
            return root
        return None

    # The shape of a graph

    def _graph_fields(self) -> dict[str, Field]:
        return {
            "name": lambda node, path: self._shaped(
                node, path, _GRAPH_NAME, "a lowercase name, such as review or team.review"
            ),
            "version": lambda node, path: self._shaped(node, path, _VERSION, "a version, such as 1 or 1.2.3"),
            "description": self._text,
            "input_schema": self._schema,
            "tasks": self._tasks,
            "output": self._json,
            "deadline": self._duration,
            "labels": self._labels,
        }

    def _task_fields(self) -> dict[str, Field]:
        return {
            "id": lambda node, path: self._shaped(node, path, _TASK_ID, "a letter, then letters, digits and _"),
            "description": self._text,
            "capability": self._text,
            "needs": lambda node, path: self._list(node, path, self._text),
            "when": self._expression,
            "for_each": self._expression,
            "until": self._until,
            "wait": self._wait,
            "graph": lambda node, path: self._shaped(
                node, path, _GRAPH_VERSION, "a registered graph, such as review@1.2, or review for the newest"
            ),
            "compensate": self._compensate,
            "at_most_once": self._flag,
            "quorum": self._quorum,
            "hedge": self._hedge,
            "cache": self._cache,
            "input": self._json,
            "join": self._join,
            "retry": self._rules,
            "timeout": self._duration,
            "deadline": self._duration,
            "schedule_timeout": self._duration,
            "priority": lambda node, path: self._integer(node, path, 0, 9),
            "on_failure": lambda node, path: self._word(node, path, _ON_FAILURE),
            "constraints": self._constraints,
        }

    def _tasks(self, node: Node, path: str) -> list[graph_pb2.GraphTask] | None:
        tasks = self._list(node, path, self._task, "a list of tasks, such as - {id: a, capability: text.count@1}")
        if tasks == [] and not node.value:
            self._mistake(path, "value", "a graph needs at least one task")
        return tasks

    def _task(self, node: Node, path: str) -> graph_pb2.GraphTask:
        if (values := self._message(node, path, self._task_fields())) is None:
            return graph_pb2.GraphTask()
        known = {key.value for key, _ in node.value if key.id == "scalar"}
        self._require(node, path, values, "id", *(() if known & {"wait", "graph"} else ("capability",)))
        return graph_pb2.GraphTask(**values)

    def _compensate(self, node: Node, path: str) -> graph_pb2.Compensate | None:
        fields: dict[str, Field] = {
            "capability": self._text,
            "input": self._json,
            "retry": self._rules,
            "timeout": self._duration,
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        self._require(node, path, values, "capability")
        return graph_pb2.Compensate(**values)

    def _rules(self, node: Node, path: str) -> list[graph_pb2.RetryRule] | None:
        return self._list(node, path, self._retry, "a list, such as " + _RETRY)

    def _flag(self, node: Node, path: str) -> bool | None:
        value = self._plain(node, path)
        if not isinstance(value, bool):
            self._mistake(path, "value", "write true or false")
            return None
        return value

    def _quorum(self, node: Node, path: str) -> graph_pb2.Quorum | None:
        fields: dict[str, Field] = {
            "of": lambda one, at: self._integer(one, at, 2, 16),
            "agree": lambda one, at: self._integer(one, at, 2, 16),
            "condition": self._expression,
            "distinct": lambda one, at: self._word(one, at, _DISTINCT),
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        self._require(node, path, values, "of", "agree")
        return graph_pb2.Quorum(**values)

    def _hedge(self, node: Node, path: str) -> graph_pb2.Hedge | None:
        fields: dict[str, Field] = {
            "delay": self._duration,
            "quantile": lambda one, at: self._number(one, at, 0.999),
            "share": lambda one, at: self._number(one, at, 0.5),
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        self._require(node, path, values, "delay")
        return graph_pb2.Hedge(**values)

    def _cache(self, node: Node, path: str) -> graph_pb2.Cache | None:
        if (values := self._message(node, path, {"ttl": self._duration})) is None:
            return None
        self._require(node, path, values, "ttl")
        return graph_pb2.Cache(**values)

    def _until(self, node: Node, path: str) -> graph_pb2.Until | None:
        fields: dict[str, Field] = {
            "condition": self._expression,
            "max_iterations": lambda one, at: self._integer(one, at, 1, 1000),
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        self._require(node, path, values, *fields)
        return graph_pb2.Until(**values)

    def _wait(self, node: Node, path: str) -> graph_pb2.Wait | None:
        fields: dict[str, Field] = {
            "time": self._duration,
            "moment": self._expression,
            "signal": lambda one, at: self._shaped(one, at, _SIGNAL, "a name, such as approved"),
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        if len(node.value) != 1:
            self._mistake(
                path, "value", "write one of time, moment and signal, such as {time: 30s} or {signal: approved}"
            )
        return graph_pb2.Wait(**values)

    def _join(self, node: Node, path: str) -> graph_pb2.Join | None:
        if node.id == "scalar":
            if node.value == "all":
                return graph_pb2.Join(all=graph_pb2.AllOf())
            if node.value == "any":
                return graph_pb2.Join(any=graph_pb2.AnyOf())
        elif node.id == "mapping" and node.value:
            fields: dict[str, Field] = {"at_least": lambda one, at: self._integer(one, at, 1, 1000)}
            values = self._message(node, path, fields) or {}
            return graph_pb2.Join(**values) if values else None
        self._mistake(path, "value", "write all, any, or {at_least: 2}")
        return None

    def _retry(self, node: Node, path: str) -> graph_pb2.RetryRule | None:
        fields: dict[str, Field] = {
            "on": lambda one, at: self._list(one, at, lambda kind, place: self._word(kind, place, _KINDS)),
            "max_attempts": lambda one, at: self._integer(one, at, 1, 100),
            "backoff": self._duration,
            "max_backoff": self._duration,
            "multiplier": self._number,
        }
        if (values := self._message(node, path, fields)) is None:
            return None
        self._require(node, path, values, "on", "max_attempts")
        return graph_pb2.RetryRule(**{_ALSO_CALLED.get(name, name): value for name, value in values.items()})

    def _constraints(self, node: Node, path: str) -> graph_pb2.Constraints | None:
        fields: dict[str, Field] = {"agent_labels": self._labels, "max_cost": self._number}
        values = self._message(node, path, fields)
        return None if values is None else graph_pb2.Constraints(**values)

    # Fields

    def _message(self, node: Node, path: str, fields: Mapping[str, Field]) -> dict[str, Any] | None:
        """The values of the fields that are right; None when it is no mapping at all."""
        if not self._enter(node, path, "mapping", "a mapping of " + ", ".join(fields)):
            return None
        return {name: value for name, value in self._fields(node, path, fields).items() if value is not None}

    def _fields(self, node: Node, path: str, fields: Mapping[str, Field]) -> dict[str, Any]:
        if node.id != "mapping":
            self._mistake(path, "type", "write a mapping with the fields " + ", ".join(fields))
            return {}
        values: dict[str, Any] = {}
        for name, place, value in self._entries(node, path):
            if (read := fields.get(name)) is not None:
                values[name] = read(value, place)
            else:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(fields)
                self._mistake(place, "unknown_field", f"there is no field {_short(name)}; {hint}")
        return values

    def _entries(self, node: Node, path: str) -> list[tuple[str, str, Node]]:
        """The entries of a mapping: name, path and node, each name once."""
        entries: dict[str, tuple[str, str, Node]] = {}
        for key, value in node.value:
            if key.id != "scalar":
                self._positions.setdefault(path, _mark(key))
                self._mistake(path, "type", "the name of a field must be a plain word")
                continue
            name = key.value
            place = f"{path}.{name[:_NAME]}" if path else name[:_NAME]
            if name in entries:
                line, column = _mark(key)
                self._mistakes.append(
                    Mistake(place, f"{_short(name)} is there twice; keep one", "duplicate", line, column)
                )
                continue
            self._positions[place] = _mark(key)
            if name in _ALSO_CALLED:
                self._positions[f"{path}.{_ALSO_CALLED[name]}"] = _mark(key)
            entries[name] = (name, place, value)
        return list(entries.values())

    def _require(self, node: Node, path: str, values: Mapping[str, Any], *names: str) -> None:
        if node.id != "mapping":
            return
        given = {key.value for key, _ in node.value if key.id == "scalar"}
        for name in names:
            if name not in given:
                self._mistake(path, "value", f"the field {name} is missing")

    def _list(self, node: Node, path: str, read: Field, wanted: str = "a list, such as [a, b]") -> list[Any] | None:
        if not self._enter(node, path, "sequence", wanted):
            return None
        values = []
        for place, part in enumerate(node.value):
            at = f"{path}[{place}]"
            self._positions[at] = _mark(part)
            values.append(read(part, at))
        return [value for value in values if value is not None]

    def _labels(self, node: Node, path: str) -> dict[str, str] | None:
        if not self._enter(node, path, "mapping", "a mapping of names to texts"):
            return None
        labels = {}
        for name, place, value in self._entries(node, path):
            if whole_text(name) != name:
                self._mistake(place, "value", "half of a character (a lone surrogate) is no text")
            elif (text := self._text(value, place)) is not None:
                labels[name] = text
        return labels

    def _text(self, node: Node, path: str) -> str | None:
        if not self._enter(node, path, "scalar", "a text"):
            return None
        text = whole_text(node.value)
        if text is None:
            self._mistake(path, "value", "half of a character (a lone surrogate) is no text")
        return text

    def _shaped(self, node: Node, path: str, shape: re.Pattern[str], wanted: str) -> str | None:
        text = self._text(node, path)
        if text is not None and not shape.fullmatch(text):
            self._mistake(path, "value", f"{_short(text)} will not do; write {wanted}")
            return None
        return text

    def _expression(self, node: Node, path: str) -> str | None:
        text = self._text(node, path)
        return None if text is None else bare(text)

    def _word(self, node: Node, path: str, words: Mapping[str, int]) -> int | None:
        if not self._enter(node, path, "scalar", "one of " + ", ".join(words)):
            return None
        number = words.get(node.value)
        if number is None:
            near = difflib.get_close_matches(node.value, words, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "write one of " + ", ".join(words)
            self._mistake(path, "value", f"{_short(node.value)} is not known; {hint}")
        return number

    def _duration(self, node: Node, path: str) -> Duration | None:
        if not self._enter(node, path, "scalar", "a duration, such as 30s"):
            return None
        value = duration(node.value)
        if value is None:
            self._mistake(path, "value", "write a duration such as 250ms, 30s, 5m, 1h30m or 2d, at most 365d")
        return value

    def _integer(self, node: Node, path: str, least: int, most: int) -> int | None:
        value = self._plain(node, path)
        if type(value) is not int or not least <= value <= most:
            self._mistake(path, "value", f"write a whole number from {least} to {most}")
            return None
        return value

    def _number(self, node: Node, path: str, most: float = 1_000_000_000) -> float | None:
        value = self._plain(node, path)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            self._mistake(path, "value", f"write a number from 0 to {most}")
            return None
        return float(value)

    def _plain(self, node: Node, path: str) -> Any:
        if not self._enter(node, path, "scalar", "a number"):
            return None
        return plain_value(node.value) if node.style is None else node.value

    def _schema(self, node: Node, path: str) -> str | None:
        if node.id != "mapping":
            self._mistake(path, "type", "write a JSON Schema as a mapping, such as {type: object}")
            return None
        return self._json(node, path)

    def _json(self, node: Node, path: str) -> str | None:
        known = len(self._mistakes)
        value = self._value(node, path, 0)
        if len(self._mistakes) > known:
            return None
        try:
            return _json.dumps(value).decode()
        except ValueError as error:
            self._mistake(path, "value", str(error))
            return None

    def _value(self, node: Node, path: str, depth: int) -> Any:
        """Any JSON value."""
        if depth > _DEPTH:
            self._mistake(path, "value", f"it is nested deeper than {_DEPTH} levels")
            return None
        if not self._enter(node, path, node.id, ""):
            return None
        if node.id == "mapping":
            entries = self._entries(node, path)
            deep = depth >= _NAMED_DEPTH
            return {name: self._value(value, path if deep else place, depth + 1) for name, place, value in entries}
        if node.id == "sequence":
            values = []
            for number, part in enumerate(node.value):
                at = path if depth >= _NAMED_DEPTH else f"{path}[{number}]"
                self._positions.setdefault(at, _mark(part))
                values.append(self._value(part, at, depth + 1))
            return values
        value = plain_value(node.value) if node.style is None else node.value
        text = whole_text(value) if isinstance(value, str) else value
        if isinstance(value, str) and text is None:
            self._mistake(path, "value", "half of a character (a lone surrogate) is no text")
        return text

    def _enter(self, node: Node, path: str, kind: str, wanted: str) -> bool:
        """Whether a node may be looked at: it is what is wanted, untagged, and the document is not too large."""
        self._nodes += 1
        if self._nodes > _NODES:
            if self._nodes == _NODES + 1:
                self._mistake(path, "value", f"the graph has more than {_NODES} parts, aliases counted each time")
            return False
        if node.id != kind:
            self._mistake(path, "type", f"write {wanted}")
            return False
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in ("map", "seq", "str"):
            self._mistake(path, "type", "tags are not allowed in a graph")
            return False
        return True

    def _mistake(self, path: str, code: str, message: str) -> None:
        line, column = self._positions.get(path, self._positions[""])
        self._mistakes.append(Mistake(path, message, code, line, column))


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
