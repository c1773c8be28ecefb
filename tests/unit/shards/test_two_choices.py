"""Placement among many candidates: two are drawn, and what that must not cost anybody."""

from __future__ import annotations

from collections import Counter

import pytest
from antiphon.v1 import run_pb2
from antiphon_orchestrator.engine.events import Placement
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.placement.fleet import FEW, Fleet, Need, Offered, Refused
from shard_rig import fleet, instance

from tests.fakes.plans import CLIENT, payload

NEED = Need("demo", "text.work@1", (), 0.0, frozenset())


def crowd(number: int, slots: int = 10) -> Fleet:
    of = fleet()
    for one in range(number):
        of.attach(instance(f"a{one}", slots))
    return of


def place(of: Fleet, need: Need = NEED) -> Placement | Refused | None:
    result = of.place(need, CLIENT, "client", payload("x"), 1)
    assert result is None or isinstance(result, Placement | Refused)
    return result


def test_work_spreads_over_all_of_many_and_nobody_has_more_than_its_slots() -> None:
    of = crowd(100)
    assert all(isinstance(place(of), Placement) for _ in range(500))
    out = Counter(one.in_use for one in of.instances())
    # The fullest of 100 bins with 5 each on average: 11 and more by single draws, 7 and rarely 8 by the better of two.
    assert max(out) <= 9 and sum(number * count for number, count in out.items()) == 500
    assert all(isinstance(place(of), Placement) for _ in range(500))
    assert {one.in_use for one in of.instances()} == {10}
    assert place(of) is None


def test_the_better_of_two_is_chosen_and_the_decision_names_the_other() -> None:
    of = crowd(FEW + 1)
    for _ in range(50):
        result = place(of)
        assert isinstance(result, Placement)
        decision = run_pb2.RoutingDecision.FromString(result.decision)
        (other,) = decision.others
        assert other.instance != decision.chosen and decision.score <= other.score + 1e-4
        assert decision.considered == FEW + 1


def test_of_few_the_best_is_chosen_whatever_chance_says() -> None:
    for _ in range(20):
        of = crowd(FEW)
        of.instance("s/i/a7").latency = 0.001  # type: ignore[union-attr]
        result = place(of)
        assert isinstance(result, Placement) and result.instance == "s/i/a7"


def test_the_only_free_slot_among_many_is_found() -> None:
    of = crowd(200, slots=1)
    for one in of.instances():
        one.in_use = 1
    of.give_back("s/i/a137")
    result = place(of)
    assert isinstance(result, Placement) and result.instance == "s/i/a137"


def test_what_policy_denies_to_two_of_many_it_denies_to_all() -> None:
    of = fleet()
    for one in range(FEW + 5):
        of.attach(instance(f"a{one}", 2, clearance=["restricted"]))
    result = place(of, NEED._replace(labels=frozenset({"restricted"})))
    assert isinstance(result, Refused) and result.failure.kind is FailureKind.POLICY


@pytest.mark.parametrize("number", [FEW, FEW + 1, 60])
def test_a_slot_that_comes_free_goes_to_who_waits_however_many_there_are(number: int) -> None:
    of = crowd(number, slots=1)
    given: list[tuple[str, str]] = []

    def deliver(waiter: object, offered: Offered) -> None:
        given.append((waiter.run_id, offered.instance.instance_id))  # type: ignore[attr-defined]

    of.deliver = deliver
    for one in of.instances():
        one.in_use = 1
    for one in range(3):
        of.wait(NEED, 0, 9, 0, f"r{one}", 0, 0)
    of.give_back("s/i/a11")
    of.give_back("s/i/a3")
    assert given == [("r0", "s/i/a11"), ("r1", "s/i/a3")]
    of.suspend("demo", "a5", True)
    of.give_back("s/i/a5")
    assert len(given) == 2
    of.suspend("demo", "a5", False)
    assert given[2:] == [("r2", "s/i/a5")]
