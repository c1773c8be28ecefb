"""The policies of examples/policies, as the table beside them says; every policy of them decides something there."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator.policy import Action, CedarPolicies, Request, ResourceKind, facts_of, load_folder
from antiphon_orchestrator.policy.rules import compile_bundle

FOLDER = Path(__file__).parents[3] / "examples/policies"
BUNDLE = load_folder(FOLDER)
POLICIES = CedarPolicies(BUNDLE)
TABLE: list[dict[str, Any]] = tomllib.loads((FOLDER / "decisions.toml").read_text())["decision"]


def request(question: dict[str, Any]) -> Request:
    namespace, kind, name = question["principal"].split("/")
    resource_kind, resource = question["resource"].split(" ")
    resource_namespace, resource_id = resource.split("/")
    action = Action(question["action"])
    return Request(
        action,
        f"spiffe://antiphon.internal/ns/{namespace}/{kind}/{name}",
        kind,
        resource_namespace,
        ResourceKind(resource_kind),
        resource_id,
        facts_of(action, question.get("facts", {})),
    )


@pytest.mark.parametrize("row", TABLE, ids=[row["about"].replace(" ", "-") for row in TABLE])
def test_the_table_says_what_is_decided(row: dict[str, Any]) -> None:
    (decision,) = POLICIES.decide_batch([request(row["question"])])
    assert decision.allowed is row["allowed"], decision.reason
    assert list(decision.policies) == row.get("by", [])
    assert list(decision.redactions) == row.get("redacts", [])


def test_every_policy_decides_something_in_the_table() -> None:
    decided = {policy for row in TABLE for policy in row.get("by", [])}
    assert set(compile_bundle(BUNDLE).by_id) - decided == {"flow.payloads"}
