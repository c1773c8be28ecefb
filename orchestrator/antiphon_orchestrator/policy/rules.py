"""Turns the text of a bundle into policies that can be evaluated, or refuses it whole with every mistake found.

Invariants: each policy has an `@id` of its own and the engine knows it by that id (Cedar's own ids are positions); all
pass strict validation against the generated schema; an annotation nobody knows is refused, because a misspelt
obligation would otherwise be no obligation. So is an obligation that nobody carries out, or that an action of its
policy has no use for; but not in what the store keeps, which may be newer than this replica: then only the decisions
that rest on that policy are denied (`cedar.py`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cedarpy

from antiphon_orchestrator.policy.bundle import PolicyBundle, PolicyError, PolicyFile
from antiphon_orchestrator.policy.model import OBLIGATIONS, REDACTING, Action, Obligation
from antiphon_orchestrator.policy.roles import ROLES_FILE, Roles, read_roles
from antiphon_orchestrator.policy.schema import schema_json

SCHEMA = cedarpy.Schema.from_json_str(schema_json())
MAX_POLICIES = 1000
"""A decision that is not remembered looks at all of them: some 0.8 ms then."""
MAX_REDACTIONS = 64

_ANNOTATIONS = frozenset({"id", "obligation", "fields", "labels", "reason", "rate", "burst", "concurrent", "per"})
_LIMITING = ("rate", "burst", "concurrent", "per")
_PER = ("namespace", "capability", "agent")
_RATE = re.compile(r"[1-9][0-9]{0,5}/[smh]")
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_REDACTING = ", ".join(f'Action::"{action}"' for action in sorted(REDACTING))
_LATER = frozenset({"approve", "cap", "escalate", "require_approval"})
# What may hold a semicolon that ends nothing, then the one that does.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|;', re.DOTALL)
_COMMENTS = re.compile(r"//[^\n]*")
_BEFORE = re.compile(r"(?:\s+|//[^\n]*)*")


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of one policy besides its logic. `reason`: what a forbid tells the person it stops; `place`:
    file:line where it begins."""

    obligation: Obligation | None
    reason: str
    place: str


@dataclass(frozen=True, slots=True)
class Rules:
    policies: cedarpy.PolicySet
    by_id: Mapping[str, Rule]
    roles: Roles


def compile_bundle(bundle: PolicyBundle, *, kept: bool = False) -> Rules:
    """Raises PolicyError with every problem of every file. Takes some 0.2 ms a policy.

    `kept`: the store has it, so what this version cannot carry out of it is no problem here.
    """
    reading = _Reading(kept)
    for file in bundle.files:
        reading.add(file)
    if len(reading.policies) > MAX_POLICIES:
        reading.problems.append(f"there are {len(reading.policies)} policies; {MAX_POLICIES} are the most")
    if reading.problems:
        raise PolicyError(reading.problems)
    merged = {"staticPolicies": reading.policies, "templates": {}, "templateLinks": []}
    return Rules(cedarpy.PolicySet.from_json_str(json.dumps(merged)), reading.rules, reading.roles)


