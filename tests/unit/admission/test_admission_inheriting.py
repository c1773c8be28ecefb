"""Graphs that were made by someone who knew labelled things."""

from __future__ import annotations

from admission_views import RunView, graph, labels_of, members_of, payload, task, value_of
from antiphon.v1.graph_pb2 import Until
from antiphon_orchestrator.admission import Inheriting, Values, compile_graph

MADE = graph(
    task("literal", input='"written into the graph"'),
    task("members", for_each="[1, 2]"),
    task("loop", input='"${iteration}"', until=Until(condition="output > 1", max_iterations=2)),
    output='"${tasks.literal.output}"',
)


def test_all_that_is_made_carries_the_labels_of_what_its_maker_knew() -> None:
    made = Inheriting(compile_graph(MADE).plan.evaluator, Values())
    view = RunView(payload({"name": "Ada"}, "pii", "region:eu"), {0: payload("x", "own")})
    literal = made.input(0, view)
    assert value_of(literal) == "written into the graph"
    assert labels_of(literal) == ["pii", "region:eu"]
    count, inputs = members_of(made, view, 1)
    assert count == 2 and [labels_of(one) for one in inputs] == [["pii", "region:eu"]] * 2
    assert labels_of(made.iteration(2, view, 1, b"")) == ["pii", "region:eu"]
    assert labels_of(made.output(view)[0]) == ["own", "pii", "region:eu"]
    assert made.done(2, view, 1, payload(2)) is True


def test_labels_of_parts_are_labels_of_the_whole() -> None:
    made = Inheriting(compile_graph(MADE).plan.evaluator, Values())
    part = {"pointer": "/name", "labels": [{"key": "pii"}]}
    assert labels_of(made.input(0, RunView(payload({"name": "Ada"}, field_labels=[part])))) == ["pii"]


def test_without_labels_nothing_is_touched() -> None:
    inner = compile_graph(MADE).plan.evaluator
    made, view = Inheriting(inner, Values()), RunView(payload(1))
    assert made.input(0, view) == inner.input(0, view)
    assert made.input(0, RunView()) == inner.input(0, RunView())
