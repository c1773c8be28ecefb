"""A run as expressions see it, held in plain dictionaries, and short-hands for payloads and graphs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from antiphon.v1.graph_pb2 import Graph, GraphTask
from antiphon.v1.payload_pb2 import Label, Payload
from antiphon_orchestrator.engine.plan import Evaluator


@dataclass
class RunView:
    """Implements engine.plan.View; whatever is not given is not there."""

    input: bytes = b""
    outputs: dict[int, bytes | list[bytes]] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    kept: dict[int, object] = field(default_factory=dict)
    entries: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def output(self, task: int) -> bytes | list[bytes] | None:
        return self.outputs.get(task)

    def state(self, task: int) -> str:
        return self.states.get(task, "PENDING")

    def failure(self, task: int) -> tuple[str, str] | None:
        return self.failures.get(task)

    def entry(self, scope: str, key: str) -> bytes | None:
        return self.entries.get((scope, key))


def payload(value: object, *labels: str, **fields: object) -> bytes:
    """A serialised payload with the value inline; a label is written "key" or "key:value"."""
    marks = [Label(key=label.partition(":")[0], value=label.partition(":")[2]) for label in labels]
    return Payload(inline=json.dumps(value).encode(), labels=marks, **fields).SerializeToString()  # type: ignore[arg-type]


def value_of(data: bytes) -> object:
    """The value of a serialised payload; b"" is null."""
    return json.loads(Payload.FromString(data).inline or b"null")


def labels_of(data: bytes) -> list[str]:
    """The labels of a serialised payload as `payload` takes them."""
    return [f"{label.key}:{label.value}" if label.value else label.key for label in Payload.FromString(data).labels]


def graph(*tasks: GraphTask, **fields: object) -> Graph:
    return Graph(name="g", tasks=tasks, **fields)  # type: ignore[arg-type]


def task(id: str, **fields: object) -> GraphTask:
    return GraphTask(id=id, **{"capability": "x.y@1", **fields})  # type: ignore[arg-type]


def members_of(
    evaluator: Evaluator, view: RunView, task: int, first: int = 1, most: int = 100
) -> tuple[int, list[bytes]]:
    """Number of members of a fan-out and the inputs of at most so many, in as many parts as a busy machine makes."""
    count, inputs = evaluator.members(task, view, first, most)
    while len(inputs) < min(count - first + 1, most):
        more = evaluator.members(task, view, first + len(inputs), most - len(inputs))[1]
        assert more
        inputs += more
    return count, inputs
