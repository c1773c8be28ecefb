"""What a handler returns that takes its task apart. A module of its own: few agents load what builds graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from antiphon.v1 import agent_service_pb2, graph_pb2
from antiphon.v1.payload_pb2 import Payload

if TYPE_CHECKING:
    from ._graph import Graph


@dataclass(frozen=True, slots=True)
class Subgraph:
    """What a handler returns that takes its task apart: a graph, which runs beneath the task in place of an output.

    Its output is the task's, and has to fit what the handler promises to return; its failure is the task's. `input` is
    the value that its expressions know as `input`, JSON or a `Payload`. A graph with mistakes fails the
    attempt and names each.
    """

    graph: Graph | graph_pb2.Graph
    input: Any = None

    def to_proto(self, input: bytes | Payload | None) -> agent_service_pb2.Subgraph:
        """The message, with the input as JSON or as the envelope it is in."""
        graph = self.graph if isinstance(self.graph, graph_pb2.Graph) else self.graph.to_proto()
        message = agent_service_pb2.Subgraph(graph=graph)
        if isinstance(input, Payload):
            message.input.CopyFrom(input)
        elif input is not None:
            message.input.inline = input
        return message
