"""Expressions of a graph that was made by someone who knew labelled things: all they give carries those labels."""

from __future__ import annotations

from antiphon.v1.payload_pb2 import Payload

from ..engine.plan import Evaluator, View
from .values import Values


class Inheriting:
    """An evaluator whose answers carry the labels of the run's input, whatever they were made of. What an agent writes
    into a graph as a literal may be what it was told in confidence."""

    def __init__(self, inner: Evaluator, values: Values) -> None:
        self._inner = inner
        self._values = values

    def when(self, task: int, view: View) -> bool:
        return self._inner.when(task, view)

    def input(self, task: int, view: View) -> bytes:
        return self._labelled(view, self._inner.input(task, view))

    def members(self, task: int, view: View, first: int, limit: int) -> tuple[int, list[bytes]]:
        count, inputs = self._inner.members(task, view, first, limit)
        return count, [self._labelled(view, payload) for payload in inputs]

    def moment(self, task: int, view: View, now: int) -> int:
        return self._inner.moment(task, view, now)

    def iteration(self, task: int, view: View, number: int, previous: bytes) -> bytes:
        return self._labelled(view, self._inner.iteration(task, view, number, previous))

    def done(self, task: int, view: View, number: int, output: bytes) -> bool:
        return self._inner.done(task, view, number, output)

    def agrees(self, task: int, view: View, output: bytes, other: bytes) -> bool:
        return self._inner.agrees(task, view, output, other)

    def output(self, view: View) -> tuple[bytes, str]:
        payload, warning = self._inner.output(view)
        return self._labelled(view, payload), warning

    def _labelled(self, view: View, payload: bytes) -> bytes:
        source = view.input
        if not source or not self._values.known(source).label_keys:
            return payload
        given, made = Payload.FromString(source), Payload.FromString(payload)
        present = {(label.key, label.value) for label in made.labels}
        for label in (*given.labels, *(label for part in given.field_labels for label in part.labels)):
            if (label.key, label.value) not in present:
                present.add((label.key, label.value))
                made.labels.append(label)
        return made.SerializeToString()
