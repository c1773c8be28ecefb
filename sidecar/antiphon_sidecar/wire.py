"""Messages of the mesh, made from what `inflight.py` holds.

Values of users are copied as they are, never parsed. One message holds at most 256 items of a list and about 1 MiB, so
that it is quick to write and within everybody's limits; what does not fit waits for the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import failure_pb2, registry_pb2

from .attempts import Attempt, End
from .boxes import Link, Said
from .checks import failed
from .inflight import Inflight

PROTOCOL_VERSION = 1
MOST_ITEMS = 256
MOST_BYTES = 1 << 20

_RETURNS = {
    End.TOO_LATE: mesh.RETURN_REASON_TOO_LATE,
    End.AGENT_GONE: mesh.RETURN_REASON_AGENT_GONE,
    End.DRAINING: mesh.RETURN_REASON_DRAINING,
    End.NO_SLOT: mesh.RETURN_REASON_NO_SLOT,
    End.STALE_EPOCH: mesh.RETURN_REASON_STALE_EPOCH,
    End.STALE_POLICY: mesh.RETURN_REASON_STALE_POLICY,
}
_FAILURES = {
    End.CANCELLED: failed(failure_pb2.FAILURE_KIND_CANCELLED, "cancelled"),
    End.TIMEOUT: failed(failure_pb2.FAILURE_KIND_TIMEOUT, "no answer within the timeout", retryable=True),
    # By this code the orchestrator tells who may have died of the attempt (antiphon.mesh.v1.Report).
    End.LOST: failed(failure_pb2.FAILURE_KIND_LOST, "the agent's process went away", code="AGENT_DIED", retryable=True),
    End.LEFT: failed(failure_pb2.FAILURE_KIND_LOST, "the agent was stopped before it had finished", retryable=True),
}
_PAGE_BYTES = 128 * 1024  # a page of 1,000 ids of usual length; only an estimate is needed here


def hello(
    incarnation: str,
    generation: int,
    present: Mapping[str, Said],
    descriptions: Mapping[str, registry_pb2.AgentDescription],
) -> tuple[mesh.AttachRequest, dict[str, Said]]:
    """The first message of a stream, and what is in it. Agents that find no room are announced afterwards."""
    said: dict[str, Said] = {}
    room = MOST_BYTES
    request = mesh.AttachRequest()
    request.hello.incarnation, request.hello.generation = incarnation, generation
    request.hello.protocol_version = PROTOCOL_VERSION
    for agent, known in present.items():
        room -= descriptions[agent].ByteSize()
        if said and room < 0:
            break
        request.hello.agents.append(descriptions[agent])
        request.hello.windows.add(agent=agent, generation=known.generation, slots=known.slots)
        said[agent] = known
    return request, said


def next_request(
    inflight: Inflight, link: Link, descriptions: Mapping[str, registry_pb2.AgentDescription]
) -> mesh.AttachRequest | None:
    """The next message for a replica, taken out of its outbox; None when there is nothing to say."""
    request = mesh.AttachRequest()
    room = MOST_BYTES
    while link.inventories and room > 0 and len(request.inventories) < 32:
        shard, epoch, attempt_ids, reported_attempt_ids, last = link.inventories.popleft()
        request.inventories.add(
            shard=shard, epoch=epoch, attempt_ids=attempt_ids, reported_attempt_ids=reported_attempt_ids, last=last
        )
        room -= _PAGE_BYTES if attempt_ids or reported_attempt_ids else 16
    if not link.inventories:
        # Pieces before the outcomes they belong to: what is said of an attempt that is over is not shown any more.
        room = _add_pieces(request, inflight, link, room)
        room = _add_reports(request, link, room)
    else:
        room = 0
    while link.calls and room > 0 and len(request.calls) < MOST_ITEMS:
        call, size = link.calls.popleft()
        request.calls.append(call)
        room -= size
    while link.asks and room > 0 and len(request.context_requests) < MOST_ITEMS:
        ask, size = link.asks.popleft()
        request.context_requests.append(ask)
        room -= size
    if link.agents:
        # Windows wait for the message after: whoever reads this may read windows first.
        for name in list(link.agents)[:MOST_ITEMS]:
            description = descriptions.get(name)
            if room <= 0:
                break
            if link.agents.pop(name) and description:
                request.agents.add(present=description)
                room -= description.ByteSize()
            else:
                request.agents.add(gone=name)
    else:
        for name in list(link.windows)[:MOST_ITEMS]:
            generation, slots = link.windows.pop(name)
            request.windows.add(agent=name, generation=generation, slots=slots)
    if link.alive:
        link.alive = False
        request.liveness.held = inflight.open_attempts
    if link.drain:
        link.drain = False
        request.drain = True
    return request if request.ListFields() else None


def _add_pieces(request: mesh.AttachRequest, inflight: Inflight, link: Link, room: int) -> int:
    """Pieces of output, within their share of a message; the room that is left."""
    for attempt_id, piece in link.pieces.take() if link.pieces else ():
        if (attempt := inflight.held.get(attempt_id)) is not None:
            report = request.partials.add(shard=attempt.shard)
            report.update.attempt_id = attempt_id
            report.update.partial.CopyFrom(piece)
            room -= report.ByteSize()
    return room


def _add_reports(request: mesh.AttachRequest, link: Link, room: int) -> int:
    """Reports of all kinds, started ones first; the room that is left."""
    reports = request.reports
    left = MOST_ITEMS
    while link.started and left > 0:
        attempt = link.started.popleft()
        if attempt.end is End.NONE:
            reports.add(
                attempt_id=attempt.attempt_id, shard=attempt.shard, agent=attempt.seat_name
            ).started.SetInParent()
            left -= 1
    while link.reports and left > 0 and room > 0:
        attempt = link.reports.popleft()
        _fill(reports.add(), attempt)
        room -= attempt.size + 128
        left -= 1
    while link.progress and left > 0 and room > 0:
        attempt, update = link.progress.pop(next(iter(link.progress)))
        if attempt.end is End.NONE:
            report = reports.add(attempt_id=attempt.attempt_id, shard=attempt.shard, agent=attempt.seat_name)
            report.progress.CopyFrom(update)
            left -= 1
            room -= 1_200
    return room


def _fill(report: mesh.Report, attempt: Attempt) -> None:
    report.attempt_id = attempt.attempt_id
    report.shard = attempt.shard
    report.agent = attempt.seat_name
    report.busy = int(attempt.busy * 1e6)
    end = attempt.end
    if end is End.RESULT:
        result = attempt.result
        if result.HasField("failure"):
            report.failure.CopyFrom(result.failure)
        elif result.HasField("subgraph"):
            report.subgraph.graph = result.subgraph.graph.SerializeToString()
            if result.subgraph.HasField("input"):
                report.subgraph.input.CopyFrom(result.subgraph.input)
        else:
            report.output.CopyFrom(result.output)
            report.output.SetInParent()  # no outcome means success with null
    elif end in _RETURNS:
        report.returned.reason = _RETURNS[end]
    else:
        report.failure.CopyFrom(_FAILURES[end])
        if end is End.CANCELLED and attempt.cancelled:
            report.failure.message = f"cancelled: {attempt.cancelled}"[:4_096]
        elif end is End.LOST and attempt.death:
            report.failure.message = f"the agent's process {attempt.death}; its sidecar's log has what it wrote"
