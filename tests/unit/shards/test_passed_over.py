"""Tasks that those with a slot are not to have: they wait for others that may have them, and fail only without any."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antiphon.v1 import run_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from shard_rig import Rig, failed, instance

from tests.fakes.plans import SECOND, Node, plan

ALL = '@id("all") permit(principal, action, resource);'
ONLY_A = ALL + (
    '@id("only.a") @reason("others may not") forbid(principal, action == Action::"dispatch", resource)'
    ' when { context.agent != "a" };'
)
PURE = ALL + (
    '@id("pure") forbid(principal, action == Action::"dispatch", resource) when { context.effect != "pure" };'
)
QUOTA = ALL + (
    '@id("quota") @obligation("limit") @concurrent("1") @per("agent")'
    ' permit(principal, action == Action::"dispatch", resource);'
)


class World(Rig):
    """A shard under policies."""

    def __init__(self, text: str) -> None:
        self.now = 0
        self.policy = CedarPolicies(PolicyBundle.of(1, [PolicyFile("p.cedar", text)]))
        super().__init__(Fleet(self.policy, SchemaSet(Values()), lambda: self.now))

    def attach(self, name: str, slots: int = 1, **settings: Any) -> None:
        if schema := settings.get("input_schema"):
            self.fleet._schemas.add(schema)
        self.fleet.attach(instance(name, slots=slots, **settings))

    def go(self, *names: str) -> None:
        for name in names:
            self.tell(self.submit(name, plan(Node())))

    def agent(self, run: str) -> str:
        live = self.run(run).tasks[0].live
        return live.placement.agent if live is not None else self.states(run)[0]

    def explain(self, run: str) -> run_pb2.RoutingDecision:
        return self.fleet.explain(self.shard.need(self.run(run), self.run(run).tasks[0]), (run, 0, 0))

    def reasons(self, run: str) -> dict[str, int]:
        return {refusal.reason: refusal.count for refusal in self.explain(run).refusals}

    def done(self, run: str) -> None:
        self.tell(self.report(f"{run}/t0/0/1"))


@pytest.mark.parametrize("why", ["busy", "draining", "suspended"])
def test_a_task_waits_for_the_agent_that_may_have_it_beside_one_that_is_free(why: str) -> None:
    world = World(ONLY_A)
    world.attach("a")
    world.attach("b", slots=9)
    world.go("r0")
    if why == "draining":
        world.fleet.drain("s/i/a")
    elif why == "suspended":
        world.fleet.suspend("demo", "a", True)
    world.go("r1", "r2")
    assert [world.agent(run) for run in ("r0", "r1", "r2")] == ["a", "READY", "READY"]
    assert world.reasons("r1") == {"policy": 1, "no_slot" if why == "busy" else why: 1}
    if why == "busy":
        assert world.explain("r1").summary == "all agents that may have it are busy; 2 tasks wait for them"
    if why == "draining":
        world.fleet.detach("s/i/a")
        world.attach("a")
        world.tell()
    elif why == "suspended":
        world.fleet.suspend("demo", "a", False)
    world.done("r0")
    if world.agent("r1") == "a":
        world.done("r1")
    assert world.agent("r2") == "a"
    world.fleet.detach("s/i/a")
    world.go("r3")
    failure = world.run("r3").failure
    assert failure is not None and failure.kind.name == "POLICY", "nobody is there who may have it"


def test_tasks_that_waited_for_whoever_is_free_first_pass_one_that_is_not_to_have_them() -> None:
    world = World(ONLY_A)
    world.attach("a")
    world.attach("b", slots=2)
    world.fleet.hold("s/i/a")
    for _ in range(2):
        world.fleet.hold("s/i/b")
    world.go("r0", "r1", "r2", "r3")
    for _ in range(2):
        world.fleet.give_back("s/i/b", 0.1)
        world.tell()
    assert world.fleet.instance("s/i/b").free == 2  # type: ignore[union-attr]
    assert {world.states(run)[0] for run in ("r0", "r1", "r2", "r3")} == {"READY"}
    world.fleet.give_back("s/i/a", 0.1)
    world.tell()
    order = ["r0", "r1", "r2", "r3"]
    for run in order:
        assert world.agent(run) == "a", "in order of arrival"
        world.done(run)
    assert not world.fleet._avoids and not world.fleet._queues


def test_whoever_is_passed_over_may_have_the_task_under_another_policy_or_as_another_agent() -> None:
    world = World(ONLY_A)
    world.attach("a")
    world.attach("b")
    world.go("r0", "r1")
    assert world.agent("r1") == "READY"
    world.policy.activate(PolicyBundle.of(2, [PolicyFile("p.cedar", ALL)]))
    world.fleet.policy_changed()
    world.tell()
    assert world.agent("r1") == "b"
    world = World(PURE)
    world.attach("a", effect=1)
    world.attach("b")
    world.go("r0", "r1")
    assert world.agent("r1") == "READY"
    world.attach("b", effect=1)
    world.tell()
    assert world.agent("r1") == "b"


def test_all_who_were_passed_over_get_the_slots_of_an_agent_that_comes_back_as_another() -> None:
    world = World(PURE)
    world.attach("a", effect=1)
    world.attach("b")
    order = [f"r{number}" for number in range(6)]
    world.go(*order)
    world.fleet.detach("s/i/b")
    world.attach("b", effect=1)
    world.tell()
    for run in order[1:]:
        assert world.agent(run) == "b", "in order of arrival"
        world.done(run)


def test_a_task_that_a_limit_keeps_out_gets_the_agent_that_policy_refused_once_it_is_another() -> None:
    world = World(QUOTA + PURE.removeprefix(ALL))
    world.attach("a", slots=9, effect=1)
    world.attach("b", slots=9)
    world.go("r0", "r1", "r2")
    assert [world.agent(run) for run in ("r0", "r1", "r2")] == ["a", "READY", "READY"]
    world.fleet.detach("s/i/b")
    world.attach("b", slots=9, effect=1)
    world.tell()
    assert [world.agent(run) for run in ("r0", "r1", "r2")] == ["a", "b", "READY"]


@pytest.mark.parametrize("how", ["gone", "away", "replaced"])
def test_a_task_fails_with_what_it_was_refused_for_when_the_last_who_may_have_it_leaves_for_good(how: str) -> None:
    world = World(ONLY_A)
    world.attach("a")
    world.attach("b")
    world.go("r0", "r1")
    assert [world.agent(run) for run in ("r0", "r1")] == ["a", "READY"]
    if how == "replaced":
        world.attach("a", version="2.0")
    elif how == "gone":
        world.fleet.detach("s/i/a")
    else:
        world.fleet.detach("s/i/a", away=True)
        world.go("r2")
        world.attach("b")  # has those who wait placed anew
        world.tell()
        assert [world.agent(run) for run in ("r1", "r2")] == ["READY", "READY"], "its sidecar may come back"
        assert world.reasons("r1") == {"away": 1, "policy": 1}
        world.fleet.give_up("i")
    world.tell()
    failure = world.run("r1").failure
    assert failure is not None and failure.kind.name == "POLICY"
    assert not world.fleet._avoids and not world.fleet._queues and not world.fleet._away


def test_a_task_waits_for_an_agent_whose_sidecar_comes_back() -> None:
    world = World(ONLY_A)
    world.attach("a")
    world.attach("b")
    world.go("r0", "r1")
    world.fleet.detach("s/i/a", away=True)
    world.tell()
    world.attach("a", slots=2)
    world.fleet.give_up("i")
    world.tell()
    assert world.agent("r1") == "a"


def test_a_task_that_one_agents_limit_keeps_out_gets_the_slot_of_another_that_comes_free_first() -> None:
    world = World(QUOTA)
    world.attach("a", slots=9)
    world.attach("b")
    world.fleet.hold("s/i/b")
    world.go("r0", "r1", "r2")
    assert [world.agent(run) for run in ("r0", "r1", "r2")] == ["a", "READY", "READY"]
    world.fleet.give_back("s/i/b", 0.1)
    world.tell()
    assert [world.agent(run) for run in ("r0", "r1", "r2")] == ["a", "b", "READY"]
    world.done("r0")
    assert world.agent("r2") == "a"
    world.go("r3")
    assert world.agent("r3") == "READY"
    world.fleet.window("s/i/b", 2, 5)
    world.attach("c")
    world.tell()
    assert world.agent("r3") == "c"
    world.done("r2")
    assert not world.fleet._avoids and not world.fleet._queues and not world.fleet.limits.waiting


def test_who_comes_later_than_all_who_wait_for_limits_of_others_is_given_as_many_as_it_may_have() -> None:
    world = World(QUOTA)
    world.attach("a", slots=9)
    world.go(*(f"r{number}" for number in range(6)))
    world.attach("b", slots=0, concurrency=1)
    world.tell()
    world.fleet.window("s/i/b", 2, 1)
    world.tell()
    for number in range(1, 6):
        assert world.agent(f"r{number}") == "b"
        world.done(f"r{number}")
    assert world.agent("r0") == "a"


def versions() -> World:
    world = World(ALL)
    world.attach("new", version="1.1", input_schema=json.dumps({"type": "string"}))
    world.attach("old", slots=5, version="1.0", input_schema=json.dumps({"type": "object"}))
    return world


def test_an_input_that_one_version_does_not_take_waits_for_another_that_does() -> None:
    world = versions()
    world.go("r0", "r1")
    assert (world.agent("r0"), world.agent("r1")) == ("new", "READY")
    assert world.reasons("r1") == {"input": 1, "no_slot": 1}
    decision = run_pb2.RoutingDecision.FromString(world.run("r0").tasks[0].attempts[0].placement.decision)
    assert decision.capability == "text.work@1.1"
    world.done("r0")
    assert world.agent("r1") == "new"
    world.fleet.detach("s/i/new")
    world.go("r2")
    failure = world.run("r2").failure
    assert failure is not None and failure.kind.name == "INVALID_INPUT"


def test_versions_of_one_agent_that_do_not_take_an_input_are_passed_over_for_the_one_that_does() -> None:
    world = World(ALL)
    one = instance("a", slots=1, input_schema=json.dumps({"type": "object"}))
    world.fleet._schemas.add(one.description.capabilities[0].input_schema)
    other = one.description.capabilities.add(name="text.work", version="1.1")
    other.input_schema = json.dumps({"type": "string"})
    world.fleet._schemas.add(other.input_schema)
    world.fleet.attach(one)
    world.go("r0", "r1", "r2")
    for run in ("r0", "r1", "r2"):
        assert world.agent(run) == "a"
        world.done(run)


def test_a_breaker_that_is_tried_is_explained() -> None:
    world = World(ALL)
    world.attach("a", slots=10)
    world.go(*(f"f{number}" for number in range(10)))
    world.tell(*(world.report(f"f{number}/t0/0/1", failed()) for number in range(10)))
    world.now += 2 * SECOND
    world.fleet.look()
    world.go("r0", "r1")
    assert (world.agent("r0"), world.agent("r1")) == ("a", "READY")
    assert world.reasons("r1") == {"breaker": 1}
    assert "s/i/a gets nothing for now: 10 of its last 10" in world.explain("r1").summary


@pytest.mark.parametrize("busy", [15, 16, 17, 40])
def test_an_idle_agent_is_found_however_many_others_are_at_their_limits(busy: int) -> None:
    world = World(QUOTA)
    for n in range(busy):
        world.attach(f"a{n}", slots=10)
        world.go(f"first{n}")
    world.now += SECOND // 1000
    for n in range(busy):
        world.done(f"first{n}")  # so quick that they are preferred to one of whom nothing is known
    world.go(*(f"r{n}" for n in range(busy)))
    assert len({world.agent(f"r{n}") for n in range(busy)} - {"READY"}) == busy
    world.attach("idle", slots=10)
    world.go("late")
    assert world.agent("late") == "idle"
