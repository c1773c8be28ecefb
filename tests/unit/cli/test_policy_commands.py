"""`antiphon policy`: what works without a server, and how decisions read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from antiphon.cli.explain_view import decision as routing
from antiphon.cli.policies import decision
from antiphon.v1.policy_pb2 import DecisionRecord, Fact
from antiphon.v1.run_pb2 import PolicyDecision, RoutingDecision, WithheldField
from rich.console import Console, RenderableType

from tests.unit.cli.conftest import Command

GOOD = '@id("all") permit (principal, action, resource);\n'


def text_of(thing: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def write(**files: str) -> None:
    Path("policies").mkdir()
    for name, text in files.items():
        Path("policies", name.replace("_", ".")).write_text(text)


def test_a_right_folder_is_called_right(command: Command) -> None:
    write(a_cedar=GOOD, roles_toml='[demo]\nadmin = ["operator/*"]\n')
    done = command("policy", "validate", "policies")
    assert (done.code, done.err) == (0, "policies: right, 1 policies\n")


def test_every_mistake_is_told_with_file_and_line(command: Command) -> None:
    write(a_cedar=GOOD + "permit (principal action);\n", roles_toml='[demo]\nking = ["operator/*"]\n')
    done = command("policy", "validate", "policies")
    assert done.code == 1
    assert [line.split(": ")[0] for line in done.out.splitlines()] == ["policies/a.cedar:2", "policies/roles.toml:2"]
    told = json.loads(command("policy", "validate", "policies", "--json").out)
    assert len(told["mistakes"]) == 2 and told["policies"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("policy", "activate", "nowhere"), "antiphon: nowhere is not a folder; give one with *.cedar files"),
        (("policy", "activate", "."), "antiphon: . holds no *.cedar file; an empty set would deny everything"),
        (("policy", "check", "submit", "--fact", "labels"), "antiphon: --fact labels has no value; write NAME=VALUE"),
    ],
)
def test_what_is_written_wrongly_is_one_line_with_a_remedy(command: Command, words: tuple[str, ...], says: str) -> None:
    done = command(*words)
    assert done.code == 2 and done.err.strip() == says


def test_a_decision_tells_its_rule_its_inputs_and_its_epoch() -> None:
    record = DecisionRecord(
        principal="spiffe://d/ns/demo/client/ann",
        action="dispatch",
        resource_kind="Capability",
        resource_id="mail.send",
        namespace="demo",
        facts=[Fact(name="labels", values=["eu", "pii"]), Fact(name="agent", values=[])],
        decision=PolicyDecision(decision_id="d1", epoch=3, policies=["pii.no-egress"], reason="denied: no"),
        places=["pii.cedar:4"],
    )
    assert [line.split() for line in text_of(decision(record)).splitlines()] == [
        ["DENY", "dispatch", "on", "Capability", "demo/mail.send"],
        ["reason", "denied:", "no"],
        ["rule", "pii.no-egress", "(pii.cedar:4)"],
        ["decision", "d1,", "policy", "epoch", "3"],
        ["principal", "spiffe://d/ns/demo/client/ann"],
        ["labels", "eu,", "pii"],
        ["agent", "none"],
    ]


def test_a_placement_tells_what_was_withheld_and_why() -> None:
    made = RoutingDecision(chosen="s/i/a", considered=1, withheld_count=4)
    for pointer, reason in (("/ssn", "schema"), ("/phone", "hide"), ("", "hide")):
        made.withheld.append(WithheldField(pointer=pointer, reason=reason))
    told = "withheld from it: /ssn (not in its schema); /phone, the whole (policy hide); and 1 more"
    assert told in text_of(routing(made))
