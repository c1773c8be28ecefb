"""Answers the expressions of one compiled graph for the engine: conditions, inputs, fan-outs and the run's output.

Pure CPU, no state of a run except the lists of fan-outs that are being given to the engine in chunks. Every method
raises EvaluationFailed and nothing else. A payload that is made here carries the labels of all that went into it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from antiphon.v1.payload_pb2 import Label, Payload
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ..engine.plan import EvaluationFailed, View
from .expression import Expression
from .mapping import Mapping
from .paths import ABSENT, Lookup, Origin, kind_of, origins_of, path_text, source_of
from .syntax import Path
from .values import MAX_INLINE_BYTES, Known, Unusable, Values, encode_json, inline_bytes, same_value

CHUNK_SECONDS = 0.005
"""After which no further input of a member is made at once: an expression may take a hundred milliseconds."""
MAX_LABELS = 64
WARNED_OF = 8
"""Tasks that a warning names one by one."""


@dataclass(frozen=True, slots=True)
class TaskExpressions:
    """The expressions of one task; None where its graph has none."""

    when: Expression | None
    for_each: Expression | None
    input: Mapping | None
    moment: Expression | None = None
    until: Expression | None = None
    quorum: Expression | None = None

    def references(self) -> tuple[str, ...]:
        """The field and path of every reference, such as "when tasks.a.output.ok", sorted within each field.

        All fields but `input` are control inputs: that, or when, the task runs at all tells something about them.
        """
        fields = (
            ("when", self.when),
            ("for_each", self.for_each),
            ("input", self.input),
            ("wait", self.moment),
            ("until", self.until),
            ("quorum", self.quorum),
        )
        return tuple(f"{name} {path_text(path)}" for name, part in fields if part for path in part.references)


@dataclass(frozen=True, slots=True)
class _Items:
    """The list of a fan-out: whole payloads when it is another fan-out's output, otherwise values and their labels."""

    payloads: Sequence[bytes] | None
    values: Sequence[object]
    labels: tuple[Label, ...]
    item_size: int

    def __len__(self) -> int:
        return len(self.values if self.payloads is None else self.payloads)


class _Turn(NamedTuple):
    """Of a loop: the number of an iteration, and an output, that of the one before or, in its condition, its own."""

    number: int
    output: bytes


