"""The Cedar schema, generated from the tables below so that actions and their facts are spelled once.

Every attribute is required: a request that lacks a fact does not fit the schema and is denied. What is named by the
resource (graph, capability, agent) or the principal (a registering sidecar) is not repeated in the context.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType

from antiphon_orchestrator.policy.model import Action, ResourceKind

STRING = {"type": "String"}
LONG = {"type": "Long"}
BOOL = {"type": "Boolean"}
STRINGS = {"type": "Set", "element": STRING}

RESOURCES: Mapping[Action, tuple[ResourceKind, ...]] = MappingProxyType(
    {
        Action.SUBMIT: (ResourceKind.GRAPH,),
        Action.READ: tuple(ResourceKind),
        Action.CANCEL: (ResourceKind.RUN,),
        Action.DISPATCH: (ResourceKind.CAPABILITY,),
        Action.RELEASE: (ResourceKind.CAPABILITY,),
        Action.REGISTER: (ResourceKind.AGENT,),
        Action.READ_PAYLOAD: (ResourceKind.NAMESPACE,),
        Action.WRITE_PAYLOAD: (ResourceKind.NAMESPACE,),
        Action.READ_AUDIT: (ResourceKind.NAMESPACE,),
        Action.OPERATE: (ResourceKind.AGENT, ResourceKind.GRAPH, ResourceKind.NAMESPACE),
    }
)

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
        Action.RELEASE: {"labels": STRINGS},
        Action.REGISTER: {"capability": STRING, "granted": BOOL},
    }
)


def schema_json() -> str:
    """The schema in Cedar's JSON form; the same text each time."""
    entities: dict[str, object] = {
        "Identity": _entity({"kind": STRING, "namespace": STRING, "name": STRING}, parents=[ResourceKind.NAMESPACE])
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


def _entity(attributes: Mapping[str, object], parents: list[ResourceKind]) -> dict[str, object]:
    return {"memberOfTypes": parents, "shape": _record(attributes)}


def _record(attributes: Mapping[str, object]) -> dict[str, object]:
    return {"type": "Record", "attributes": dict(attributes)}
