"""One submission as a message, from what a user says of it."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from antiphon.v1 import graph_pb2
from antiphon.v1.payload_pb2 import Payload
from antiphon.v1.run_service_pb2 import GraphReference, SubmitRunRequest

from . import _json
from ._context import sendable

if TYPE_CHECKING:
    from ._graph import Graph

INLINE_LIMIT = 65536


class SubmitOptions(TypedDict, total=False):
    """What a submission may say besides its graph and its input."""

    request_id: str
    """Makes it repeatable: the same id with the same content is the same run. A new one by default."""
    deadline: timedelta
    """Longest duration of the run; the smaller of this and the graph's own holds."""
    labels: Mapping[str, str]
    """For search."""
    priority: int
    """Added to the priority of each task; 0 to 9."""
    wait: bool
    """True: the answer is the run as it ended. False (default): as it was committed."""
    traceparent: str
    """W3C trace context; by default that of the task this code runs for, or a new one."""


Upload = Callable[[bytes], Awaitable[Payload]]


async def payload_of(upload: Upload, value: Any) -> Payload:
    """A value as what is sent of it; above the inline limit it is uploaded. Raises as `submission`."""
    if isinstance(value, Payload):
        return sendable(value)
    data = _json.dumps(value)
    return await upload(data) if len(data) > INLINE_LIMIT else Payload(inline=data)


async def submission(
    upload: Upload, graph: str | Graph | graph_pb2.Graph, input: Any, options: SubmitOptions, trace: str
) -> SubmitRunRequest:
    """The message. Input above the inline limit is uploaded. Raises `TypeError`, `ValueError`, `AntiphonError`."""
    request = SubmitRunRequest(
        request_id=options.get("request_id") or uuid.uuid4().hex,
        labels=options.get("labels"),
        priority=options.get("priority", 0),
        wait=options.get("wait", False),
        traceparent=options.get("traceparent") or trace,
    )
    if isinstance(graph, str):
        name, _, version = graph.partition("@")
        request.registered.CopyFrom(GraphReference(name=name, version=version))
    else:
        request.inline.CopyFrom(graph if isinstance(graph, graph_pb2.Graph) else graph.to_proto())
    if input is not None:
        request.input.CopyFrom(await payload_of(upload, input))
    if (deadline := options.get("deadline")) is not None:
        request.deadline.FromTimedelta(deadline)
    return request