class GraphEvaluator:
    """Implements engine.plan.Evaluator."""

    def __init__(
        self,
        ids: Sequence[str],
        tasks: Sequence[TaskExpressions],
        output: Mapping | None,
        sinks: Sequence[int],
        values: Values,
    ) -> None:
        """`ids` and `tasks` in the order of the graph; without `output` the sinks' outputs are the run's, by id, as far
        as they fit."""
        self._ids = tuple(ids)
        self._index_of = {id: index for index, id in enumerate(ids)}
        self._tasks = tuple(tasks)
        self._output = output
        self._sinks = tuple(sinks)
        self._values = values

    def when(self, task: int, view: View) -> bool:
        """The task's condition."""
        expression = self._tasks[task].when
        try:
            value = True if expression is None else expression.evaluate(self._lookup(view))
        except Exception as error:
            raise _failed("when", error) from error
        if not isinstance(value, bool):
            raise EvaluationFailed("when", f"gives {kind_of(value)}, not true or false")
        return value

    def input(self, task: int, view: View) -> bytes:
        """The task's input as a serialised Payload; b"" is null."""
        mapping = self._tasks[task].input
        try:
            return b"" if mapping is None else self._render(mapping, view, None, 0)
        except Exception as error:
            raise _failed("input", error) from error

    def members(self, task: int, view: View, first: int, limit: int) -> tuple[int, list[bytes]]:
        """Number of members of a fan-out and the inputs of members first … first+limit-1, counted from 1.

        The list is evaluated with the first chunk and kept until the last, so that all chunks see the same one even
        when more of a join's needs end meanwhile. There are fewer inputs, one at least, when they take long to make.
        """
        items = None if first == 1 else view.kept.get(task)
        try:
            if not isinstance(items, _Items):
                items = self._items(task, view)
        except Exception as error:
            raise _failed("for_each", error) from error
        inputs: list[bytes] = []
        until = time.monotonic() + CHUNK_SECONDS
        try:
            for index in range(first - 1, min(len(items), first + limit - 1)):
                inputs.append(self._member_input(task, view, items, index))
                if time.monotonic() >= until:
                    break
        except Exception as error:
            raise _failed("input", error) from error
        if first - 1 + len(inputs) < len(items):
            view.kept[task] = items
        else:
            view.kept.pop(task, None)
        return len(items), inputs

    def moment(self, task: int, view: View, now: int) -> int:
        """Until when a task waits that begins to at `now`; microseconds since 1970."""
        expression = self._tasks[task].moment
        try:
            if expression is None:
                raise Unusable("is not set")
            value = expression.evaluate(self._lookup(view))
            if not isinstance(value, str):
                raise Unusable(f"gives {kind_of(value)}, not a timestamp or a duration")
            return _moment(value, now)
        except Exception as error:
            raise _failed("wait", error) from error

    def iteration(self, task: int, view: View, number: int, previous: bytes) -> bytes:
        """The input of an iteration, counted from 1; b"" is null."""
        mapping = self._tasks[task].input
        try:
            return b"" if mapping is None else self._render(mapping, view, None, 0, _Turn(number, previous))
        except Exception as error:
            raise _failed("input", error) from error

    def done(self, task: int, view: View, number: int, output: bytes) -> bool:
        """Whether a loop is done after an iteration with that output."""
        expression = self._tasks[task].until
        try:
            if expression is None:
                raise Unusable("is not set")
            value = expression.evaluate(self._lookup(view, turn=_Turn(number, output)))
        except Exception as error:
            raise _failed("until", error) from error
        if not isinstance(value, bool):
            raise EvaluationFailed("until", f"gives {kind_of(value)}, not true or false")
        return value

    def agrees(self, task: int, view: View, output: bytes, other: bytes) -> bool:
        """Whether an answer of a quorum agrees with an earlier one: by its condition, or, without, by value."""
        expression = self._tasks[task].quorum
        try:
            if expression is None:
                return self._same(output, other)
            elsewhere = self._lookup(view)
            answers: dict[Path, bytes] = {("output",): output, ("other",): other}

            def lookup(source: Path) -> tuple[object, int]:
                answer = answers.get(source)
                return elsewhere(source) if answer is None else self._value(answer, source)

            value = expression.evaluate(lookup)
        except Exception as error:
            raise _failed("quorum", error) from error
        if not isinstance(value, bool):
            raise EvaluationFailed("quorum", f"gives {kind_of(value)}, not true or false")
        return value

    def _same(self, one: bytes, other: bytes) -> bool:
        """Whether two payloads hold the same: as JSON, where they are, or else byte by byte or by digest."""
        if not one or not other:
            return (not one or self._values.known(one).value is None) and (
                not other or self._values.known(other).value is None
            )
        try:
            return same_value(self._values.known(one).value, self._values.known(other).value)
        except Unusable:
            first, second = Payload.FromString(one), Payload.FromString(other)
            return (first.inline, first.blob.digest, first.media_type) == (
                second.inline,
                second.blob.digest,
                second.media_type,
            )

    def output(self, view: View) -> tuple[bytes, str]:
        """The run's output as a serialised Payload, and what is missing in it; "" when nothing is."""
        try:
            if self._output is not None:
                return self._render(self._output, view, None, 0), ""
            return self._of_sinks(view)
        except Exception as error:
            raise _failed("output", error) from error

    def _of_sinks(self, view: View) -> tuple[bytes, str]:
        """What the graph did not ask for fails no run: null stands for what does not fit, and the warning says so."""
        try:
            return self._as_far_as_it_fits(view)
        except (
            Unusable
        ) as error:  # the names of the tasks alone are too long, or what they answered has too many labels
            return b"", f"the output is null: that of all tasks nothing depends on {error}; it is in each task"

    def _as_far_as_it_fits(self, view: View) -> tuple[bytes, str]:
        lookup = self._lookup(view)
        origins = origins_of(("tasks", self._ids[sink], "output") for sink in self._sinks)
        fields = {source[1]: "null" for source, _ in origins}
        room = MAX_INLINE_BYTES - len(encode_json(dict.fromkeys(fields)))
        missing: dict[str, str] = {}
        told: list[Origin] = []
        for origin in origins:
            id = origin.source[1]
            try:
                text = encode_json(lookup(origin.source)[0])
                size = len(inline_bytes(text)) - len("null")
                if size > room:
                    raise Unusable(f"does not fit beside the others in {MAX_INLINE_BYTES} bytes")
            except Unusable as error:
                missing[id] = str(error).removeprefix(path_text(origin.source)).strip()
                continue
            room -= size
            fields[id] = text
            told.append(origin)
        labels = self._labels(told, view, None)
        text = ",".join(f"{encode_json(id)}:{text}" for id, text in fields.items())
        return self._payload(inline_bytes("{" + text + "}"), labels), _warning(missing)

    def _items(self, task: int, view: View) -> _Items:
        expression = self._tasks[task].for_each
        if expression is None:
            raise Unusable("is not set")
        pure = expression.pure
        if pure is not None and pure == source_of(pure) and pure[0] == "tasks" and pure[2] == "output":
            outputs = view.output(self._index_of[pure[1]])
            if isinstance(outputs, list):
                return _Items(outputs, (), (), 0)
        lookup = self._lookup(view)
        value = expression.evaluate(lookup)
        if not isinstance(value, list):
            raise Unusable(f"gives {kind_of(value)}, not a list")
        size = sum(lookup(source)[1] for source in {source for source, _ in expression.origins})
        return _Items(None, value, self._labels(expression.origins, view, None), size // max(1, len(value)))

    def _member_input(self, task: int, view: View, items: _Items, index: int) -> bytes:
        mapping = self._tasks[task].input
        if mapping is not None:
            return self._render(mapping, view, items, index)
        if items.payloads is not None:
            return items.payloads[index]
        return self._payload(inline_bytes(encode_json(items.values[index])), items.labels)

    def _render(
        self, mapping: Mapping, view: View, items: _Items | None, index: int, turn: _Turn | None = None
    ) -> bytes:
        if mapping.source is not None:
            whole = self._whole(mapping.source, view, items, index, turn)
            if whole is not None:
                return whole
        data = mapping.render(self._lookup(view, items, index, turn))
        return self._payload(data, self._labels(mapping.origins, view, items, index, turn))

    def _payload(self, data: bytes, labels: tuple[Label, ...]) -> bytes:
        """A value as a serialised payload, known before its schema is asked for."""
        message = Payload()
        message.inline = data
        if labels:
            message.labels.extend(labels)
        result = message.SerializeToString()
        self._values.remember(result, Known(data, "", False, message if labels else None))
        return result

    def _whole(self, source: Path, view: View, items: _Items | None, index: int, turn: _Turn | None) -> bytes | None:
        """The payload that a source is, untouched; None when it has to be made from values."""
        if source == ("input",):
            return view.input
        if source == ("item",) and items is not None and items.payloads is not None:
            return items.payloads[index]
        if source[0] == "tasks" and source[2] == "output":
            output = view.output(self._index_of[source[1]])
            return b"" if output is None else output if isinstance(output, bytes) else None
        if source[0] == "context":
            return view.entry(source[1], source[2])
        if source == ("previous",) and turn is not None:
            return turn.output
        return None

    def _lookup(self, view: View, items: _Items | None = None, index: int = 0, turn: _Turn | None = None) -> Lookup:
        def lookup(source: Path) -> tuple[object, int]:
            root = source[0]
            if root == "tasks" and len(source) == 3:
                return self._of_task(source, view)
            if root == "input":
                return self._value(view.input, source)
            if root == "item" and items is not None:
                if items.payloads is not None:
                    return self._value(items.payloads[index], source)
                return items.values[index], items.item_size
            if root == "index" and items is not None:
                return index, 0
            if root == "context" and len(source) == 3:
                entry = view.entry(source[1], source[2])
                return (ABSENT, 0) if entry is None else self._value(entry, source)
            if turn is not None:
                return (turn.number, 0) if root == "iteration" else self._value(turn.output, source)
            raise Unusable(f"{path_text(source)} is not known here")

        return lookup

    def _of_task(self, source: Path, view: View) -> tuple[object, int]:
        _, id, what = source
        task = self._index_of[id]
        if what == "output":
            output = view.output(task)
            if isinstance(output, list):
                members = [self._value(member, source) for member in output]
                return [value for value, _ in members], sum(size for _, size in members)
            return self._value(output or b"", source)
        if what == "state":
            return view.state(task), 0
        failure = view.failure(task)
        return (None if failure is None else {"kind": failure[0], "message": failure[1]}), 0

    def _value(self, data: bytes, source: Path) -> tuple[object, int]:
        if not data:
            return None, 0
        known = self._values.known(data)
        try:
            return known.value, known.size
        except Unusable as error:
            raise Unusable(f"{path_text(source)} {error}") from None

    def _labels(
        self,
        origins: Iterable[Origin],
        view: View,
        items: _Items | None,
        index: int = 0,
        turn: _Turn | None = None,
    ) -> tuple[Label, ...]:
        """The labels of everything referred to, each key and value once."""
        joined: dict[tuple[str, str], Label] = {}
        for source, inside in origins:
            if source == ("item",) and items is not None and items.payloads is None:
                joined.update(((label.key, label.value), label) for label in items.labels)
                continue
            for data in self._payloads(source, view, items, index, turn):
                known = self._values.known(data)
                if known.payload is not None:
                    for label in _labels_of(known.payload, inside):
                        joined.setdefault((label.key, label.value), label)
        if len(joined) > MAX_LABELS:
            raise Unusable(f"joins {len(joined)} labels; {MAX_LABELS} is the most a payload carries")
        return tuple(joined.values())

    def _payloads(
        self, source: Path, view: View, items: _Items | None, index: int, turn: _Turn | None
    ) -> Iterable[bytes]:
        if source == ("input",):
            return (view.input,)
        if source == ("item",) and items is not None and items.payloads is not None:
            return (items.payloads[index],)
        if source[0] == "tasks" and source[2] == "output":
            output = view.output(self._index_of[source[1]])
            return output if isinstance(output, list) else (output or b"",)
        if source[0] == "context":
            return (view.entry(source[1], source[2]) or b"",)
        if source == ("previous",) and turn is not None:
            return (turn.output,)
        return ()


def _warning(missing: dict[str, str]) -> str:
    if not missing:
        return ""
    named = [f"{id} ({why})" for id, why in list(missing.items())[:WARNED_OF]]
    more = f" and {len(missing) - WARNED_OF} more" if len(missing) > WARNED_OF else ""
    return (
        f"the output has null for what these tasks answered: {', '.join(named)}{more}; it is in each task, and an"
        " `output` of the graph can pass one of them whole"
    )


def _labels_of(payload: Payload, inside: Path) -> Iterable[Label]:
    """Labels of the payload and of those of its parts that overlap with the path inside it.

    A part of a fan-out's list is not told apart: the pointer of a member's label begins inside the member.
    """
    yield from payload.labels
    for part in payload.field_labels:
        names = [name.replace("~1", "/").replace("~0", "~") for name in part.pointer.split("/")[1:]]
        if all(name == step for name, step in zip(names, inside, strict=False)):
            yield from part.labels


def _moment(text: str, now: int) -> int:
    """The moment that a timestamp or a duration in protobuf's JSON means, in microseconds since 1970."""
    try:
        if text.endswith("s"):
            span = Duration()
            span.FromJsonString(text)
            return now + span.ToMicroseconds()
        moment = Timestamp()
        moment.FromJsonString(text)
        return moment.ToMicroseconds()
    except ValueError:
        raise Unusable(
            f"gives {text[:60]!r}, which is no moment such as 2026-01-31T12:00:00Z and no duration such as 90s"
        ) from None


def _failed(field: str, error: Exception) -> EvaluationFailed:
    """The failure of one task. What is no Unusable is a bug, ours or a library's: the run it befalls fails with it, and
    not the shard, which would meet the same run again after each restart."""
    if isinstance(error, Unusable):
        return EvaluationFailed(field, str(error))
    return EvaluationFailed(field, f"cannot be evaluated: {type(error).__name__}: {str(error)[:200]}")
