"""The Cedar schema, generated from the tables below so that actions and their facts are spelled once.

Every attribute is required: a request that lacks a fact does not fit the schema and is denied. What is named by the
resource (graph, capability, agent) or the principal (a registering sidecar) is not repeated in the context.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from antiphon_orchestrator.policy.model import Action, ResourceKind, Value
from antiphon_orchestrator.policy.roles import ROLES

STRING = {"type": "String"}
LONG = {"type": "Long"}
BOOL = {"type": "Boolean"}
STRINGS = {"type": "Set", "element": STRING}

RESOURCES: Mapping[Action, tuple[ResourceKind, ...]] = MappingProxyType(
    {
        Action.SUBMIT: (ResourceKind.GRAPH,),
        Action.READ: tuple(ResourceKind),
        Action.CANCEL: (ResourceKind.RUN,),
        Action.SIGNAL: (ResourceKind.RUN,),
        Action.PAUSE: (ResourceKind.RUN,),
        Action.RETRY: (ResourceKind.RUN,),
        Action.RESOLVE: (ResourceKind.RUN,),
        Action.DISPATCH: (ResourceKind.CAPABILITY,),
        Action.CALL: (ResourceKind.CAPABILITY,),
        Action.RELEASE: (ResourceKind.CAPABILITY,),
        Action.REGISTER: (ResourceKind.AGENT,),
        Action.READ_PAYLOAD: (ResourceKind.NAMESPACE,),
        Action.WRITE_PAYLOAD: (ResourceKind.NAMESPACE,),
        Action.READ_CONTEXT: (ResourceKind.ENTRY,),
        Action.WRITE_CONTEXT: (ResourceKind.ENTRY,),
        Action.READ_AUDIT: (ResourceKind.NAMESPACE,),
        Action.OPERATE: (ResourceKind.AGENT, ResourceKind.GRAPH, ResourceKind.NAMESPACE),
        Action.CHANGE_POLICY: (ResourceKind.NAMESPACE,),
    }
)

_ENTRY = {"agent": STRING, "key": STRING, "labels": STRINGS, "own": BOOL, "scope": STRING}

# Actions without a row are decided by principal and resource alone.
CONTEXT: Mapping[Action, Mapping[str, object]] = MappingProxyType(
    {
        Action.SUBMIT: {"labels": STRINGS, "priority": LONG},
        Action.DISPATCH: {
            "agent": STRING,
            "agent_clearance": STRINGS,
            "attempt": LONG,
            "effect": STRING,
            "labels": STRINGS,
            "version": STRING,
        },
        Action.CALL: {"agent": STRING, "labels": STRINGS},
        Action.RELEASE: {"labels": STRINGS},
        Action.REGISTER: {"capability": STRING, "granted": BOOL, "verified": BOOL},
        Action.READ_CONTEXT: _ENTRY,
        Action.WRITE_CONTEXT: _ENTRY,
    }
)


# Facts of a question that a person asks and does not give: the least that can be asked for.
UNSAID: Mapping[str, Value] = MappingProxyType(
    {
        "agent": "",
        "agent_clearance": frozenset(),
        "attempt": 1,
        "capability": "",
        "effect": "pure",
        "granted": True,
        "key": "",
        "labels": frozenset(),
        "own": True,
        "priority": 0,
        "scope": "namespace",
        "verified": False,
        "version": "1",
    }
)


WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"effect": ("pure", "read", "write", "egress"), "scope": ("namespace", "run", "graph")}
)
"""All values of facts that are words with a meaning."""


class FactInvalid(ValueError):
    """A fact that the action does not have, or whose value is not of its type; the text says which."""


def facts_of(action: Action, given: Mapping[str, Sequence[str]]) -> tuple[tuple[str, Value], ...]:
    """The facts of a question about `action`, sorted, from words: those given, the others as UNSAID.

    Raises FactInvalid.
    """
    table = CONTEXT.get(action, {})
    for name in given:
        if name not in table:
            known = f"; it has {', '.join(sorted(table))}" if table else ", which has none"
            raise FactInvalid(f"{name!r} is no fact of {action}{known}")
    return tuple(
        (name, _fact(name, kind, given[name]) if name in given else UNSAID[name])
        for name, kind in sorted(table.items())
    )


def _fact(name: str, kind: object, values: Sequence[str]) -> Value:
    if kind is STRINGS:
        return frozenset(values)
    if len(values) != 1:
        raise FactInvalid(f"{name!r} takes one value, not {len(values)}")
    (text,) = values
    if kind is LONG:
        if not text.removeprefix("-").isdecimal() or len(text) > 18:
            raise FactInvalid(f"{name!r} is a number, not {text!r}")
        return int(text)
    if kind is BOOL:
        if text not in ("true", "false"):
            raise FactInvalid(f"{name!r} is true or false, not {text!r}")
        return text == "true"
    if name in WORDS and text not in WORDS[name]:
        raise FactInvalid(f"{name!r} is one of {', '.join(WORDS[name])}, not {text!r}")
    return text


def schema_json() -> str:
    """The schema in Cedar's JSON form; the same text each time."""
    entities: dict[str, object] = {
        "Identity": _entity(
            {"kind": STRING, "namespace": STRING, "name": STRING}, parents=[ResourceKind.NAMESPACE, "Role"]
        ),
        # Enumerated, so that a policy that misspells a role is refused.
        "Role": {"enum": list(ROLES)},
    }
    for kind in ResourceKind:
        parents = [] if kind is ResourceKind.NAMESPACE else [ResourceKind.NAMESPACE]
        entities[kind] = _entity({"namespace": STRING, "name": STRING}, parents)
    actions = {
        action: {
            "appliesTo": {
                "principalTypes": ["Identity"],
                "resourceTypes": list(RESOURCES[action]),
                "context": _record(CONTEXT.get(action, {})),
            }
        }
        for action in Action
    }
    return json.dumps({"": {"entityTypes": entities, "actions": actions}}, sort_keys=True, indent=1)


def _entity(attributes: Mapping[str, object], parents: Sequence[str]) -> dict[str, object]:
    return {"memberOfTypes": list(parents), "shape": _record(attributes)}


def _record(attributes: Mapping[str, object]) -> dict[str, object]:
    return {"type": "Record", "attributes": dict(attributes)}
