"""Quorums, hedges and results that are used again, as a shard carries them out: places, timers, policy, recovery."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from antiphon.v1 import graph_pb2, payload_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.plan import HedgePlan, Plan
from antiphon_orchestrator.engine.run import Task
from antiphon_orchestrator.engine.states import AttemptState, TaskState
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.placement.hedging import AT_ONCE, KNOWN
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.shards import inputs as i
from shard_rig import SOURCE, Rig, failed, instance, returned

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan, retry

PURE: dict[str, Any] = {"effect": 1}
AGAIN: dict[str, Any] = {"idempotent": True}
QUORUM = Node(agree=2, of=3)
HEDGE = Node(agree=1, of=2, apart="instance", hedge=HedgePlan(SECOND, 0.0, 0.1))
CACHE = Node(cache_ttl=60 * SECOND)


def rig(*names: str, slots: int = 8, **settings: Any) -> Rig:
    one = Rig()
    for name in names:
        one.fleet.attach(instance(name, slots, **settings))
    return one


def always(of: Plan) -> Callable[[RunSubmitted], Plan]:
    return lambda submitted: of


def answer(text: str) -> Outcome:
    return Outcome(AttemptState.SUCCEEDED, payload(text))


def agents(one: Rig, run_id: str = "r1") -> list[str]:
    return [member.attempts[-1].placement.agent for member in one.run(run_id).tasks[0].members if member.attempts]


# Quorum.


def test_the_members_of_a_quorum_go_to_agents_that_differ_and_one_too_many_waits_for_another_agent() -> None:
    one = rig("a", "b")
    one.tell(one.submit("r1", plan(QUORUM)))
    assert sorted(agents(one)) == ["a", "b"]
    need = one.shard.need(one.run("r1"), one.run("r1").task(0, 3))
    told = one.fleet.explain(need)
    assert {refusal.reason: refusal.count for refusal in told.refusals} == {"taken": 2}
    one.fleet.attach(instance("c"))
    one.tell()
    assert sorted(agents(one)) == ["a", "b", "c"]


def test_instances_of_one_agent_are_enough_where_the_graph_says_so() -> None:
    one = Rig()
    for incarnation in ("i", "j", "k"):
        one.fleet.attach(instance("a", 1, incarnation=incarnation))
    one.tell(one.submit("r1", plan(replace(QUORUM, apart="instance"))))
    assert len({member.live.instance for member in one.run("r1").tasks[0].members if member.live}) == 3


def test_a_member_that_waits_gets_the_agent_of_another_whose_attempt_failed() -> None:
    one = rig("a", "b")
    node = replace(QUORUM, retry=(retry(2, first=5 * SECOND, longest=5 * SECOND),))
    one.tell(one.submit("r1", plan(node)))
    one.tell(one.report("r1/t0/1/1", failed()))
    assert one.states("r1")[1:] == ["WAITING", "RUNNING", "RUNNING"]
    assert one.run("r1").task(0, 3).attempts[-1].placement.agent == one.run("r1").task(0, 1).attempts[0].placement.agent


def test_an_agent_that_answered_a_member_with_a_graph_gets_no_other_unless_that_fails() -> None:
    one = rig("a", "b")
    one.tell(one.submit("r1", plan(replace(QUORUM, retry=(retry(2, first=5 * SECOND, longest=5 * SECOND),)))))
    first, second = agents(one)
    below = i.Answered(one, SOURCE, "r1/t0/1/1", "s", plan(Node(capability="text.other@1")), graph_pb2.Graph(), b"", 5)
    one.tell(below)
    one.tell(one.report("r1/t0/2/1", failed()))
    assert agents(one) == [first, second, second], "not the one that made the graph"
    one.now += 10 * SECOND
    one.tell()
    assert one.states("r1") == ["RUNNING", "RUNNING", "READY", "RUNNING"]
    one.tell(i.Cancel("s", CLIENT, "not this one", lambda answer: None))
    assert one.states("r1") == ["RUNNING", "FAILED", "RUNNING", "RUNNING"]
    assert agents(one) == [first, first, second]


def test_when_enough_agree_those_who_are_still_at_it_are_cancelled_and_the_record_says_who_disagreed() -> None:
    one = rig("a", "b", "c", "d")
    of = plan(replace(QUORUM, of=4), Node((0,)))
    one.tell(one.submit("r1", of), one.report("r1/t0/1/1", answer("odd")), one.report("r1/t0/2/1", answer("even")))
    one.tell(one.report("r1/t0/3/1", answer("even")))
    assert one.cancels == ["r1/t0/4/1"]
    assert one.run("r1").view(one.run("r1").tasks[1]).output(0) == payload("even")
    told = views.task_message(one.run("r1"), one.run("r1").tasks[0])
    assert [list(group.members) for group in told.agreement.groups] == [[2, 3], [1]]
    assert (told.agreement.chosen, told.agreement.cancelled, told.output.inline) == (2, 1, b'"even"')
    # A late answer has its verdict and its place in the record, and changes nothing.
    one.tell(one.report("r1/t0/4/1", answer("odd")))
    assert one.verdicts[-1] == ("r1/t0/4/1", "STALE") and one.run("r1").task(0, 4).attempts[0].stale
    other = one.recovered(always(of))
    assert views.task_message(other.run("r1"), other.run("r1").tasks[0]) == told


def test_a_new_owner_goes_on_with_the_answers_that_were_there() -> None:
    one = rig("a", "b", "c")
    of = plan(QUORUM)
    one.tell(one.submit("r1", of), one.report("r1/t0/1/1", answer("even")))
    other = one.recovered(always(of))
    other.tell(other.report("r1/t0/2/1", answer("even")))
    assert other.run("r1").tasks[0].state is TaskState.SUCCEEDED
    assert other.cancels == ["r1/t0/3/1"]


# Hedge.


def second(one: Rig, run_id: str = "r1") -> Task | None:
    members = one.run(run_id).tasks[0].members
    return members[1] if len(members) > 1 else None


def later(one: Rig, microseconds: int) -> None:
    one.now += microseconds
    one.tell()


def test_a_second_instance_is_asked_after_the_delay_and_not_before() -> None:
    one = rig("a", "b", **AGAIN)
    one.tell(one.submit("r1", plan(HEDGE)))
    later(one, SECOND - 20_000)
    assert second(one) is None
    later(one, 20_000)
    assert sorted(agents(one)) == ["a", "b"]
    one.tell(one.report("r1/t0/2/1", answer("quick")))
    assert one.cancels == ["r1/t0/1/1"]
    assert one.archived and (one.fleet.hedging.made, one.fleet.hedging.used) == (1, 1)
    told = views.task_message(one.run("r1"), one.run("r1").tasks[0])
    assert (told.agreement.chosen, told.reason) == (2, "the answer of member 2 of 2 came first")
    assert told.agreement.spent_duration.ToMicroseconds() == SECOND, "what the first had cost until then"


def test_a_second_attempt_never_waits_for_a_slot_and_is_looked_for_again() -> None:
    one = rig("a", slots=1, **AGAIN)
    one.tell(one.submit("r1", plan(HEDGE)))
    later(one, 2 * SECOND)
    assert second(one) is None and not one.fleet._queues
    one.fleet.attach(instance("b", **AGAIN))
    later(one, SECOND)
    assert sorted(agents(one)) == ["a", "b"]


def test_more_instances_of_an_agent_are_others_for_a_hedge_and_the_same_one_is_not() -> None:
    one = rig("a", slots=8, **AGAIN)
    one.tell(one.submit("r1", plan(HEDGE)))
    later(one, 2 * SECOND)
    assert second(one) is None, "the slots of one instance are no help against its being slow"
    one.fleet.attach(instance("a", incarnation="j", **AGAIN))
    later(one, SECOND)
    assert second(one) is not None


def test_an_agent_that_does_not_declare_the_capability_idempotent_does_not_get_a_hedged_task() -> None:
    one = rig("a", "b")
    one.tell(one.submit("r1", plan(replace(HEDGE, schedule_timeout=5 * SECOND))))
    assert one.offers == []
    run = one.run("r1")
    told = one.fleet.explain(one.shard.need(run, run.task(0, 1)))
    assert {refusal.reason for refusal in told.refusals} == {"not_idempotent"}
    later(one, 5 * SECOND)
    assert one.archived, "it fails as one for which there is no agent"


def test_a_share_of_tasks_is_hedged_and_no_more() -> None:
    one = rig("a", "b", slots=500, **AGAIN)
    of = plan(HEDGE)
    for number in range(60):
        one.tell(one.submit(f"r{number}", of))
    later(one, SECOND)
    made = one.fleet.hedging.made
    assert made == int(AT_ONCE), "all were slow at once, and idle times had earned so many"
    assert one.fleet.hedging.withheld >= 50
    later(one, 10 * SECOND)
    assert one.fleet.hedging.made == made, "waiting earns nothing"
    for number in range(60, 90):
        one.tell(one.submit(f"r{number}", of))
    later(one, 2 * SECOND)
    assert one.fleet.hedging.made == made + 3, "ten tasks earn one"


def test_the_delay_follows_a_quantile_of_what_the_capability_took() -> None:
    one = rig("a", "b", slots=500, **AGAIN)
    of = plan(replace(HEDGE, hedge=HedgePlan(60 * SECOND, 0.9, 0.1)))
    for number in range(KNOWN):
        one.tell(one.submit(f"r{number}", of))
        one.now += SECOND // 10
        one.tell(one.report(f"r{number}/t0/1/1"))
    one.tell(one.submit("last", of))
    later(one, SECOND // 20)
    assert second(one, "last") is None
    later(one, SECOND // 10)
    assert second(one, "last") is not None, "not after a minute: it takes longer than nine of ten did"


def test_a_new_owner_hedges_what_is_out_still() -> None:
    one = rig("a", **AGAIN)
    of = plan(HEDGE)
    one.tell(one.submit("r1", of))
    other = one.recovered(always(of))
    other.fleet.attach(instance("b", **AGAIN))
    later(other, SECOND)
    assert second(other) is not None


def test_an_offer_of_a_hedge_that_comes_back_is_placed_again_without_a_new_member() -> None:
    one = rig("a", "b", **AGAIN)
    one.tell(one.submit("r1", plan(HEDGE)))
    later(one, SECOND)
    one.tell(one.report("r1/t0/2/1", returned()))
    assert len(one.run("r1").tasks[0].members) == 2
    assert one.offers[-1] == "r1/t0/2/2"


# Results that are used again.


def test_the_result_of_a_pure_capability_is_used_again_for_the_same_input_until_it_is_too_old() -> None:
    one = rig("a", **PURE)
    of = plan(CACHE, Node((0,)))
    one.tell(one.submit("r1", of))
    one.tell(one.report("r1/t0/0/1", answer("made")))
    one.tell(one.submit("r2", of))
    run = one.run("r2")
    assert one.offers == ["r1/t0/0/1", "r1/t1/0/1", "r2/t1/0/1"], "nobody was asked for the first task of r2"
    told = views.task_message(run, run.tasks[0])
    assert (told.reused.origin_attempt_id, told.attempt_count) == ("r1/t0/0/1", 0)
    assert told.output.inline == b'"made"' and told.reason == "the result of r1/t0/0/1 was used again"
    assert told.reused.decision.policy.permit and told.reused.release.permit
    later(one, 61 * SECOND)
    one.tell(one.submit("r3", of))
    assert one.offers[-1] == "r3/t0/0/1"
    assert (one.fleet.results.hits, one.fleet.results.misses) == (1, 2)


def test_recovery_takes_a_result_from_the_record_and_asks_no_memory() -> None:
    one = rig("a", **PURE)
    of = plan(CACHE, Node((0,)))
    one.tell(one.submit("r1", of), one.report("r1/t0/0/1", answer("made")), one.submit("r2", of))
    other = one.recovered(always(of))
    assert len(other.fleet.results) == 0
    assert views.task_message(other.run("r2"), other.run("r2").tasks[0]) == views.task_message(
        one.run("r2"), one.run("r2").tasks[0]
    )


@pytest.mark.parametrize(
    ("what", "settings", "input"),
    [
        ("another input", PURE, payload("other")),
        ("another label of it", {**PURE, "clearance": ["pii"]}, payload("same", "pii")),
        ("another version", {**PURE, "version": "1.1"}, payload("same")),
        ("another schema of its input", {**PURE, "input_schema": '{"type": "string"}'}, payload("same")),
        ("another schema of its output", {**PURE, "output_schema": '{"type": "string"}'}, payload("same")),
    ],
)
def test_a_result_is_that_of_one_version_one_input_and_its_labels(
    what: str, settings: dict[str, Any], input: bytes
) -> None:
    one = rig("a", **PURE)
    one.tell(one.submit("r1", plan(replace(CACHE, input=payload("same")))), one.report("r1/t0/0/1", answer("made")))
    one.fleet.detach("s/i/a")
    one.fleet.attach(instance("a", **settings))
    one.tell(one.submit("r2", plan(replace(CACHE, input=input))))
    assert one.offers[-1] == "r2/t0/0/1", what


def test_an_agent_that_does_not_declare_the_capability_pure_does_not_get_a_task_with_a_cache() -> None:
    one = rig("a", **AGAIN)
    one.tell(one.submit("r1", plan(CACHE)))
    run = one.run("r1")
    assert one.offers == []
    assert {r.reason for r in one.fleet.explain(one.shard.need(run, run.tasks[0])).refusals} == {"not_pure"}


def test_a_failure_is_not_kept_and_neither_is_what_comes_too_late() -> None:
    one = rig("a", **PURE)
    of = plan(replace(CACHE, deadline=SECOND), Node(wait="go"))
    one.tell(one.submit("r1", of), one.submit("r2", of), one.report("r1/t0/0/1", failed()))
    later(one, 2 * SECOND)
    one.tell(one.report("r2/t0/0/1", answer("late")))
    assert one.verdicts[-1] == ("r2/t0/0/1", "STALE")
    assert len(one.fleet.results) == 0


def test_members_of_a_fan_out_use_results_again_as_well_and_so_do_tasks_that_waited_for_a_slot() -> None:
    one = rig("a", slots=1, **PURE)
    of = plan(replace(CACHE, members=4, input=payload("same")))
    one.tell(one.submit("r1", of))
    assert one.offers == ["r1/t0/1/1"]
    one.tell(one.report("r1/t0/1/1", answer("made")))
    assert one.offers == ["r1/t0/1/1"] and one.archived
    assert one.fleet.results.hits == 3
    assert one.fleet.instance("s/i/a").in_use == 0  # type: ignore[union-attr]


POLICIES = (
    '@id("all") permit (principal, action, resource);',
    '@id("tester-not") forbid (principal == Identity::"{who}", action == Action::"{action}", resource);',
)


@pytest.mark.parametrize("action", ["dispatch", "release"])
def test_policy_is_asked_for_each_use_and_who_may_not_have_it_does_not_get_it(action: str) -> None:
    other = "spiffe://antiphon.internal/ns/demo/client/other"
    rules = "".join(POLICIES).format(who=other, action=action)
    policies = CedarPolicies(PolicyBundle.of(1, [PolicyFile("a.cedar", rules)]))
    one = Rig(Fleet(policies, SchemaSet(Values())))
    one.fleet.attach(instance(slots=8, **PURE))
    of = plan(CACHE)
    one.tell(one.submit("r1", of), one.report("r1/t0/0/1", answer("made")))
    one.tell(one.submit("r2", of, principal=other))
    assert one.fleet.results.hits == 0
    one.tell(one.report("r2/t0/0/1", answer("made")))
    assert one.run("r2").tasks[0].failure is not None
    assert one.run("r2").tasks[0].failure.kind.name == "POLICY"  # type: ignore[union-attr]


def test_what_is_redacted_of_a_result_is_redacted_of_each_use_of_it() -> None:
    rules = (
        '@id("all") permit (principal, action, resource);'
        '@id("hide") @obligation("redact") @fields("phone") permit (principal, action == Action::"release", resource);'
    )
    one = Rig(Fleet(CedarPolicies(PolicyBundle.of(1, [PolicyFile("a.cedar", rules)])), SchemaSet(Values())))
    one.fleet.attach(instance(slots=8, **PURE))
    of = plan(CACHE, Node((0,)))
    made = payload_pb2.Payload(inline=json.dumps({"name": "Ada", "phone": "1"}).encode()).SerializeToString()
    one.tell(one.submit("r1", of), one.report("r1/t0/0/1", Outcome(AttemptState.SUCCEEDED, made)), one.submit("r2", of))
    run = one.run("r2")
    told = views.task_message(run, run.tasks[0])
    assert json.loads(told.output.inline) == {"name": "Ada"}
    assert told.withheld.startswith("the output is redacted as policy demands: redact")
    assert told.reused.origin_attempt_id == "r1/t0/0/1"


def test_a_hedge_with_a_cache_answers_from_it_and_asks_nobody() -> None:
    one = rig("a", "b", **PURE)
    of = plan(replace(HEDGE, cache_ttl=60 * SECOND), Node((0,)))
    one.tell(one.submit("r1", of), one.report("r1/t0/1/1", answer("made")), one.submit("r2", of))
    assert one.run("r2").tasks[0].state is TaskState.SUCCEEDED
    assert "r2/t0/1/1" not in one.offers
