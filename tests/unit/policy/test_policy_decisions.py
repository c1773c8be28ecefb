"""How requests are decided: fail closed, remember nothing wrong, say why."""

import os
import subprocess
import sys

import pytest
from antiphon_orchestrator.policy import (
    Action,
    CedarPolicies,
    Decision,
    Limit,
    Obligation,
    Outcome,
    PolicyBundle,
    PolicyError,
    PolicyFile,
    Request,
    ResourceKind,
    dev_profile,
)
from hypothesis import given, settings
from hypothesis import strategies as st

PERMIT_SUBMIT = '@id("base") permit(principal, action == Action::"submit", resource);'


def spiffe(namespace: str = "demo") -> str:
    return f"spiffe://antiphon.internal/ns/{namespace}/client/ann"


def submit(*, priority: int = 0, labels: str = "", graph: str = "review", namespace: str = "demo") -> Request:
    return Request.submit(spiffe(), "client", namespace, graph, labels=frozenset(labels.split()), priority=priority)


def bundle(text: str, epoch: int = 1) -> PolicyBundle:
    return PolicyBundle.of(epoch, [PolicyFile("team.cedar", text)])


def decide(text: str, request: Request) -> Decision:
    (decision,) = CedarPolicies(bundle(text)).decide_batch([request])
    return decision


def test_a_permit_allows_and_names_itself() -> None:
    decision = decide(PERMIT_SUBMIT, submit())
    assert decision.outcome is Outcome.ALLOW
    assert decision.allowed
    assert decision.policies == ("base",)
    assert decision.reason == "allowed by policy base"
    assert decision.obligations == ()


def test_a_forbid_wins_and_gives_its_reason() -> None:
    text = PERMIT_SUBMIT + '@id("cap") @reason("too urgent") forbid(principal, action, resource) when { true };'
    decision = decide(text, submit())
    assert not decision.allowed
    assert decision.policies == ("cap",)
    assert decision.reason == "denied by policy cap: too urgent"


def test_a_request_that_no_permit_matches_is_denied_with_a_remedy() -> None:
    decision = decide(PERMIT_SUBMIT, Request(Action.CANCEL, spiffe(), "client", "demo", ResourceKind.RUN, "r1"))
    assert not decision.allowed
    assert decision.policies == ()
    assert "no permit matched for action cancel on Run demo/r1" in decision.reason
    assert decision.reason.endswith("; whoever may change policies can add one that permits it")


OVERFLOW = "context.priority + 9223372036854775807 > 0"


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_a_policy_that_cannot_be_evaluated_denies_although_cedar_would_allow(effect: str) -> None:
    broken = f'@id("sum") {effect}(principal, action == Action::"submit", resource) when {{ {OVERFLOW} }};'
    decision = decide(PERMIT_SUBMIT + broken, submit(priority=1))
    assert not decision.allowed
    assert decision.policies == ("sum",)
    assert decision.reason.startswith("denied: policy sum could not be evaluated: integer overflow")
    assert decide(PERMIT_SUBMIT, submit(priority=1)).allowed


def test_obligations_of_all_deciding_permits_are_carried_once() -> None:
    text = PERMIT_SUBMIT + "".join(
        f'@id("{name}") @obligation("log") permit(principal, action == Action::"submit", resource);' for name in "abc"
    )
    decision = decide(text, submit())
    assert decision.obligations == (Obligation("log"),)
    assert decision.policies == ("a", "b", "base", "c")


def dispatch(agent: str = "writer") -> Request:
    return Request.dispatch(
        spiffe(),
        "client",
        "demo",
        "text.work",
        version="1",
        effect="pure",
        labels=frozenset({"pii"}),
        agent=agent,
        agent_clearance=frozenset(),
        attempt=1,
    )


def test_a_permit_demands_redaction_of_fields_and_labels_where_payloads_are_handed_on() -> None:
    redact = (
        '@id("r") @obligation("redact") @fields("phone, home.street, /a.b/c~1d") @labels("pii")'
        "permit(principal, action, resource);"
    )
    decision = decide(redact, dispatch())
    assert decision.allowed
    assert decision.redactions == ("/phone", "/home/street", "/a.b/c~1d", "label:pii")


def test_a_permit_that_demands_redaction_permits_nothing_where_there_is_no_payload() -> None:
    redact = '@id("r") @obligation("redact") @fields("phone") permit(principal, action, resource);'
    decision = decide(PERMIT_SUBMIT + redact, submit())
    assert not decision.allowed and decision.obligations == ()
    assert decision.reason.startswith("denied: policy r demands redaction, which submit has no payload for")


