"""Whether two answers of a quorum agree: by value, or by a condition of the graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from admission_views import RunView, graph, payload, task
from antiphon.v1.graph_pb2 import Quorum
from antiphon.v1.payload_pb2 import BlobReference, Payload
from antiphon_orchestrator.admission import compile_graph
from antiphon_orchestrator.engine.plan import EvaluationFailed


def agree(one: bytes, other: bytes, condition: str = "", view: RunView | None = None) -> bool:
    asked = task("a", quorum=Quorum(agree=2, of=2, condition=condition))
    return compile_graph(graph(asked)).plan.evaluator.agrees(0, view or RunView(), one, other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [1, None]}, {"b": [1.0, None], "a": 1}, True),
        ([1, 2], [2, 1], False),
        (1, True, False),
        ([1], [True], False),
        (0, False, False),
        ({"a": None}, {}, False),
        ("1", 1, False),
        (None, None, True),
    ],
)
def test_without_a_condition_answers_agree_that_are_the_same_json_value(one: Any, other: Any, same: bool) -> None:
    assert agree(payload(one, origin_attempt_id="r/a/1/1"), payload(other, origin_attempt_id="r/a/2/1")) is same
    assert agree(payload(other), payload(one)) is same


def test_null_is_null_whether_it_was_spelled_or_not() -> None:
    assert agree(b"", b"") and agree(b"", payload(None)) and agree(payload(None), b"")
    assert not agree(b"", payload(0)) and not agree(payload(""), b"")


def test_values_that_are_kept_by_reference_agree_by_their_digest() -> None:
    def blob(digit: str) -> bytes:
        return Payload(blob=BlobReference(digest=digit * 64, size=9)).SerializeToString()

    assert agree(blob("a"), blob("a")) and not agree(blob("a"), blob("b")) and not agree(blob("a"), payload(1))


def test_what_is_not_json_agrees_byte_by_byte_and_by_its_media_type() -> None:
    def text(data: bytes, media_type: str = "text/plain") -> bytes:
        return Payload(inline=data, media_type=media_type).SerializeToString()

    assert agree(text(b"x"), text(b"x"))
    assert not agree(text(b"x"), text(b"y")) and not agree(text(b"x"), text(b"x", "text/html"))


def test_a_condition_sees_both_answers_and_what_every_expression_knows() -> None:
    near = "output.total - other.total <= input.near && other.total - output.total <= input.near"
    view = RunView(input=payload({"near": 2}))
    assert agree(payload({"total": 10}), payload({"total": 12}), near, view)
    assert not agree(payload({"total": 10}), payload({"total": 13}), near, view)


def test_the_condition_of_the_handbook_compares_whole_numbers_with_others() -> None:
    handbook = Path(__file__).parents[3] / "docs/graph.md"
    (near,) = re.findall(r'^    condition: "(.*)"$', handbook.read_text(), re.MULTILINE)
    for one, other in ((100, 100.0), (100.0, 100.005), (7, 7)):
        assert agree(payload({"total": one}), payload({"total": other}), near)
    assert not agree(payload({"total": 100}), payload({"total": 100.5}), near)
    assert agree(payload({"total": 100}), payload({"total": 100.0})), "by value they are the same"


@pytest.mark.parametrize("answer", [{}, {"total": "much"}, None])
def test_an_answer_that_cannot_be_compared_is_an_error_and_never_an_agreement(answer: Any) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        agree(payload({"total": 1}), payload(answer), "output.total - other.total == 0")
    assert failed.value.field == "quorum"


def test_a_condition_that_gives_no_truth_is_an_error() -> None:
    with pytest.raises(EvaluationFailed, match="not true or false"):
        agree(payload({"ok": "yes"}), payload(1), "output.ok")
