"""Expressions: CEL over input, tasks, context, item and index, compiled once and evaluated within limits.

cel_expr_python is hidden behind `Expression` for these reasons: its run-time errors come back as values that are true
in Python, so the type of every result is checked; it converts whatever is bound, so only the parts that an expression
refers to are bound; it cuts texts at a NUL, and takes none with half a surrogate pair, so these are refused; and it has
no memory limit, and its map and filter copy their result for every item, so an evaluation whose result could grow too
large is refused before it starts.

A plain chain of selections, the usual case, is answered without CEL and with the same result. The one difference is
that what CEL cannot hold, integers beyond 64 bits and texts with a NUL or half a surrogate pair, passes unharmed.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from math import isfinite
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from .mistakes import Code, did_you_mean
from .paths import ABSENT, Lookup, Selection, origins_of, source_of
from .syntax import ROOTS, Facts, Path, facts_of
from .values import HALF_PAIR, Unusable, in_utf8

MAX_LENGTH = 4096
MAX_BOUND_BYTES = 1024 * 1024
MAX_LOOP_ITEMS = 2000  # a map over 2,000 items takes some 60 ms and 60 MB, four times that for twice as many
MAX_GROWN_BYTES = 128 * 1024 * 1024
ITERATION_BUDGET = 10_000  # cel-cpp's own, over all macros of one evaluation

_REPORT = re.compile(r"^(?:INVALID_ARGUMENT: )?ERROR: <input>:(-?\d+):(-?\d+): (.*)$", re.MULTILINE)
_STATUS = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")


@cache
def _environment() -> tuple[Any, tuple[Any, Any]]:
    """The compiler, and the types of results that are errors. Loaded with the first expression: 6 MB that an
    orchestrator without graphs does without."""
    from cel_expr_python import cel

    known = dict.fromkeys(ROOTS, cel.Type.DYN) | dict.fromkeys(("index", "iteration"), cel.Type.INT)
    return cel.NewEnv(variables=known), (cel.Type.ERROR, cel.Type.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an expression; the message says where in it, counted from 1."""

    code: Code
    message: str


class ExpressionInvalid(Exception):
    """The expression is refused; all problems that the compiler reports."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


class Expression:
    """A compiled expression. `references` are the longest static paths in it, sorted; `result` is its static type,
    "DYN" when only the values decide."""

    __slots__ = ("_bound", "_facts", "_program", "origins", "pure", "references", "result", "selection", "text")

    def __init__(self, text: str) -> None:
        """Compiles; raises ExpressionInvalid."""
        if len(text) > MAX_LENGTH:
            raise ExpressionInvalid([Problem(Code.EXPRESSION, f"is longer than {MAX_LENGTH} characters")])
        if "\0" in text:
            raise ExpressionInvalid([Problem(Code.EXPRESSION, "holds a NUL character")])
        if in_utf8(text) != text:
            raise ExpressionInvalid([Problem(Code.EXPRESSION, HALF_PAIR)])
        try:
            self._program = _environment()[0].compile(text)
            self.result: str = self._program.return_type().name()
            self._facts: Facts = facts_of(self._program.serialize())
        except RuntimeError as error:
            raise ExpressionInvalid(_problems(str(error))) from None
        except DecodeError:  # protobuf reads no tree that is deeper than 100, and a macro makes several levels
            message = "is nested too deeply: macros such as map and exists, one inside the other"
            raise ExpressionInvalid([Problem(Code.EXPRESSION, message)]) from None
        self.text = text
        self.pure = self._facts.pure
        self.selection = Selection(self.pure) if self.pure else None
        """What a plain chain of selections is answered by."""
        self.references = tuple(sorted(self._facts.references))
        self.origins = origins_of(self.references)
        whole = self._facts.references
        self._bound = [
            (source_of(path), path)
            for path in self.references
            if not any(path[:length] in whole for length in range(1, len(path)))
        ]

    def evaluate(self, lookup: Lookup) -> object:
        """The value, as JSON holds it: timestamps and durations as protobuf's JSON writes them, bytes in base64.

        Raises Unusable for a missing field, a wrong type, any other run-time error, and anything beyond the limits.
        """
        if self.selection is not None:
            return self.selection.value(lookup)
        if self._facts.alike_keys:  # their conversion to Python would lose all but one without a word
            raise Unusable("makes a map with keys that are alike, as 1, 1u and true are")
        bindings = self._bind(lookup)
        try:
            result = self._program.eval(data=bindings)
        except RuntimeError as error:
            raise Unusable(_STATUS.sub("", str(error))[:500]) from None
        kind = result.type()
        if kind in _environment()[1]:
            raise Unusable(_STATUS.sub("", str(result.value()))[:500])
        try:
            return _jsonable(result.plain_value())
        except RecursionError:
            raise Unusable("gives a value that is nested too deeply") from None
        except RuntimeError as error:
            raise Unusable(_STATUS.sub("", str(error))[:500]) from None

    def _bind(self, lookup: Lookup) -> dict[str, object]:
        """Nested maps with what the paths select and nothing else; a field that is missing stays missing."""
        bindings: dict[str, object] = {}
        sources: set[Path] = set()
        size = widest = 0
        for source, path in self._bound:
            value, bytes_bound = lookup(source)
            if source not in sources:
                sources.add(source)
                size += bytes_bound
            widest = max(widest, _measure(_place(bindings, source, path, value)))
        if size > MAX_BOUND_BYTES:
            raise Unusable(f"reads {size} bytes; {MAX_BOUND_BYTES} is the limit of one expression")
        self._check_growth(size, widest)
        return bindings

    def _check_growth(self, size: int, widest: int) -> None:
        facts = self._facts
        items = max(widest, facts.literal_items, 1) * facts.widening
        if facts.loops and items > MAX_LOOP_ITEMS:
            raise Unusable(f"walks over more than {MAX_LOOP_ITEMS} items; use for_each")
        rounds = min(items ** (facts.loops if facts.copies else facts.maps), ITERATION_BUDGET)
        if size * (1 + facts.copies) * facts.widening * rounds > MAX_GROWN_BYTES:
            raise Unusable("could give a result far larger than a payload may be; use for_each")


def _place(bindings: dict[str, object], source: Path, path: Path, value: object) -> object:
    """Puts what the path selects from a source's value into the bindings, and returns it."""
    target, name = bindings, path[0]
    for place in range(1, len(path)):
        if value is ABSENT and place == len(source) - 1:
            target.setdefault(name, {})
            return None
        if place >= len(source):
            if not isinstance(value, dict):
                break  # CEL refuses the selection, or `has` answers
            found = path[place] in value
        inner = target.setdefault(name, {})
        assert isinstance(inner, dict)  # paths that go on are never inside one that ends: __init__ leaves those out
        target, name = inner, path[place]
        if place >= len(source):
            if not found:
                return None
            assert isinstance(value, dict)
            value = value[name]
    target[name] = value
    return value


