"""Limits of policy: what may begin and be out at once, who waits for it, who is next, and what people are told."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from antiphon.store.v1 import journal_pb2
from antiphon.v1 import run_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.engine.events import Placement
from antiphon_orchestrator.placement.fleet import Fleet, Need, Schedule
from antiphon_orchestrator.placement.limits import Full
from antiphon_orchestrator.placement.pacing import divide
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.leaving import abandon
from antiphon_orchestrator.shards.recovery import recover_record
from antiphon_orchestrator.shards.turn import MAX_BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_rig import Rig, instance, returned

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan

BASE = '@id("base") permit(principal, action, resource);'
MANY = 1000


def policies(*limits: str, epoch: int = 1) -> PolicyBundle:
    """Everything is permitted, dispatch with these annotations."""
    text = BASE + "".join(
        f'@id("quota{number}") @obligation("limit") {limit} permit(principal, action == Action::"dispatch", resource);'
        for number, limit in enumerate(limits)
    )
    return PolicyBundle.of(epoch, [PolicyFile("limits.cedar", text)])


class World(Rig):
    """A shard under limits, whose fleet goes by the shard's clock."""

    def __init__(self, *limits: str, weights: tuple[str, ...] = ()) -> None:
        self.policy = CedarPolicies(policies(*limits))
        self.now = 0
        fleet = Fleet(self.policy, SchemaSet(Values()), lambda: self.now, Schedule(weights=weights))
        super().__init__(fleet)
        self.wakes = 0
        fleet.limits.woken = self._woken

    def _woken(self) -> None:
        self.wakes += 1

    def go(self, name: str, **how: Any) -> None:
        self.tell(self.submit(name, plan(Node()), **how))

    def done(self, *attempt_ids: str) -> None:
        self.tell(*(self.report(attempt_id) for attempt_id in attempt_ids))

    @property
    def runs(self) -> list[str]:
        return [offer.partition("/")[0] for offer in self.offers]

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.fleet.look()
        self.tell()


