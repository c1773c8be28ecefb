"""The development profile as a table: who may do what, inside one namespace and across."""

import pytest
from antiphon_orchestrator.policy import Action, CedarPolicies, Decision, Request, ResourceKind, dev_profile

POLICIES = CedarPolicies(dev_profile())
KINDS = ("client", "operator", "sidecar", "orchestrator")
NO_LABELS: frozenset[str] = frozenset()
RESTRICTED = frozenset({"pii", "restricted"})


def decide(action: Action, kind: str, *, of: str = "demo", labels: frozenset[str] = NO_LABELS) -> Decision:
    principal = f"spiffe://antiphon.internal/ns/{of}/{kind}/x"
    match action:
        case Action.SUBMIT:
            request = Request.submit(principal, kind, "demo", "review", labels=labels, priority=0)
        case Action.DISPATCH:
            request = Request.dispatch(
                principal,
                kind,
                "demo",
                "text.redact",
                version="1",
                effect="pure",
                labels=labels,
                agent="redactor",
                agent_clearance=NO_LABELS,
                attempt=1,
            )
        case Action.CALL:
            request = Request.call(principal, kind, "demo", "text.redact", agent="redactor", labels=labels)
        case Action.RELEASE:
            request = Request.release(principal, kind, "demo", "text.redact", labels=labels)
        case Action.REGISTER:
            request = Request.register(
                principal, kind, "demo", "redactor", capability="text.redact", granted=True, verified=False
            )
        case Action.READ_PAYLOAD | Action.WRITE_PAYLOAD | Action.CHANGE_POLICY | Action.READ_AUDIT:
            request = Request(action, principal, kind, "demo", ResourceKind.NAMESPACE, "demo")
        case Action.OPERATE:
            request = Request(action, principal, kind, "demo", ResourceKind.AGENT, "redactor")
        case Action.READ_CONTEXT | Action.WRITE_CONTEXT:
            request = Request.entry(
                action, principal, kind, "demo", "namespace", "plan", labels=labels, agent="", own=True
            )
        case Action.READ | Action.CANCEL | Action.SIGNAL | Action.PAUSE | Action.RETRY | Action.RESOLVE:
            request = Request(action, principal, kind, "demo", ResourceKind.RUN, "r1")
    (decision,) = POLICIES.decide_batch([request])
    return decision


ALLOWED = {
    Action.SUBMIT: {"client"},
    Action.READ: {"client", "operator"},
    Action.CANCEL: {"client", "operator"},
    Action.SIGNAL: {"client", "operator"},
    Action.PAUSE: {"client", "operator"},
    Action.RETRY: {"client", "operator"},
    Action.RESOLVE: {"client", "operator"},
    Action.DISPATCH: set(KINDS),
    Action.CALL: set(KINDS),
    Action.RELEASE: set(KINDS),
    Action.REGISTER: {"sidecar"},
    Action.READ_PAYLOAD: {"client", "operator", "sidecar"},
    Action.WRITE_PAYLOAD: {"client", "sidecar"},
    Action.OPERATE: {"operator"},
    Action.CHANGE_POLICY: {"operator"},
    Action.READ_CONTEXT: {"client", "operator"},
    Action.WRITE_CONTEXT: {"client"},
    Action.READ_AUDIT: {"operator"},
}


@pytest.mark.parametrize("action", Action)
def test_inside_a_namespace_each_kind_may_do_its_own_work(action: Action) -> None:
    assert {kind for kind in KINDS if decide(action, kind).allowed} == ALLOWED[action]


@pytest.mark.parametrize("action", Action)
def test_nothing_crosses_a_namespace(action: Action) -> None:
    assert not any(decide(action, kind, of="other").allowed for kind in KINDS)


@pytest.mark.parametrize("action", [Action.DISPATCH, Action.CALL, Action.RELEASE, Action.READ_CONTEXT])
def test_what_is_restricted_reaches_no_agent_and_nobody(action: Action) -> None:
    decision = decide(action, "client", labels=RESTRICTED)
    assert decision.reason == "denied by policy dev.restricted: the payload is labelled restricted"
    assert decide(action, "client", labels=RESTRICTED - {"restricted"}).allowed


@pytest.mark.parametrize("action", [Action.READ_CONTEXT, Action.WRITE_CONTEXT])
def test_a_task_stays_within_its_own_run_and_graph(action: Action) -> None:
    principal = "spiffe://antiphon.internal/ns/demo/client/x"

    def allowed(scope: str, own: bool) -> bool:
        request = Request.entry(
            action, principal, "client", "demo", scope, "plan", labels=NO_LABELS, agent="worker", own=own
        )
        return POLICIES.decide_batch([request])[0].allowed

    assert allowed("run", True) and allowed("graph:review", True)
    assert not allowed("run", False) and not allowed("graph:other", False)


def test_restricted_input_may_be_submitted() -> None:
    assert decide(Action.SUBMIT, "client", labels=RESTRICTED).allowed


@pytest.mark.parametrize(
    ("kind", "of", "allowed"),
    [("client", "demo", True), ("operator", "demo", True), ("sidecar", "demo", False), ("client", "other", False)],
)
def test_graphs_are_registered_by_clients_and_operators(kind: str, of: str, allowed: bool) -> None:
    principal = f"spiffe://antiphon.internal/ns/{of}/{kind}/x"
    request = Request(Action.OPERATE, principal, kind, "demo", ResourceKind.GRAPH, "review")
    assert POLICIES.decide_batch([request])[0].allowed is allowed


def test_a_sidecar_registers_only_what_its_certificate_grants() -> None:
    principal = "spiffe://antiphon.internal/ns/demo/sidecar/x"
    request = Request.register(
        principal, "sidecar", "demo", "redactor", capability="text.redact", granted=False, verified=True
    )
    assert not POLICIES.decide_batch([request])[0].allowed


@pytest.mark.parametrize("kind", [kind for kind in ResourceKind])
def test_a_client_reads_every_kind_of_resource_of_its_namespace(kind: ResourceKind) -> None:
    name = "demo" if kind is ResourceKind.NAMESPACE else "thing"
    request = Request(Action.READ, "spiffe://antiphon.internal/ns/demo/client/x", "client", "demo", kind, name)
    assert POLICIES.decide_batch([request])[0].allowed
