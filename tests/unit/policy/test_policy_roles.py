"""Roles of identities, as `roles.toml` binds them and Cedar sees them."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.policy import (
    Action,
    CedarPolicies,
    PolicyBundle,
    PolicyError,
    PolicyFile,
    Request,
    ResourceKind,
)
from antiphon_orchestrator.policy.roles import ROLES, read_roles

BINDINGS = """
["*"]
viewer = ["client/*"]

[demo]
developer = ["client/ann", "client/team-*"]
admin = ["operator/olga", "system/operator/*"]
auditor = ["*/client/eve"]
"""


def roles_of(identity: str, resource_namespace: str = "demo") -> tuple[str, ...]:
    roles, problems = read_roles("roles.toml", BINDINGS)
    assert problems == []
    namespace, kind, name = identity.split("/")
    return roles.of(resource_namespace, namespace, kind, name)


@pytest.mark.parametrize(
    ("identity", "resource_namespace", "roles"),
    [
        ("demo/client/ann", "demo", ("developer", "viewer")),
        ("demo/client/bob", "demo", ("viewer",)),
        ("demo/client/team-a", "demo", ("developer", "viewer")),
        ("demo/client/ann", "other", ()),
        ("other/client/ann", "other", ("viewer",)),
        ("other/client/ann", "demo", ()),
        ("demo/operator/olga", "demo", ("admin",)),
        ("demo/operator/otto", "demo", ()),
        ("system/operator/root", "demo", ("admin",)),
        ("system/operator/root", "other", ()),
        ("elsewhere/client/eve", "demo", ("auditor",)),
    ],
)
def test_a_role_holds_where_it_is_bound(identity: str, resource_namespace: str, roles: tuple[str, ...]) -> None:
    assert roles_of(identity, resource_namespace) == roles


def decide(policies: CedarPolicies, name: str, *, kind: str = "client", of: str = "demo") -> bool:
    principal = f"spiffe://antiphon.internal/ns/demo/{kind}/{name}"
    request = Request(Action.READ, principal, kind, of, ResourceKind.NAMESPACE, of)
    return policies.decide_batch([request])[0].allowed


def test_a_policy_decides_by_role_and_a_new_epoch_brings_new_bindings() -> None:
    policy = PolicyFile("a.cedar", '@id("dev") permit(principal in Role::"developer", action, resource);')
    policies = CedarPolicies(PolicyBundle.of(1, [policy, PolicyFile("roles.toml", BINDINGS)]))
    assert decide(policies, "ann") and not decide(policies, "bob") and not decide(policies, "ann", of="other")
    policies.activate(PolicyBundle.of(2, [policy, PolicyFile("roles.toml", BINDINGS.replace("ann", "bob"))]))
    assert not decide(policies, "ann") and decide(policies, "bob")
    policies.activate(PolicyBundle.of(3, [policy]))
    assert not decide(policies, "bob")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_can_be_named_in_a_policy(role: str) -> None:
    bundle = [
        PolicyFile("a.cedar", f'@id("a") permit(principal in Role::"{role}", action, resource);'),
        PolicyFile("roles.toml", f'[demo]\n{role} = ["client/ann"]\n'),
    ]
    assert decide(CedarPolicies(PolicyBundle.of(1, bundle)), "ann")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[demo]\nking = []", "roles.toml:2: there is no role 'king'; there are admin, approver, "),
        ("[demo]\nadmin = 1", 'roles.toml:2: admin is not a list of identities; write ["client/*"]'),
        ('[demo]\n\nadmin = ["olga"]', "roles.toml:3: 'olga' is not KIND/NAME or NAMESPACE/KIND/NAME"),
        ('[demo]\nadmin = ["spiffe://x/y"]', "roles.toml:2: 'spiffe://x/y' is not KIND/NAME"),
        ('[demo]\nadmin = ["robot/*"]', "roles.toml:2: 'robot/*': 'robot' is none of client, operator"),
        ('[demo]\nadmin = ["client/a*b"]', "roles.toml:2: 'client/a*b': 'a*b' is no name"),
        ('[demo]\nadmin = ["client/"]', "roles.toml:2: 'client/': '' is no name"),
        ('["a/b"]\nadmin = []', "roles.toml:1: 'a/b' is no namespace"),
        ('admin = ["client/*"]', "roles.toml:1: 'admin' is not a table"),
        ("[demo]\nadmin = [", "roles.toml:2: cannot be read: "),
        ("[demo]\nadmin = [" + '"client/a",' * 1025 + "]", "roles.toml:1: holds 1025 bindings; 1024 are the most"),
    ],
)
def test_a_binding_that_would_bind_nobody_is_refused_with_its_line(text: str, problem: str) -> None:
    files = [PolicyFile("a.cedar", '@id("a") permit(principal, action, resource);'), PolicyFile("roles.toml", text)]
    with pytest.raises(PolicyError) as refused:
        CedarPolicies(PolicyBundle.of(1, files))
    assert refused.value.problems[0].startswith(problem)