def test_no_more_are_out_than_a_limit_lets_and_the_next_goes_when_one_comes_back() -> None:
    world = World('@concurrent("2")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(5):
        world.go(f"r{number}")
    assert world.runs == ["r0", "r1"] and world.fleet.limits.waiting == 3
    world.done(world.offers[1])
    assert world.runs == ["r0", "r1", "r2"]
    world.done(world.offers[0], world.offers[2])
    assert world.runs == ["r0", "r1", "r2", "r3", "r4"]
    world.done(*world.offers[3:])
    assert {world.run(f"r{number}").state.name for number in range(5)} == {"SUCCEEDED"}
    assert not world.fleet.limits.waiting


def test_a_rate_lets_a_burst_begin_and_then_one_for_each_token() -> None:
    world = World('@rate("2/s") @burst("3")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(8):
        world.go(f"r{number}")
    assert len(world.offers) == 3 and world.wakes
    assert world.fleet.due() == world.now + SECOND // 2 + 1
    world.pass_time(0.4)
    assert len(world.offers) == 3
    world.pass_time(0.11)
    assert len(world.offers) == 4
    world.pass_time(1)
    assert len(world.offers) == 6
    world.pass_time(60)
    assert len(world.offers) == 8 and world.fleet.due() is None


def test_a_rate_and_a_number_both_hold() -> None:
    world = World('@rate("1/s") @burst("5") @concurrent("2")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(6):
        world.go(f"r{number}")
    assert len(world.offers) == 2
    assert world.fleet.due() is None, "tokens are there: an attempt that comes back is waited for, not the time"
    world.done(*world.offers)
    assert len(world.offers) == 4
    world.done(*world.offers[2:])
    assert len(world.offers) == 5
    world.pass_time(1.1)
    assert len(world.offers) == 6


def test_limits_of_several_policies_all_hold() -> None:
    world = World('@concurrent("3")', '@concurrent("2") @per("capability")')
    world.fleet.attach(instance(slots=MANY, capabilities=("text.work", "text.other")))
    for number in range(4):
        world.go(f"a{number}")
        world.tell(world.submit(f"b{number}", plan(Node(capability="text.other@1"))))
    assert Counter(name[0] for name in world.runs) == {"a": 2, "b": 1}


@pytest.mark.parametrize(("per", "out"), [("", 1), ("capability", 2), ("agent", 2), ("capability, agent", 4)])
def test_each_of_what_per_names_has_a_count_of_its_own(per: str, out: int) -> None:
    world = World(f'@concurrent("1") @per("{per}")')
    for name in "ab":
        world.fleet.attach(instance(name, slots=MANY, capabilities=("text.work", "text.other")))
    for number in range(6):
        world.go(f"a{number}")
        world.tell(world.submit(f"b{number}", plan(Node(capability="text.other@1"))))
    assert len(world.offers) == out


def test_an_agent_at_its_limit_is_passed_over_for_another_and_the_decision_says_so() -> None:
    world = World('@concurrent("1") @per("agent")')
    world.fleet.attach(instance("a", slots=9))
    world.fleet.attach(instance("b", slots=9))
    world.fleet.instance("s/i/a").latency = 0.001  # type: ignore[union-attr]
    world.go("r0")
    world.go("r1")
    first, second = (world.run(name).task(0, 0).attempts[0].placement for name in ("r0", "r1"))
    assert (first.agent, second.agent) == ("a", "b")
    decision = run_pb2.RoutingDecision.FromString(second.decision)
    assert [(refusal.reason, refusal.count) for refusal in decision.refusals] == [("limit", 1)]
    assert "limit(quota0,concurrent=1,per=agent)" in decision.policy.obligations


def test_a_task_that_two_agents_have_no_room_for_goes_to_whichever_has_first_or_to_a_third() -> None:
    world = World('@concurrent("1") @per("agent")')
    world.fleet.attach(instance("a", slots=9))
    world.fleet.attach(instance("b", slots=9))
    for number in range(5):
        world.go(f"r{number}")
    agents = [world.run(f"r{n}").task(0, 0).attempts[0].placement.agent for n in range(2)]
    assert sorted(agents) == ["a", "b"] and world.fleet.limits.waiting == 3
    world.done(world.offers[agents.index("a")])
    world.done(world.offers[agents.index("b")])
    assert world.runs[2:] == ["r2", "r3"]
    world.fleet.attach(instance("c", slots=9))
    world.tell()
    assert world.runs[2:] == ["r2", "r3", "r4"] and not world.fleet.limits.waiting
    world.done(*world.offers[2:])
    counters = world.fleet.limits._counters.values()
    assert all((counter.out, counter.called, counter.left, counter.parked.size) == (0, 0, 0, 0) for counter in counters)


def test_who_waits_goes_by_priority_then_deadline_and_nobody_overtakes() -> None:
    world = World('@concurrent("1")')
    world.fleet.attach(instance(slots=MANY))
    world.go("first")
    world.go("late", deadline_time=world.now + 900 * SECOND)
    world.go("early", deadline_time=world.now + 90 * SECOND)
    world.go("urgent", priority=5, deadline_time=world.now + 900 * SECOND)
    for _ in range(4):
        world.done(world.offers[-1])
    assert world.runs == ["first", "urgent", "early", "late"]


def test_who_is_called_up_in_a_turn_that_is_full_goes_before_who_came_later() -> None:
    world = World('@concurrent("1")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(3):
        world.go(f"r{number}")
    world.shard.inbox.append(world.report(world.offers[0]))
    world.turn(itertools.count().__next__)  # its time is over after one input
    assert [type(item) for item in world.shard.inbox] == [i.CalledUp]
    large = world.submit("large", plan(Node()), input=payload("x" * MAX_BYTES))
    world.shard.backlog.push("demo", (0, 0), large)
    assert world.turn().size > MAX_BYTES
    world.tell()
    assert world.runs == ["r0", "r1"]
    world.done(world.offers[1])
    assert world.runs == ["r0", "r1", "r2"]


def test_an_attempt_that_comes_back_makes_room_for_who_waits() -> None:
    world = World('@concurrent("1")')
    world.fleet.attach(instance(slots=MANY))
    world.go("r0")
    world.go("r1")
    world.tell(world.report(world.offers[0], returned()))
    assert world.runs[:2] == ["r0", "r1"] and world.states("r0") == ["READY"]
    world.done(world.offers[1])
    assert world.runs == ["r0", "r1", "r0"]


def test_who_has_the_last_slot_and_who_has_the_room_of_a_limit_do_not_wait_for_each_other() -> None:
    world = World('@concurrent("1") @per("capability")')
    world.fleet.attach(instance(slots=2, capabilities=("text.work", "text.other")))
    for name in ("r0", "r1", "r2"):
        world.go(name)
    world.tell(world.submit("other", plan(Node(capability="text.other@1"))))
    world.go("r3")  # no slot is free any more: it waits for one, the two before it for the limit
    assert world.runs == ["r0", "other"] and world.fleet.limits.waiting == 2
    world.done(world.offers[0])
    for number in range(3, 5):
        assert len(world.offers) == number
        world.done(world.offers[-1])
    world.done(world.offers[-1])
    assert {world.run(f"r{number}").state.name for number in range(4)} == {"SUCCEEDED"}
    assert not world.fleet.limits.waiting and not world.fleet.waiting


def test_a_task_that_ends_while_it_waits_leaves_nothing_behind() -> None:
    world = World('@concurrent("1")')
    world.fleet.attach(instance(slots=MANY))
    world.go("r0")
    for number in range(1, 5):
        world.go(f"r{number}", deadline_time=world.now + number * SECOND)
    world.now += 3 * SECOND
    world.tell()
    assert world.fleet.limits.waiting == 1
    world.done(world.offers[0])
    assert world.runs == ["r0", "r4"]


def test_a_new_owner_counts_what_it_finds() -> None:
    world = World('@concurrent("2")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(4):
        world.go(f"r{number}")
    other = World('@concurrent("2")')
    other.now, other.log = world.now, list(world.log)
    for seq, records in other.log:
        for raw in records:
            recover_record(other.shard, seq, raw, journal_pb2.Record.FromString(raw), lambda submitted: plan(Node()))
    other.shard.resume()
    other.fleet.attach(instance(slots=MANY))
    other.tell()
    assert not other.offers and other.fleet.limits.waiting == 2
    other.done(world.offers[0])
    assert other.runs == ["r2"]
    abandon(other.shard, other.fleet, None)
    assert not other.fleet.limits.waiting


def test_a_change_of_policy_lets_those_who_wait_ask_again() -> None:
    world = World('@concurrent("1")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(4):
        world.go(f"r{number}")
    assert len(world.offers) == 1
    world.policy.activate(policies('@concurrent("3")', epoch=2))
    world.fleet.limits.policy_changed()
    world.tell()
    assert len(world.offers) == 3 and world.fleet.limits.waiting == 1
    world.policy.activate(policies(epoch=3))
    world.fleet.limits.policy_changed()
    world.tell()
    assert len(world.offers) == 4


def test_replicas_enforce_their_parts_which_are_the_whole_together() -> None:
    for whole, replicas in ((7, 3), (6, 3), (3, 3)):
        parts = 0
        for rank in range(replicas):
            world = World(f'@concurrent("{whole}")')
            world.fleet.limits.divide(replicas, rank)
            world.fleet.attach(instance(slots=MANY))
            for number in range(whole + 1):
                world.go(f"r{number}")
            parts += len(world.offers)
        assert parts == whole
    lonely = World('@concurrent("1")')
    lonely.fleet.limits.divide(3, 2)
    lonely.fleet.attach(instance(slots=MANY))
    lonely.go("r0")
    assert len(lonely.offers) == 1, "less than one is no part"
    slow = World('@rate("4/s") @burst("4")')
    slow.fleet.limits.divide(4, 0)
    slow.fleet.attach(instance(slots=MANY))
    for number in range(6):
        slow.go(f"r{number}")
    assert len(slow.offers) == 1
    slow.pass_time(3.01)
    assert len(slow.offers) == 2, "its burst is a part, too"
    slow.fleet.limits.divide(1, 0)
    slow.pass_time(1)
    assert len(slow.offers) == 6


def test_a_replica_that_is_not_among_those_that_are_there_keeps_its_part() -> None:
    world = World('@concurrent("3")')
    world.fleet.attach(instance(slots=MANY))
    divide(world.fleet.limits, ["a", "b", "c"], "b")
    divide(world.fleet.limits, [], "b")
    divide(world.fleet.limits, ["a"], "b")
    for number in range(3):
        world.go(f"r{number}")
    assert len(world.offers) == 1


def test_a_limit_that_namespaces_share_is_shared_by_weight() -> None:
    world = World('@concurrent("1")', weights=("big=3",))
    needs = {name: Need(name, "text.work@1", (), 0.0, frozenset()) for name in ("big", "small")}
    for name in needs:
        one = instance(name, slots=MANY)
        one.namespace = name
        world.fleet.attach(one)
    fleet, order = world.fleet, []
    called: list[Any] = []
    fleet.limits.call = lambda waiter, counter: called.append((waiter, counter))
    holding = fleet.place(needs["big"], CLIENT, "client", payload("x"), 1)
    assert isinstance(holding, Placement)
    for number in range(40):
        for name, need in needs.items():
            full = fleet.place(need, CLIENT, "client", payload("x"), 1)
            assert isinstance(full, Full)
            fleet.wait(need, 0, 9, 0, f"{name}{number}", 0, 0, full)
    namespace = "big"
    for _ in range(40):
        fleet.limits.free(namespace, holding)
        ((waiter, counter),) = called
        called.clear()
        namespace = waiter.run_id.rstrip("0123456789")
        order.append(namespace)
        result = fleet.place(needs[namespace], CLIENT, "client", payload("x"), 1, waiter)
        assert isinstance(result, Placement)
        holding = result
        fleet.limits.settle(counter, waiter)
    assert Counter(order) == {"big": 30, "small": 10}


def test_a_task_that_waits_for_a_limit_is_told_which() -> None:
    world = World('@concurrent("1") @rate("60/m")')
    world.fleet.attach(instance(slots=MANY))
    world.go("r0")
    world.go("r1")
    task = world.run("r1").task(0, 0)
    explained = world.fleet.explain(world.shard.need(world.run("r1"), task), ("r1", 0, 0))
    assert explained.summary == ("policy quota0 limits it: 1 of 1 attempts are out, 1 a second may begin; 1 tasks wait")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_no_limit_is_passed_and_nobody_is_forgotten(seed: int) -> None:
    rng = random.Random(seed)
    world = World('@concurrent("3")', '@rate("5/s") @burst("2") @per("capability")')
    world.fleet.attach(instance(slots=4, capabilities=("text.work", "text.other")))
    out: set[str] = set()
    seen = 0
    for number in range(60):
        move = rng.randrange(5)
        if move < 2:
            capability = rng.choice(["text.work@1", "text.other@1"])
            world.tell(world.submit(f"r{number}", plan(Node(capability=capability)), priority=rng.randrange(3)))
        elif move == 2 and out:
            attempt = rng.choice(sorted(out))
            out.remove(attempt)
            world.tell(world.report(attempt, returned() if rng.random() < 0.3 else None))
        elif move == 3:
            world.pass_time(rng.random() / 3)
        out.update(world.offers[seen:])
        seen = len(world.offers)
        assert len(out) <= 3
        counters = world.fleet.limits._counters.items()
        assert all(counter.out == len(out) for key, counter in counters if key[0] == "quota0")
    for _ in range(400):
        if not out and not world.fleet.limits.waiting and not world.fleet._queues:
            break
        world.done(*out)
        out = set(world.offers[seen:])
        seen = len(world.offers)
        world.pass_time(0.3)
        out.update(world.offers[seen:])
        seen = len(world.offers)
    assert {entry.run.state.name for entry in world.shard.runs.values()} <= {"SUCCEEDED"}


def test_a_task_that_one_limit_calls_up_while_the_other_has_room_for_another_finds_its_place() -> None:
    world = World('@concurrent("2")', '@rate("5/s") @burst("2")')
    world.fleet.attach(instance(slots=MANY))
    for number in range(8):
        world.go(f"r{number}")
    world.done(world.offers[0])  # the others wait for the rate now
    world.pass_time(0.21)
    world.now += int(0.21 * SECOND)
    world.fleet.look()
    world.done(world.offers[1])  # a token and an attempt that ends, in one turn
    assert world.runs == ["r0", "r1", "r2", "r3"]


LIMITS = [
    '@concurrent("2")',
    '@concurrent("3")',
    '@rate("5/s") @burst("2")',
    '@rate("3/s") @burst("4") @concurrent("4")',
    '@concurrent("2") @per("capability")',
    '@concurrent("2") @per("agent")',
    '@rate("4/s") @burst("1") @per("capability, agent")',
]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(LIMITS), min_size=1, max_size=3))
def test_under_any_limits_work_goes_on_until_all_is_done_and_in_order_of_arrival(seed: int, limits: list[str]) -> None:
    rng = random.Random(seed)
    world = World(*limits)
    names = ("text.work", "text.other")
    slots = rng.choice([1, 3, MANY])
    for agent in "ab":
        world.fleet.attach(instance(agent, slots=slots, capabilities=names))
    asked: dict[str, str] = {}
    for _ in range(40):
        move = rng.randrange(4)
        if move < 2:
            fresh = {f"r{len(asked) + number}": rng.choice(names) for number in range(rng.randrange(1, 6))}
            asked |= fresh
            world.tell(*(world.submit(run, plan(Node(capability=f"{name}@1"))) for run, name in fresh.items()))
        elif move == 2:
            out = [offer for offer in world.offers if world.run(offer.partition("/")[0]).tasks[0].live]
            world.done(*rng.sample(out, rng.randrange(len(out) + 1)))
        else:
            world.pass_time(rng.random())
    for _ in range(400):
        world.done(*(offer for offer in world.offers if world.run(offer.partition("/")[0]).tasks[0].live))
        world.pass_time(1)
    assert {world.run(run).state.name for run in asked} <= {"SUCCEEDED"}
    counters = world.fleet.limits._counters.values()
    assert {(counter.out, counter.called, counter.left, counter.parked.size) for counter in counters} <= {(0, 0, 0, 0)}
    assert not any((world.fleet._queues, world.fleet._waiting, world.fleet._left, world.fleet._avoids))
    if slots == MANY and not any("per" in limit for limit in limits):
        assert world.runs == list(asked), "nobody overtakes where all wait for the same"
