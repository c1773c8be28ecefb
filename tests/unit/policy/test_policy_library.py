"""The policies of examples/policies: they decide as the table beside them says, every policy of them decides something
there, and whoever begins with them can use what the pages for operators show."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from antiphon.options.v1.options_pb2 import IdentityKind
from antiphon_orchestrator.api.checks import RESOURCES
from antiphon_orchestrator.api.image import Image
from antiphon_orchestrator.policy import Action, CedarPolicies, Request, ResourceKind, facts_of, load_folder
from antiphon_orchestrator.policy.rules import compile_bundle

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples/policies"
BUNDLE = load_folder(FOLDER)
IMAGE = Image.load()
POLICIES = CedarPolicies(BUNDLE)
TABLE: list[dict[str, Any]] = tomllib.loads((FOLDER / "decisions.toml").read_text())["decision"]


def request(question: dict[str, Any]) -> Request:
    namespace, kind, name = question["principal"].split("/")
    resource_kind, resource = question["resource"].split(" ")
    resource_namespace, resource_id = resource.split("/", 1)
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


METHODS = {
    "agent drain": "RegistryService/DrainAgent",
    "agent list": "RegistryService/ListAgents",
    "agent resume": "RegistryService/ResumeAgent",
    "agent suspend": "RegistryService/SuspendAgent",
    "audit export": "AuditService/GetCheckpoint",
    "audit list": "AuditService/ListRecords",
    "audit verify": "AuditService/DigestRuns",
    "certs revocations": "IdentityService/ListRevocations",
    "certs revoke": "IdentityService/RevokeCertificates",
    "certs token": "IdentityService/CreateToken",
    "policy activate": "PolicyService/ActivatePolicies",
    "run cancel": "RunService/CancelRun",
    "run explain": "RunService/ExplainTask",
    "run get": "RunService/GetRun",
    "run list": "RunService/ListRuns",
    "run output": "RunService/GetRun",
    "run pause": "RunService/PauseRun",
    "run resolve": "RunService/ResolveTask",
    "run resume": "RunService/ResumeRun",
    "run retry": "RunService/RetryTask",
    "run signal": "RunService/SignalRun",
    "run watch": "RunService/WatchRun",
}
"""What is called by each command that operations.md and audit.md show."""
UNASKED = {"certs init", "certs join", "certs renew", "certs rotate", "certs show"}
"""Those that policy has no say in."""


def shown() -> set[str]:
    """The commands of both pages: `antiphon run list`, `run get RUN`, and `resume` after one in the same sentence."""
    found = set()
    for page in ("operations.md", "audit.md"):
        text = (ROOT / "docs" / page).read_text()
        for match in re.finditer(r"(?:antiphon\s+|`)(agent|audit|certs|policy|run)\s+([a-z]+)\b(?=([^.]*))", text):
            group, command, rest = match.groups()
            also = {f"{group} {word}" for word in re.findall(r"`([a-z]+)`", rest)}
            found |= {f"{group} {command}", *(also & METHODS.keys())}
    return found


def test_every_command_of_the_pages_for_operators_is_asked_about() -> None:
    assert shown() == METHODS.keys() | UNASKED


@pytest.mark.parametrize("command", METHODS)
def test_what_the_pages_for_operators_show_is_permitted(command: str) -> None:
    method = IMAGE.methods[f"/antiphon.v1.{METHODS[command]}"]
    assert method.action is not None
    resource_kind, field = RESOURCES.get(method.path, (ResourceKind.NAMESPACE, ()))
    asked = [("operator", "olga")]
    if method.action is Action.READ_AUDIT:
        asked.append(("operator", "audit-1"))
    # Who works does not answer what is escalated.
    if IdentityKind.IDENTITY_KIND_CLIENT in method.kinds and method.action is not Action.RESOLVE:
        asked.append(("client", "ann"))
    for kind, name in asked:
        about = "x" if field else "default"
        principal = f"spiffe://antiphon.internal/ns/default/{kind}/{name}"
        decision = POLICIES.check(Request(method.action, principal, kind, "default", resource_kind, about))
        assert decision.allowed, decision.reason
