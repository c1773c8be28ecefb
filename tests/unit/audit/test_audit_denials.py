"""Refusals: the first of each kind at once, the rest counted, and no more than a bounded number of anything."""

from __future__ import annotations

from antiphon_orchestrator.audit import Fact
from antiphon_orchestrator.audit.denials import CALLERS, DIFFERENT, WINDOW, Denials


def refusal(decision: str, principal: str = "p") -> Fact:
    return Fact("operate", "demo", principal, "Agent::demo/a", "DENIED", decision_id=decision)


def test_the_first_is_recorded_and_equal_ones_are_counted() -> None:
    denials, fact = Denials(), refusal("d")
    assert denials.note(fact, 0) is fact
    assert [denials.note(refusal("d"), moment) for moment in (1, 2, WINDOW - 1)] == [None, None, None]
    assert denials.due(WINDOW - 1) == []
    (counted,) = denials.due(WINDOW)
    assert (counted.decision_id, counted.details) == ("d", {"repeated": "3"})
    assert not denials.open


def test_one_that_came_alone_is_recorded_once() -> None:
    denials = Denials()
    denials.note(refusal("d"), 0)
    assert denials.due(WINDOW) == []
    assert denials.note(refusal("d"), WINDOW) is not None


def test_different_refusals_of_one_caller_are_recorded_up_to_a_number() -> None:
    denials = Denials()
    noted = [denials.note(refusal(str(number)), 0) for number in range(DIFFERENT + 30)]
    assert sum(fact is not None for fact in noted) == DIFFERENT
    (counted,) = denials.due(WINDOW)
    assert (counted.decision_id, counted.details) == (str(DIFFERENT + 29), {"further": "30"})


def test_a_caller_does_not_use_up_what_others_have() -> None:
    denials = Denials()
    for number in range(2 * DIFFERENT):
        denials.note(refusal(str(number), "loud"), 0)
    assert denials.note(refusal("x", "quiet"), 0) is not None


def test_callers_beyond_a_number_share_what_one_has() -> None:
    denials = Denials()
    noted = [denials.note(refusal(str(number), f"p{number}"), 0) for number in range(CALLERS + 2 * DIFFERENT)]
    assert sum(fact is not None for fact in noted) == CALLERS + DIFFERENT