def _measure(value: object) -> int:
    """Number of items of the largest list or map inside the value. Refuses texts that CEL would not see whole."""
    widest = 0
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, str):
            if "\0" in here:  # cel_expr_python cuts a text there, and "root\0" would equal "root"
                raise Unusable("reads a text with a NUL character; pass it whole")
        elif isinstance(here, dict):
            widest = max(widest, len(here))
            waiting.extend(here)
            waiting.extend(here.values())
        elif isinstance(here, list):
            widest = max(widest, len(here))
            waiting.extend(here)
    return widest


def _jsonable(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise Unusable("gives a number that JSON has no form for")
        return value
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        fields = {_key(key): _jsonable(item) for key, item in value.items()}
        if len(fields) != len(value):
            raise Unusable("gives a map with two keys that JSON writes alike")
        return fields
    if isinstance(value, bytearray | bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        moment = Timestamp()
        moment.FromDatetime(value)
        return moment.ToJsonString()
    if isinstance(value, timedelta):
        span = Duration()
        span.FromTimedelta(value)
        return span.ToJsonString()
    raise Unusable("gives a value that JSON has no form for")


def _key(key: object) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def _problems(report: str) -> list[Problem]:
    """The compiler's report, one problem a line, in our words."""
    found = [
        _problem(int(line), int(column), message.removesuffix(" [INVALID_ARGUMENT]"))
        for line, column, message in _REPORT.findall(report)
    ]
    return found or [Problem(Code.EXPRESSION, _STATUS.sub("", report))]


def _problem(line: int, column: int, message: str) -> Problem:
    undeclared = _UNDECLARED.search(message)
    if undeclared is not None and "." in undeclared[1]:
        # The compiler reports a chain of names at its last dot; the first name is the one that is wrong.
        column = max(1, column - len(undeclared[1].rpartition(".")[0]))
    where = "" if line < 1 else f"column {column}: " if line == 1 else f"line {line}, column {column}: "
    if undeclared is not None:
        name = undeclared[1].partition(".")[0]
        hint = (
            did_you_mean(name, ROOTS)
            or "; an expression knows input, tasks, context, inside a for_each item and index, and inside a loop"
            " iteration and previous"
        )
        return Problem(Code.UNKNOWN_REFERENCE, f"{where}unknown name {name!r}{hint}")
    if message.startswith("Syntax error"):
        message = message.partition(" expecting ")[0].replace("'<EOF>'", "its end")
        return Problem(Code.EXPRESSION, f"{where}{message[0].lower()}{message[1:]}")
    typed = "overload" in message or "operand" in message or "type" in message
    return Problem(Code.TYPE if typed else Code.EXPRESSION, f"{where}{message}")
