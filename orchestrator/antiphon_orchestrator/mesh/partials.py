"""Pieces of output on their way to whoever watches, and to the attempt whose call is making them.

They change nothing and are kept nowhere, so they pass by the shard's turns: its memory is only looked at. Nobody is
shown of a piece what they would not be shown of the output. What policy refuses for its labels, or would redact, is
withheld whole: a pointer into the output means nothing in a piece of it. So is what carries labels for which the caller
declares no clearance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, payload_pb2, run_pb2
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError
from ..engine import decide
from ..engine.events import Placement
from ..engine.run import Attempt, Run, Task
from ..placement.fleet import Fleet
from ..shards.host import Host
from ..shards.judging import handed_on
from ..shards.payloads import assert_labels, inherit_labels
from ..shards.turn import Entry, found_attempt
from .session import Session

PassOn = Callable[[str, agent_service_pb2.CallPartial], None]
"""Brings a piece to an instance whose attempt made the call."""

_OPAQUE = payload_pb2.Payload(inline=b"?", media_type="application/octet-stream").SerializeToString()
"""Could be any part of an output, so that it is given every label which the schema declares of one."""


def take(session: Session, reports: Sequence[mesh.PartialReport], host: Host, fleet: Fleet, pass_on: PassOn) -> None:
    """Shows each piece to whoever looks. Those of attempts that are over, or elsewhere, are dropped.

    Raises ApiError for a shard beyond those there are.
    """
    for report in reports:
        if report.shard >= host.shard_count:
            cause = f"there is no shard {report.shard}"
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=cause)
        if not host.holds(report.shard):
            continue
        runs = host.shard(report.shard).runs
        found = found_attempt(runs, session.source, report.update.attempt_id)
        live = found[1].live if found is not None else None
        if found is None or live is None or live.number != found[2]:
            continue
        entry, task, _ = found
        caller = _caller(runs, entry.run)
        if not entry.watchers and caller is None:
            continue
        piece = shown(fleet, entry, task, live, report.update.partial, session.principal)
        for watcher in entry.watchers:
            watcher.partial(task.plan.id, task.member, piece)
        if caller is not None:
            placement, call_id, attempt_id = caller
            if beyond := {one.key for one in piece.labels} - fleet.clearance(placement):
                withheld = f"the caller declares no clearance for its labels: {', '.join(sorted(beyond))}"[:4096]
                piece = run_pb2.PartialOutput(attempt=piece.attempt, withheld=withheld)
            told = agent_service_pb2.CallPartial(call_id=call_id, attempt_id=attempt_id, partial=piece)
            pass_on(placement.instance, told)


def shown(
    fleet: Fleet, entry: Entry, task: Task, attempt: Attempt, said: run_pb2.PartialOutput, principal: str
) -> run_pb2.PartialOutput:
    """A piece as the run's principal may have it: whole, with the labels that the output would have, or without its
    content. `principal`: who vouches for labels of its own."""
    submitted, label = entry.run.submitted, attempt.placement.capability
    own = payload_pb2.Payload(labels=said.labels)
    assert_labels(own, principal)
    labelled = own.SerializeToString()
    for source in (fleet.label_output(submitted.namespace, label, _OPAQUE), handed_on(task, attempt)):
        if fleet.labels(source):
            labelled = inherit_labels(source, labelled)
    permit = fleet.may_release(
        submitted.principal,
        entry.principal_kind,
        submitted.namespace,
        label.partition("@")[0],
        fleet.labels(labelled),
    )
    piece = run_pb2.PartialOutput(attempt=attempt.number)
    if not permit.allowed:
        piece.withheld = permit.decision.reason[:4096]
    elif permit.redactions:
        piece.withheld = f"policy demands of the output: redact {', '.join(sorted(permit.redactions))}"[:4096]
    else:
        piece.offset = said.offset
        piece.labels.extend(payload_pb2.Payload.FromString(labelled).labels)
        if said.HasField("text"):
            piece.text = said.text
        else:
            piece.json = said.json
    return piece


def _caller(runs: dict[str, Entry], run: Run) -> tuple[Placement, str, str] | None:
    """The place, call id and present attempt of the task that called for a run; None when nothing waits for it."""
    parent = run.submitted.parent_attempt_id
    if not parent:
        return None
    # The attempt that made the call may have been followed by another, which waits for the same outcome.
    run_id, task_id, member, _ = parent.split("/")
    if (entry := runs.get(run_id)) is None:
        return None
    task = entry.run.task(entry.run.plan.index_of[task_id], int(member))
    if (live := task.live) is None:
        return None
    call_id = run.submitted.request_id.partition("#")[2]
    return live.placement, call_id, decide.attempt_id(run_id, task, live.number)
