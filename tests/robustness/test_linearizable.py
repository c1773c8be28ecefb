"""The checker of histories refuses those that no order of the operations explains: else it would prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.robustness.linearizable import Operation, faults


def op(kind: str, call: int, returned: int, outcome: str = "done", **more: Any) -> Operation:
    return Operation(0, "k", kind, call, outcome, returned=returned, **more)


ONE = op("put", 0, 10, value="a", revision=5)
TWO = op("put", 20, 30, value="b", revision=7)

EXPLAINED = {
    "one after the other": [ONE, TWO, op("get", 40, 50, value="b", revision=7)],
    "a read beside a write sees what was before": [ONE, TWO, op("get", 22, 28, value="a", revision=5)],
    "a read beside a write sees what comes": [ONE, TWO, op("get", 22, 28, value="b", revision=7)],
    "removed and made anew": [
        ONE,
        op("delete", 20, 30, revision=6),
        op("get", 40, 50, "none"),
        op("put", 60, 70, expected=0, value="c", revision=9),
    ],
    "an expectation that was not met names what was there": [
        ONE,
        op("put", 20, 30, "conflict", expected=3, value="c", revision=5),
        op("delete", 40, 50, "conflict", expected=0, revision=5),
    ],
    "nothing to remove": [op("delete", 0, 10), ONE],
}

UNEXPLAINED = {
    "a read that goes back": [ONE, TWO, op("get", 40, 50, value="a", revision=5)],
    "two reads in the wrong order": [
        ONE,
        op("put", 20, 90, value="b", revision=7),
        op("get", 30, 40, value="b", revision=7),
        op("get", 50, 60, value="a", revision=5),
    ],
    "a write that was lost": [ONE, op("get", 20, 30, "none")],
    "a value nobody wrote": [ONE, op("get", 20, 30, value="x", revision=5)],
    "a removal that came back": [ONE, op("delete", 20, 30, revision=6), op("get", 40, 50, value="a", revision=5)],
    "two that both expected none": [
        op("put", 0, 10, expected=0, value="a", revision=5),
        op("put", 0, 10, expected=0, value="b", revision=7),
    ],
    "a revision that does not grow": [ONE, op("put", 20, 30, value="b", revision=4)],
    "a conflict without a reason": [ONE, op("put", 20, 30, "conflict", expected=5, value="b", revision=5)],
    "a conflict with what was never there": [ONE, op("put", 20, 30, "conflict", expected=4, value="b", revision=6)],
    "a removal of nothing although something was there": [ONE, op("delete", 20, 30)],
    "a removal of something although nothing was there": [op("delete", 20, 30, revision=4)],
}


@pytest.mark.parametrize("history", EXPLAINED.values(), ids=EXPLAINED)
def test_a_history_that_some_order_explains_is_accepted(porcupine: Path, history: list[Operation]) -> None:
    assert faults(porcupine, history) == []


@pytest.mark.parametrize("history", UNEXPLAINED.values(), ids=UNEXPLAINED)
def test_a_history_that_is_not_linearizable_is_refused(porcupine: Path, history: list[Operation]) -> None:
    assert faults(porcupine, history) == [f"k: its {len(history)} operations are not linearizable"]


def test_keys_are_judged_one_by_one(porcupine: Path) -> None:
    other = Operation(1, "other", "get", 5, "none", returned=6)
    assert faults(porcupine, [ONE, other]) == []
    wrong = Operation(1, "other", "get", 5, "done", value="a", revision=5, returned=6)
    assert faults(porcupine, [ONE, wrong]) == ["other: its 1 operations are not linearizable"]


def test_what_is_no_history_is_not_taken_for_a_good_one(porcupine: Path) -> None:
    with pytest.raises(AssertionError, match="no operation of a history"):
        faults(porcupine, [op("get", 0, 10, "conflict")])
