"""Placement: who may have a task, who gets it, who waits, and what is written down about it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from antiphon.v1 import run_pb2
from antiphon_orchestrator.engine.events import Placement
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.placement.fleet import Fleet, Instance, Need, Offered, Refused, Waiter
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_rig import fleet, instance

from tests.fakes.plans import CLIENT, payload

NONE: frozenset[str] = frozenset()
INTEGER = '{"type": "integer"}'


def need(
    capability: str = "text.work@1", labels: frozenset[str] = NONE, cost: float = 0.0, **agent_labels: str
) -> Need:
    return Need("demo", capability, tuple(sorted(agent_labels.items())), cost, labels)


def place(of: Fleet, asked: Need | None = None, text: bytes | None = None) -> Placement | Refused | None:
    return of.place(asked or need(), CLIENT, "client", payload("x") if text is None else text, 1)


def chosen(result: Placement | Refused | None) -> str:
    assert isinstance(result, Placement)
    return result.instance


class Waiting:
    """A fleet with a list of what it handed over."""

    def __init__(self) -> None:
        self.fleet = fleet()
        self.given: list[tuple[Waiter, Offered]] = []
        self.fleet.deliver = lambda waiter, offered: self.given.append((waiter, offered))
        self.count = 0

    def wait(self, asked: Need | None = None, priority: int = 0, deadline: int = 100) -> str:
        self.count += 1
        self.fleet.wait(asked or need(), priority, deadline, 0, f"r{self.count}", 0, 0)
        return f"r{self.count}"

    @property
    def runs(self) -> list[str]:
        return [waiter.run_id for waiter, _ in self.given]


@pytest.mark.parametrize(
    ("settings_of_instance", "asked", "reason"),
    [
        ({"version": "2.0"}, need(), "version"),
        ({}, need(labels=frozenset({"pii"})), "clearance"),
        ({"clearance": ["pii"]}, need(labels=frozenset({"pii", "secret"})), "clearance"),
        ({"labels": {"region": "us"}}, need(region="eu"), "constraint"),
        ({}, need(region="eu"), "constraint"),
        ({"cost": 3.0}, need(cost=2.0), "cost"),
    ],
)
def test_an_agent_that_does_not_fit_gets_nothing_and_the_reason_is_told(
    settings_of_instance: dict[str, Any], asked: Need, reason: str
) -> None:
    of = fleet()
    of.attach(instance(**settings_of_instance))
    assert place(of, asked) is None
    explained = of.explain(asked)
    assert [(refusal.reason, refusal.count) for refusal in explained.refusals] == [(reason, 1)]
    assert reason in explained.summary


@pytest.mark.parametrize(
    ("settings_of_instance", "asked"),
    [
        ({"version": "1.7"}, need("text.work@1.2")),
        ({"clearance": ["pii", "secret"]}, need(labels=frozenset({"pii"}))),
        ({"labels": {"region": "eu", "gpu": "yes"}}, need(region="eu")),
        ({"cost": 2.0}, need(cost=2.0)),
        ({"cost": 9.0}, need()),
    ],
)
def test_an_agent_that_fits_gets_it(settings_of_instance: dict[str, Any], asked: Need) -> None:
    of = fleet()
    of.attach(instance(**settings_of_instance))
    assert chosen(place(of, asked)) == "s/i/a"


def test_who_fits_and_has_free_slots_is_named_whoever_else_does_not() -> None:
    of = fleet()
    of.attach(instance("a", version="2.0"))
    of.attach(instance("b"))
    explained = of.explain(need())
    assert explained.summary == "s/i/b fits and has free slots"
    assert [(refusal.reason, refusal.count) for refusal in explained.refusals] == [("version", 1)]


def test_suspended_and_draining_agents_finish_and_take_nothing_new() -> None:
    of = fleet()
    of.attach(instance("a"))
    of.attach(instance("b"))
    of.suspend("demo", "a", True)
    of.drain("s/i/b")
    assert place(of) is None
    assert {r.reason for r in of.explain(need()).refusals} == {"suspended", "draining"}
    of.suspend("demo", "a", False)
    assert chosen(place(of)) == "s/i/a"


def test_a_misspelt_capability_is_told_what_is_offered_now_and_here() -> None:
    of = fleet()
    of.attach(instance())
    assert of.explain(need("text.wrok@1")).summary.endswith("; did you mean text.work?")
    assert of.explain(need("image.crop@1")).summary.endswith("; start an agent that does")
    assert "did you mean" not in of.explain(need("text.wrok@1")._replace(namespace="other")).summary
    of.detach("s/i/a")
    assert "did you mean" not in of.explain(need("text.wrok@1")).summary


def test_other_namespaces_are_not_seen() -> None:
    of = fleet()
    of.attach(instance())
    assert of.place(need()._replace(namespace="other"), CLIENT, "client", b"", 1) is None
    assert of.explain(need()._replace(namespace="other")).considered == 0


def test_the_faster_and_less_busy_instance_is_chosen_and_the_decision_says_so() -> None:
    of = fleet()
    for name in ("a", "b", "c", "d"):
        of.attach(instance(name, slots=2))
    of.instance("s/i/c").latency = 0.001  # type: ignore[union-attr]
    of.instance("s/i/d").in_use = 2  # type: ignore[union-attr]
    result = place(of)
    assert isinstance(result, Placement)
    decision = run_pb2.RoutingDecision.FromString(result.decision)
    assert result.instance == decision.chosen == "s/i/c"
    assert (decision.considered, decision.capability) == (4, "text.work@1.0")
    assert decision.score == pytest.approx(0.001)
    assert {other.instance for other in decision.others} == {"s/i/a", "s/i/b"}
    assert [(refusal.reason, refusal.count) for refusal in decision.refusals] == [("no_slot", 1)]
    assert decision.policy.permit and decision.policy.decision_id


def test_a_decision_names_at_most_eight_others() -> None:
    of = fleet()
    for number in range(16):
        of.attach(instance(f"a{number}"))
    result = place(of)
    assert isinstance(result, Placement)
    decision = run_pb2.RoutingDecision.FromString(result.decision)
    assert (len(decision.others), decision.considered) == (8, 16)


def test_a_denial_by_policy_is_a_final_failure_with_its_decision() -> None:
    of = fleet()
    of.attach(instance(clearance=["restricted"]))
    result = place(of, need(labels=frozenset({"restricted"})))
    assert isinstance(result, Refused)
    assert (result.failure.kind, result.failure.retryable) == (FailureKind.POLICY, False)
    assert "restricted" in result.failure.message and result.failure.code
    assert of.instance("s/i/a").in_use == 0  # type: ignore[union-attr]


def test_an_input_that_breaks_the_schema_is_a_final_failure_with_its_place() -> None:
    of = fleet()
    of.attach(instance(input_schema='{"properties": {"a": {"type": "integer"}}, "type": "string"}'))
    assert isinstance(place(of), Placement)
    of = fleet()
    of.attach(instance(input_schema=INTEGER))
    result = place(of)
    assert isinstance(result, Refused)
    assert (result.failure.kind, result.failure.retryable) == (FailureKind.INVALID_INPUT, False)
    assert "text.work@1.0" in result.failure.message
    assert of.instance("s/i/a").in_use == 0  # type: ignore[union-attr]


def test_a_reserved_slot_that_may_not_be_used_goes_to_the_next_who_waits() -> None:
    of = Waiting()
    restricted = need(labels=frozenset({"restricted"}))
    of.wait(restricted, priority=9)
    second = of.wait()
    of.fleet.attach(instance(clearance=["restricted"]))
    assert of.runs == ["r1"]
    waiter, offered = of.given[0]
    result = of.fleet.take(offered, restricted, CLIENT, "client", payload("x"), 1, waiter)
    assert isinstance(result, Refused)
    assert of.runs == ["r1", second]
    assert of.fleet.instance("s/i/a").in_use == 1  # type: ignore[union-attr]


def test_an_output_is_checked_by_its_schema_also_while_its_agents_are_away() -> None:
    of = fleet()
    of.attach(instance(output_schema=INTEGER))
    of.detach("s/i/a")
    assert of.check_output("demo", "text.work@1.0", payload("x")) is not None
    assert of.check_output("other", "text.work@1.0", payload("x")) is None


def test_waiters_go_by_priority_then_deadline_then_arrival_whatever_they_wait_for() -> None:
    of = Waiting()
    other = need("text.other@1")
    late = of.wait(deadline=200)
    early = of.wait(deadline=50)
    first = of.wait(other, priority=3)
    tie_one, tie_two = of.wait(other, deadline=60), of.wait(deadline=60)
    of.fleet.attach(instance(slots=0, capabilities=("text.work", "text.other")))
    expected = [first, early, tie_one, tie_two, late]
    for slots in range(1, 6):
        of.fleet.window("s/i/a", slots + 1, slots)
        assert of.runs == expected[:slots]


def test_one_kind_of_task_does_not_starve_another_that_needs_the_same_agent() -> None:
    of = Waiting()
    for _ in range(50):
        of.wait(deadline=1_000)
    urgent = of.wait(need("text.other@1"), deadline=10)
    of.fleet.attach(instance(slots=1, capabilities=("text.work", "text.other")))
    assert of.runs == [urgent]


def test_whoever_comes_later_does_not_overtake_those_who_wait() -> None:
    of = Waiting()
    of.fleet.attach(instance())
    assert chosen(place(of.fleet)) == "s/i/a"
    first = of.wait()
    assert place(of.fleet) is None
    of.fleet.give_back("s/i/a")
    assert of.runs == [first]
    assert place(of.fleet) is None


def test_an_older_window_does_not_hold() -> None:
    of = fleet()
    of.attach(instance(slots=1))
    assert of.window("s/i/a", 5, 3) is not None
    assert of.window("s/i/a", 4, 9) is None
    assert of.instance("s/i/a").slots == 3  # type: ignore[union-attr]
    assert of.window("s/i/unknown", 9, 9) is None


def test_slots_survive_a_reattach_in_both_orders() -> None:
    of = fleet()
    of.hold("s/i/a")  # recovered before the sidecar came
    of.attach(instance(slots=2))
    assert chosen(place(of)) == "s/i/a"
    assert place(of) is None
    of.detach("s/i/a")
    of.give_back("s/i/a")
    of.attach(instance(slots=2))
    assert of.instance("s/i/a").in_use == 1  # type: ignore[union-attr]
    of.attach(instance(slots=2))  # a newer stream of the same incarnation
    assert of.instance("s/i/a").in_use == 1  # type: ignore[union-attr]
    of.give_back("s/i/a")
    of.detach("s/i/a")
    of.give_back("s/i/a")  # one too many must not become a debt
    of.attach(instance(slots=2))
    assert of.instance("s/i/a").in_use == 0  # type: ignore[union-attr]


def test_a_clock_that_is_set_back_makes_nobody_faster_than_instant() -> None:
    of = fleet()
    of.attach(instance())
    place(of)
    of.give_back("s/i/a", latency=-3600.0)
    assert of.instance("s/i/a").latency == 0.0  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_no_instance_ever_has_more_out_than_its_slots_and_nobody_waits_beside_a_free_one(seed: int) -> None:
    rng = random.Random(seed)
    of = Waiting()
    out: Counter[str] = Counter()
    needs = [need(), need("text.other@1"), need(region="eu")]
    slots: dict[str, int] = {}
    generation = 1
    for _ in range(150):
        name = rng.choice("abc")
        instance_id = f"s/i/{name}"
        move = rng.randrange(6)
        if move == 0:
            made: Instance = instance(
                name, rng.randrange(3), concurrency=3, capabilities=("text.work", "text.other"),
                labels={"region": rng.choice(["eu", "us"])},
            )  # fmt: skip
            slots[instance_id], made.window_generation = made.slots, generation
            of.fleet.attach(made)
        elif move == 1:
            of.fleet.detach(instance_id)
            slots.pop(instance_id, None)
        elif move == 2 and instance_id in slots:
            generation += 1
            fewest = min(3, out[instance_id])  # a smaller window counts once what is out has come back
            slots[instance_id] = rng.randrange(fewest, 4)
            of.fleet.window(instance_id, generation, slots[instance_id])
        elif move == 3 and out[instance_id]:
            out[instance_id] -= 1
            of.fleet.give_back(instance_id, 0.1)
        else:
            asked = rng.choice(needs)
            result = of.fleet.place(asked, CLIENT, "client", payload("x"), 1)
            if isinstance(result, Placement):
                assert out[result.instance] < slots[result.instance]
                out[result.instance] += 1
            else:
                assert result is None
                of.wait(asked, rng.randrange(3), rng.randrange(3))
        for _, offered in of.given:
            out[offered.instance.instance_id] += 1
        of.given.clear()
        for live in of.fleet.instances():
            assert live.in_use == out[live.instance_id]
        for asked in needs:
            waits = asked in of.fleet._queues
            assert not waits or all(o.instance.free <= 0 for o in of.fleet._fit(asked))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_who_leaves_a_queue_is_passed_over_and_nothing_of_it_stays(seed: int) -> None:
    rng = random.Random(seed)
    of = Waiting()
    needs = [need(), need("text.other@1"), need(region="eu")]
    waiting: dict[str, Need] = {}
    of.fleet.attach(instance(slots=0, capabilities=("text.work", "text.other"), labels={"region": "eu"}))
    for generation in range(2, 80):
        if rng.random() < 0.7 or not waiting:
            asked = rng.choice(needs)
            waiting[of.wait(asked, rng.randrange(3))] = asked
        elif rng.random() < 0.7:
            run_id = rng.choice(sorted(waiting))
            del waiting[run_id]
            of.fleet.leave(run_id, 0, 0)
        else:
            of.fleet.window("s/i/a", generation, sum(i.in_use for i in of.fleet.instances()) + rng.randrange(3))
        for run_id in of.runs:
            assert waiting.pop(run_id, None) is not None, "it had left"
        of.given.clear()
        assert set(of.fleet._queues) == set(waiting.values())
        assert sum(map(len, of.fleet._queues.values())) <= 2 * len(waiting) + 3
    for run_id in waiting:
        of.fleet.leave(run_id, 0, 0)
    assert not any((of.fleet._queues, of.fleet._asking, of.fleet._firsts, of.fleet._waiting, of.fleet._left))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_each_slot_goes_to_the_first_whom_it_can_serve_however_many_kinds_wait(seed: int) -> None:
    rng = random.Random(seed)
    of = Waiting()
    kinds = [need(cost=float(n), region=region) for n in range(1, 9) for region in ("eu", "us")]
    kinds += [need("text.other@1", cost=float(n)) for n in range(1, 9)]
    waiting: dict[str, tuple[int, int, int, bool]] = {}
    of.fleet.attach(instance(slots=0, capabilities=("text.work", "text.other"), labels={"region": "eu"}, cost=4.0))
    out = 0
    for generation in range(2, 200):
        if rng.random() < 0.6:
            asked, priority, deadline = rng.choice(kinds), rng.randrange(3), rng.randrange(5)
            fits = asked.max_cost >= 4 and ("region", "us") not in asked.agent_labels
            run_id = of.wait(asked, priority, deadline)
            waiting[run_id] = (-priority, deadline, of.count, fits)
        elif waiting and rng.random() < 0.4:
            run_id = rng.choice(sorted(waiting))
            del waiting[run_id]
            of.fleet.leave(run_id, 0, 0)
        else:
            more = rng.randrange(4)
            fitting = sorted(run_id for run_id, order in waiting.items() if order[3])
            expected = sorted(fitting, key=lambda run_id: waiting[run_id])[:more]
            of.fleet.window("s/i/a", generation, out + more)
            assert of.runs == expected
            out += len(expected)
            for run_id in expected:
                del waiting[run_id]
            of.given.clear()
            of.fleet.window("s/i/a", generation, out)
    assert sum(map(len, of.fleet._firsts.values())) <= 2 * len(of.fleet._queues) + 16


def test_a_slot_that_comes_free_does_not_look_at_every_kind_of_task_that_waits() -> None:
    of = Waiting()
    of.fleet.attach(instance(slots=1))
    place(of.fleet)
    kinds = [need(cost=float(number + 1)) for number in range(1_000)]
    runs = [of.wait(kind) for kind in kinds]
    for number in range(100):
        of.fleet.give_back("s/i/a")
        assert of.runs[number:] == [runs[number]]
    assert len(of.fleet._eligible) <= 101, "who was looked at, is remembered there"


def test_a_slot_that_comes_free_looks_only_at_those_it_can_serve() -> None:
    of = Waiting()
    of.fleet.attach(instance(slots=1))
    place(of.fleet)
    for number in range(50):
        of.wait(need(f"other.thing{number}@1"))
    mine = of.wait()
    looked: list[Need] = []
    fit = of.fleet._fit
    of.fleet._fit = lambda asked: looked.append(asked) or fit(asked)  # type: ignore[method-assign,func-returns-value]
    of.fleet.give_back("s/i/a")
    assert of.runs == [mine] and set(looked) == {need()}