def test_a_permit_demands_a_limit_with_its_policy_and_what_has_a_count_of_its_own() -> None:
    text = (
        '@id("a") @obligation("limit") @rate("90/m") @concurrent("5") @per("agent, namespace")'
        'permit(principal, action == Action::"dispatch", resource);'
        '@id("b") @obligation("limit") @rate("2/h") @burst("7")'
        'permit(principal, action == Action::"dispatch", resource);'
    )
    decision = decide(text, dispatch())
    assert decision.allowed
    assert decision.limits == (
        Limit("a", 1.5, 1, 5, ("namespace", "agent")),
        Limit("b", 2 / 3600, 7, 0, ()),
    )


def test_a_question_leaves_no_trace_and_a_decision_does() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT), now=lambda: 7)
    asked = policies.check(submit())
    assert list(policies.recent()) == []
    (made,) = policies.decide_batch([submit()])
    policies.decide_batch([submit(), submit(priority=1)])
    assert asked == made
    assert [(one.time, one.decision.allowed) for one in policies.recent()] == [(7, True), (7, True)]
    assert [one.decision for one in policies.recent()][1] == made
    assert policies.places(made) == ["team.cedar:1"]


def test_what_cannot_be_read_here_denies_everything() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT))
    policies.deny(2)
    (decision,) = policies.decide_batch([submit()])
    assert (decision.allowed, decision.epoch) == (False, 2)


def test_an_obligation_of_a_permit_that_did_not_match_is_not_carried() -> None:
    text = PERMIT_SUBMIT + '@id("a") @obligation("log") permit(principal, action == Action::"cancel", resource);'
    assert decide(text, submit()).obligations == ()


def test_an_obligation_this_version_does_not_know_denies() -> None:
    text = PERMIT_SUBMIT + '@id("a") @obligation("notarise") permit(principal, action == Action::"submit", resource);'
    decision = decide(text, submit())
    assert not decision.allowed
    assert decision.reason.startswith("denied: policy a demands 'notarise', which this version cannot carry out")


@pytest.mark.parametrize("policies", [CedarPolicies(), CedarPolicies(bundle("// none yet\n"))], ids=["bare", "empty"])
def test_nothing_loaded_denies_everything_and_says_what_to_do(policies: CedarPolicies) -> None:
    (decision,) = policies.decide_batch([submit()])
    assert not decision.allowed
    assert decision.reason == (
        "denied: no policy is loaded; start with --policy-folder DIR or, on your own machine, --policy-profile dev"
    )


@pytest.mark.parametrize(
    "request_",
    [
        submit()._replace(attributes=()),
        submit()._replace(attributes=(("labels", frozenset[str]()), ("priority", "high"))),
        submit()._replace(attributes=(*submit().attributes, ("surprise", True))),
        submit()._replace(resource_kind=ResourceKind.RUN),
        submit(priority=2**80),
    ],
    ids=["missing fact", "wrong type", "unknown fact", "wrong resource", "integer of more than 64 bits"],
)
def test_a_request_that_does_not_fit_the_schema_is_denied(request_: Request) -> None:
    decision = decide('@id("all") permit(principal, action, resource);', request_)
    assert not decision.allowed
    assert decision.reason.startswith("denied: the request does not fit the policy schema: ")


@pytest.mark.parametrize("principal", ["", "ann", "spiffe://antiphon.internal/client/ann", spiffe() + "/more"])
def test_a_principal_without_an_identity_of_ours_is_denied(principal: str) -> None:
    decision = decide(PERMIT_SUBMIT, submit()._replace(principal=principal))
    assert decision.reason == f"denied: {principal!r} is not the SPIFFE id of a client"


def test_a_kind_that_contradicts_the_identity_is_denied() -> None:
    assert not decide(PERMIT_SUBMIT, submit()._replace(principal_kind="operator")).allowed


def test_a_namespace_is_not_read_under_the_name_of_another() -> None:
    text = '@id("own") permit(principal, action, resource) when { principal.namespace == resource.namespace };'
    own = Request(Action.READ, spiffe(), "client", "demo", ResourceKind.NAMESPACE, "demo")
    assert decide(text, own).allowed
    assert decide(text, own._replace(resource_id="other")).reason == "denied: namespace other is not in namespace demo"


