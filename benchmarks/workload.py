"""The work all measurements share: one capability, and graphs of it with a mapping, schemas and trace context.

The measured agent answers with its input, so what is left is what the product costs.
"""

from __future__ import annotations

import json
import secrets
from datetime import timedelta

from antiphon.v1 import capability_pb2, graph_pb2, payload_pb2, run_pb2, run_service_pb2


class RunFailed(Exception):
    """A run of the workload did not succeed; no number of that measurement counts."""


CHAIN = 10
"""Tasks of a chain."""

FAN_OUT = 100
"""Members of a fan-out."""

TEXT = "x" * 200
"""Makes a payload of about 256 bytes on the wire, as R has."""

INPUT = {"text": TEXT}

TRUST_DOMAIN = "antiphon.internal"
NAMESPACE = "demo"

_PATIENCE = timedelta(minutes=15)
"""A held task waits for a gate that opens when all runs are there."""

_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def principal(kind: str) -> str:
    """The SPIFFE id of a part of the measurement."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/{kind}/bench"


PYTHON = "echo"
"""The capability of the agent in Python; those of the others have the names of `OTHERS`."""

OTHERS = {"go": "echo-go", "typescript": "echo-typescript"}
"""By language the capability of an agent that does the same; its agent is bench-LANGUAGE."""


def capability() -> capability_pb2.Capability:
    """echo@1, as the agent announces it."""
    schema = json.dumps(_SCHEMA)
    effect = capability_pb2.EFFECT_PURE
    return capability_pb2.Capability(name="echo", version="1", input_schema=schema, output_schema=schema, effect=effect)


def _mapping(source: str) -> str:
    return json.dumps({"text": "${" + source + ".text}"})


def chain(length: int = CHAIN, capability: str = PYTHON) -> graph_pb2.Graph:
    """Tasks one after another, each fed by a mapping from the one before."""
    graph = graph_pb2.Graph(name=f"bench-{capability}-{length}", version="1", input_schema=json.dumps(_SCHEMA))
    for number in range(length):
        source = f"tasks.s{number - 1}.output" if number else "input"
        graph.tasks.add(id=f"s{number}", capability=f"{capability}@1", input=_mapping(source))
    graph.output = _mapping(f"tasks.s{length - 1}.output")
    return graph


def fan_out() -> graph_pb2.Graph:
    """One task, a task for each of 100 items, one that joins them."""
    graph = graph_pb2.Graph(name="bench-fan-out", version="1")
    graph.tasks.add(id="first", capability="echo@1", input=_mapping("input"))
    items = "[" + ",".join(str(number) for number in range(FAN_OUT)) + "]"
    member = json.dumps({"text": "${tasks.first.output.text + string(item)}"})
    graph.tasks.add(id="each", capability="echo@1", for_each=items, input=member)
    graph.tasks.add(id="join", capability="echo@1", input=json.dumps({"text": "${string(size(tasks.each.output))}"}))
    return graph


STAGE = 10_000
"""Most members of one fan-out of a large run; a larger run has several, each of which works on what the last gave."""


def large(tasks: int) -> tuple[graph_pb2.Graph, list[int]]:
    """A run of so many tasks, all of them members of fan-outs, and its input. It answers with next to nothing."""
    graph = graph_pb2.Graph(name=f"bench-large-{tasks}", version="1", output='"done"')
    width = min(tasks, STAGE)
    graph.tasks.add(id="s0", capability="echo@1", for_each="input", input=json.dumps({"text": "${string(item)}"}))
    for number in range(1, tasks // width):
        graph.tasks.add(id=f"s{number}", capability="echo@1", for_each=f"tasks.s{number - 1}.output")
    return graph, list(range(width))


def waiting() -> graph_pb2.Graph:
    """Ten tasks, the first of which waits for a signal, and the others for it."""
    graph = graph_pb2.Graph(name="bench-waiting", version="1", input_schema=json.dumps(_SCHEMA))
    graph.tasks.add(id="s0").wait.signal = "go"
    graph.tasks.add(id="s1", capability="echo@1", needs=["s0"], input=_mapping("input"))
    for number in range(2, CHAIN):
        graph.tasks.add(id=f"s{number}", capability="echo@1", input=_mapping(f"tasks.s{number - 1}.output"))
    return graph


def payload() -> bytes:
    """The input of a task as it is placed."""
    data: bytes = payload_pb2.Payload(inline=json.dumps(INPUT).encode()).SerializeToString()
    return data


def held() -> graph_pb2.Graph:
    """A task that waits at a gate, and one that follows at once."""
    graph = graph_pb2.Graph(name="bench-held", version="1", input_schema=json.dumps(_SCHEMA))
    first = graph.tasks.add(id="held", capability="echo-held@1", input=_mapping("input"))
    first.timeout.FromTimedelta(_PATIENCE)
    first.schedule_timeout.FromTimedelta(_PATIENCE)
    graph.tasks.add(id="after", capability="echo@1", input=_mapping("tasks.held.output"))
    return graph


def reference(graph: graph_pb2.Graph) -> str:
    """A registered graph as a submission names it."""
    return f"{graph.name}@{graph.version}"


def check(run: run_pb2.Run) -> None:
    """Raises RunFailed unless the run succeeded: a fast failure must not count as speed."""
    if run.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise RunFailed(f"run {run.run_id}: {run_pb2.RunState.Name(run.state)} {run.failure.message}")


def traceparent() -> str:
    """A new W3C trace context."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def submission(graph: graph_pb2.Graph, request_id: str) -> run_service_pb2.SubmitRunRequest:
    """A submission of a registered graph, to be answered when the run has ended."""
    request = run_service_pb2.SubmitRunRequest(request_id=request_id, wait=True, traceparent=traceparent())
    request.registered.name, request.registered.version = graph.name, graph.version
    request.input.inline = json.dumps(INPUT).encode()
    return request