@dataclass(slots=True)
class _Reading:
    kept: bool
    policies: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    roles: Roles = field(default_factory=Roles)

    def add(self, file: PolicyFile) -> None:
        if file.name == ROLES_FILE:
            self.roles, problems = read_roles(file.name, file.text)
            self.problems += problems
        elif file.name.endswith(".cedar"):
            self._add_policies(file)
        else:
            self.problems.append(f"{file.name}: is neither a *.cedar file nor {ROLES_FILE}")

    def _add_policies(self, file: PolicyFile) -> None:
        statements = list(_statements(file.text))
        places = [f"{file.name}:{line}" for line, _ in statements]
        try:
            parsed = json.loads(cedarpy.policies_to_json_str(file.text))
        except ValueError as error:
            self._tell_unreadable(file.name, statements, error)
            return
        self.problems += [f"{places[_position(key)]}: templates are not supported" for key in parsed["templates"]]
        for key, policy in sorted(parsed["staticPolicies"].items(), key=lambda item: _position(item[0])):
            self._add_policy(places[_position(key)], policy)
        for mistake in cedarpy.validate_policies(file.text, SCHEMA).errors:
            at = places[_position(mistake.policy_id)] if mistake.policy_id else file.name
            self.problems.append(f"{at}: {mistake.error.removeprefix(f'for policy `{mistake.policy_id}`, ')}")

    def _tell_unreadable(self, name: str, statements: list[tuple[int, str]], whole: ValueError) -> None:
        """Cedar's binding reports no positions, so each policy is read by itself."""
        before = len(self.problems)
        for line, text in statements:
            try:
                cedarpy.policies_to_json_str(text)
            except ValueError as error:
                self.problems.append(f"{name}:{line}: the policy that begins here cannot be read: {error}")
        if len(self.problems) == before:
            self.problems.append(f"{name}: cannot be read: {whole}")

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
        self.policies[policy_id] = policy
        self.places[policy_id] = place
        obligation = self._obligation(place, policy, annotations)
        self.rules[policy_id] = Rule(obligation, annotations.get("reason", ""), place)

    def _obligation(self, place: str, policy: Mapping[str, Any], annotations: Mapping[str, str]) -> Obligation | None:
        name = annotations.get("obligation")
        if name == "":
            self.problems.append(f"{place}: @obligation names nothing")
        if name in _LATER:
            later = "comes in a later version; until then forbid what needs it"
            self.problems.append(f'{place}: @obligation("{name}") {later}')
        elif name and name not in OBLIGATIONS and not self.kept:
            self.problems.append(
                f"{place}: there is no @obligation({name!r}); there are {', '.join(sorted(OBLIGATIONS))}"
            )
        if name == "redact" and not self.kept and not _actions(policy) <= REDACTING:
            self.problems.append(f'{place}: @obligation("redact") needs action in [{_REDACTING}], or one of them')
        if name and policy["effect"] == "forbid":
            self.problems.append(f"{place}: @obligation belongs to a permit; a forbid leaves nothing to be done")
        params = (
            *(self._pointer(place, path) for path in _listed(annotations.get("fields", ""))),
            *(self._label(place, label) for label in _listed(annotations.get("labels", ""))),
        )
        if (name == "redact") != bool(params):
            wanted = '@fields("a,b.c") or @labels("pii")'
            self.problems.append(f'{place}: @obligation("redact") and {wanted} need each other')
        if len(params) > MAX_REDACTIONS:
            self.problems.append(f"{place}: redacts {len(params)} fields and labels; {MAX_REDACTIONS} are the most")
        if name == "limit" or any(word in annotations for word in _LIMITING):
            params = self._limit(place, name, policy, annotations)
        return Obligation(name, params) if name else None

    def _limit(
        self, place: str, name: str | None, policy: Mapping[str, Any], annotations: Mapping[str, str]
    ) -> tuple[str, ...]:
        """The parameters of an obligation `limit`, as `Limit.of` reads them."""
        if name != "limit" or not ("rate" in annotations or "concurrent" in annotations):
            wanted = '@rate("100/s"), @concurrent("10") or both'
            self.problems.append(f'{place}: @obligation("limit") and {wanted} need each other')
        action = policy["action"].get("entity", {}).get("id")
        if name == "limit" and (policy["action"]["op"] != "==" or action != Action.DISPATCH):
            self.problems.append(f'{place}: @obligation("limit") needs action == Action::"dispatch"')
        rate = annotations.get("rate")
        if rate is not None and not _RATE.fullmatch(rate):
            self.problems.append(f"{place}: @rate: {rate!r} is no rate; write 100/s, 100/m or 100/h")
        if "burst" in annotations and rate is None:
            self.problems.append(f"{place}: @burst belongs to a @rate")
        for word in ("burst", "concurrent"):
            if (number := annotations.get(word)) is not None and not _COUNT.fullmatch(number):
                self.problems.append(f"{place}: @{word}: {number!r} is no number from 1 to 999999")
        per = tuple(_listed(annotations.get("per", "")))
        for word in per:
            if word not in _PER:
                self.problems.append(f"{place}: @per: {word!r} has no count of its own; known are {', '.join(_PER)}")
        said = {word: annotations.get(word, "") for word in ("rate", "burst", "concurrent")}
        said["per"] = "+".join(word for word in _PER if word in per)
        return (annotations.get("id", ""), *(f"{word}={text}" for word, text in said.items() if text))

    def _pointer(self, place: str, path: str) -> str:
        """A field as a JSON pointer: `/a/b` as it is, `a.b` in dots."""
        steps = path[1:].split("/") if path.startswith("/") else path.split(".")
        if not all(steps) or len(path) > 512:
            self.problems.append(f"{place}: @fields: {path!r} is no path; write a.b or /a/b")
        if path.startswith("/"):
            return path
        return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)

    def _label(self, place: str, label: str) -> str:
        if not _LABEL.fullmatch(label):
            self.problems.append(f"{place}: @labels: {label!r} is no label; write its key, such as pii")
        return f"label:{label}"


def _listed(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(",") if part.strip())


def _actions(policy: Mapping[str, Any]) -> set[str]:
    """The actions that the head of a policy names; all that there are where it names none."""
    head = policy["action"]
    named = head.get("entities") or ([head["entity"]] if "entity" in head else [])
    return {entity["id"] for entity in named} or set(Action)


def _position(policy_key: str) -> int:
    """Cedar's own id of a policy, `policy7`, counts from 0 in the order of the text."""
    return int(policy_key.removeprefix("policy"))


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The policies of a text with the lines, from 1, on which they begin, comments before them not counted."""
    begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] == ";":
            yield _code_line(text, begin), text[begin : token.end()]
            begin = token.end()
    if _COMMENTS.sub("", text[begin:]).strip():
        yield _code_line(text, begin), text[begin:]


def _code_line(text: str, begin: int) -> int:
    """The line of the first character from `begin` on that is neither space nor comment."""
    found = _BEFORE.match(text, begin)
    assert found is not None
    return text.count("\n", 0, found.end()) + 1