def test_a_policy_can_name_a_namespace_or_one_resource_of_it() -> None:
    text = (
        '@id("a") permit(principal in Namespace::"demo", action, resource in Namespace::"demo");'
        '@id("b") forbid(principal, action, resource == Graph::"demo/payroll");'
    )
    policies = CedarPolicies(bundle(text))
    requests = [submit(), submit(graph="payroll"), submit(namespace="other")]
    assert [decision.allowed for decision in policies.decide_batch(requests)] == [True, False, False]


def test_a_batch_is_answered_in_its_order_whatever_is_remembered() -> None:
    text = '@id("a") permit(principal, action == Action::"submit", resource) when { context.priority > 2 };'
    policies = CedarPolicies(bundle(text))
    policies.decide_batch([submit(priority=3), submit(priority=0)])
    order = [5, 0, 3, 1, 5, 3]
    decisions = policies.decide_batch([submit(priority=priority) for priority in order])
    assert [decision.allowed for decision in decisions] == [priority > 2 for priority in order]
    assert policies.decide_batch([]) == []


REQUESTS = st.builds(
    submit,
    priority=st.integers(-1, 3),
    labels=st.sampled_from(["", "pii", "restricted", "pii restricted"]),
    graph=st.text(max_size=3),
    namespace=st.sampled_from(["demo", "other", ""]),
)
MIXED = PERMIT_SUBMIT + (
    '@id("label") forbid(principal, action == Action::"submit", resource) when { context.labels.contains("pii") };'
    '@id("sum") forbid(principal, action == Action::"submit", resource)'
    "  when { context.priority + 9223372036854775806 < 0 };"
    '@id("own") forbid(principal, action, resource) unless { principal.namespace == resource.namespace };'
)
SMALL_CACHE = CedarPolicies(bundle(MIXED), cache_size=4)


@settings(deadline=None)
@given(st.lists(REQUESTS, max_size=8))
def test_a_remembered_decision_equals_a_fresh_one(requests: list[Request]) -> None:
    fresh = [SMALL_CACHE.check(request) for request in requests]
    assert SMALL_CACHE.decide_batch(requests) == fresh
    assert SMALL_CACHE.decide_batch(requests) == fresh


def test_a_remembered_decision_is_not_computed_again() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT))
    first, second = policies.decide_batch([submit(), submit()])
    assert first is second


def test_a_new_epoch_forgets_the_answers_of_the_old() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT))
    (before,) = policies.decide_batch([submit()])
    policies.activate(bundle(PERMIT_SUBMIT.replace("permit", "forbid"), epoch=2))
    (after,) = policies.decide_batch([submit()])
    assert (before.allowed, before.epoch) == (True, 1)
    assert (after.allowed, after.epoch) == (False, 2)
    assert before.decision_id != after.decision_id


def test_a_refused_bundle_leaves_the_present_one_in_force() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT, epoch=5))
    with pytest.raises(PolicyError):
        policies.activate(bundle("permit(", epoch=6))
    with pytest.raises(ValueError, match="not newer than 5"):
        policies.activate(bundle(PERMIT_SUBMIT.replace("permit", "forbid"), epoch=5))
    assert policies.epoch == 5
    assert policies.decide_batch([submit()])[0].allowed


def test_equal_inputs_have_the_same_decision_id_in_every_process() -> None:
    request = submit(labels="a b c d e f")
    program = (
        "from antiphon_orchestrator.policy import *\n"
        f"request = Request.submit({spiffe()!r}, 'client', 'demo', 'review', labels=frozenset('abcdef'), priority=0)\n"
        "print(CedarPolicies(dev_profile()).decide_batch([request])[0].decision_id)"
    )
    # Another hash seed orders sets otherwise.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    (here,) = CedarPolicies(dev_profile()).decide_batch([request])
    assert elsewhere.stdout.strip() == here.decision_id
    others = CedarPolicies(dev_profile()).decide_batch([submit(), submit(priority=1), submit(graph="other")])
    assert len({here.decision_id, *(decision.decision_id for decision in others)}) == 4


def test_decisions_about_entries_drive_out_none_that_tasks_need() -> None:
    policies = CedarPolicies(bundle(PERMIT_SUBMIT), cache_size=8)
    (before,) = policies.decide_batch([submit()])
    for number in range(20):
        request = Request.entry(
            Action.READ_CONTEXT,
            spiffe(),
            "client",
            "demo",
            "namespace",
            str(number),
            labels=frozenset(),
            agent="",
            own=True,
        )
        policies.decide_batch([request])
        assert policies.decide_batch([request])[0] is policies.decide_batch([request])[0]
    assert policies.decide_batch([submit()])[0] is before
