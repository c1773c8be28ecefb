"""Turns the text of a bundle into policies that can be evaluated, or refuses it whole with every mistake found.

Invariants: each policy has an `@id` of its own and the engine knows it by that id (Cedar's own ids are positions); all
pass strict validation against the generated schema; an annotation nobody knows is refused, because a misspelt
obligation would otherwise be no obligation. The *names* of obligations are not checked here: a bundle may be newer than
this replica, and then only the decisions that rest on that policy are denied (`cedar.py`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cedarpy

from antiphon_orchestrator.policy.bundle import PolicyBundle, PolicyError, PolicyFile
from antiphon_orchestrator.policy.model import Obligation
from antiphon_orchestrator.policy.schema import schema_json

SCHEMA = cedarpy.Schema.from_json_str(schema_json())

_ANNOTATIONS = frozenset({"id", "obligation", "fields", "reason"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Rule:
    """What the annotations of one policy say. `reason`: what a forbid tells the person it stops."""

    obligation: Obligation | None
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    policies: cedarpy.PolicySet
    by_id: Mapping[str, Rule]


def compile_bundle(bundle: PolicyBundle) -> Rules:
    """Raises PolicyError with every problem of every file."""
    reading = _Reading()
    for file in bundle.files:
        reading.add(file)
    if reading.problems:
        raise PolicyError(reading.problems)
    merged = {"staticPolicies": reading.policies, "templates": {}, "templateLinks": []}
    return Rules(cedarpy.PolicySet.from_json_str(json.dumps(merged)), reading.rules)


@dataclass(slots=True)
class _Reading:
    policies: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, file: PolicyFile) -> None:
        starts = _starts(file.text)

        def place(position: int) -> str:
            return f"{file.name}:{starts[position]}"

        try:
            parsed = json.loads(cedarpy.policies_to_json_str(file.text))
        except ValueError as error:
            self.problems.append(f"{place(-1)}: the policy that begins here cannot be read: {error}")
            return
        self.problems += [f"{place(_position(key))}: templates are not supported" for key in parsed["templates"]]
        for key, policy in sorted(parsed["staticPolicies"].items(), key=lambda item: _position(item[0])):
            self._add_policy(place(_position(key)), policy)
        for mistake in cedarpy.validate_policies(file.text, SCHEMA).errors:
            at = place(_position(mistake.policy_id)) if mistake.policy_id else file.name
            self.problems.append(f"{at}: {mistake.error.removeprefix(f'for policy `{mistake.policy_id}`, ')}")

    def _add_policy(self, place: str, policy: dict[str, Any]) -> None:
        # A bare annotation (`@log`) comes as null; Cedar defines it as the empty string. None at all: no key at all.
        annotations = {name: value or "" for name, value in policy.get("annotations", {}).items()}
        policy_id = annotations.get("id", "")
        if not policy_id:
            self.problems.append(f'{place}: the policy has no @id; begin it with @id("some.name")')
        elif not _ID.fullmatch(policy_id):
            self.problems.append(f"{place}: @id {policy_id!r} must be 1-128 letters, digits, '.', '_', '-'")
        elif policy_id in self.policies:
            self.problems.append(f"{place}: @id {policy_id!r} is taken by the policy at {self.places[policy_id]}")
        for name in sorted(annotations.keys() - _ANNOTATIONS):
            self.problems.append(f"{place}: unknown annotation @{name}; known are @{', @'.join(sorted(_ANNOTATIONS))}")
        fields = tuple(part.strip() for part in annotations.get("fields", "").split(",") if part.strip())
        obligation = annotations.get("obligation")
        if obligation == "":
            self.problems.append(f"{place}: @obligation names nothing")
        if (obligation == "redact") != bool(fields):
            self.problems.append(f'{place}: @obligation("redact") and @fields("a,b") need each other')
        self.policies[policy_id] = policy
        self.places[policy_id] = place
        self.rules[policy_id] = Rule(
            obligation=Obligation(obligation, fields) if obligation else None,
            reason=annotations.get("reason", ""),
        )


def _position(policy_key: str) -> int:
    """Cedar's own id of a policy, `policy7`, counts from 0 in the order of the text."""
    return int(policy_key.removeprefix("policy"))


def _starts(text: str) -> list[int]:
    """The lines, from 1, on which the policies of a text begin; the last entry is where reading stopped.

    Cedar's Python binding reports no positions. Here its own parser is given a line more at a time until what it has is
    whole, so strings and comments need no rules of ours.
    """
    lines = text.split("\n")

    def first_code_line(index: int) -> int:
        for number, line in enumerate(lines[index:], start=index + 1):
            if line.strip() and not line.lstrip().startswith("//"):
                return number
        return len(lines)

    starts: list[int] = []
    begin = 0
    for end, line in enumerate(lines, start=1):
        if ";" not in line:
            continue
        try:
            parsed = json.loads(cedarpy.policies_to_json_str("\n".join(lines[begin:end])))
        except ValueError:
            continue
        starts += [first_code_line(begin)] * (len(parsed["staticPolicies"]) + len(parsed["templates"]))
        begin = end
    return [*starts, first_code_line(begin)]
