"""What sidecars say of attempts, as inputs of the attempts' shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import failure_pb2
from antiphon.v1.error_pb2 import ErrorReason

from ..admission import Values
from ..api.errors import ApiError
from ..engine.decide import Outcome
from ..engine.failure import Failure, FailureKind
from ..engine.states import AttemptState
from ..shards import codec
from ..shards import inputs as i
from ..shards.payloads import assert_labels
from .session import Session

_RETURN_REASONS = {number: name.removeprefix("RETURN_REASON_") for name, number in mesh.ReturnReason.items()}


def take(
    session: Session,
    reports: Sequence[mesh.Report],
    shards: int,
    put: Callable[[int, i.Input], None],
    values: Values,
    answered: Callable[[i.Reporter, str, mesh.Report], None],
) -> None:
    """Hands each report to its shard. Raises ApiError for a shard beyond the `shards` there are.

    The session counts those that are answered by a verdict. Outputs are made known to `values`, for whoever looks into
    them: they are parsed here already. `answered` takes the graphs that agents answer with.
    """
    source, principal = session.source, session.principal
    count = 0
    for report in reports:
        shard, attempt_id = report.shard, report.attempt_id
        if shard >= shards:
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=f"there is no shard {shard}")
        kind = report.WhichOneof("kind")
        if kind == "output":
            count += 1
            output = report.output
            output.origin_attempt_id = attempt_id
            if labels := output.labels:  # an empty one is dear to walk through
                for label in labels:
                    label.asserted_by = principal
            data = output.SerializeToString()
            values.see(data, output)
            outcome = Outcome(AttemptState.SUCCEEDED, data, None, report.busy)
            put(shard, i.Report(session, source, attempt_id, outcome))
        elif kind == "failure":
            count += 1
            lost = report.failure.kind == failure_pb2.FAILURE_KIND_LOST
            state = AttemptState.LOST if lost else AttemptState.FAILED
            outcome = Outcome(state, b"", codec.get_failure(report.failure), report.busy)
            put(shard, i.Report(session, source, attempt_id, outcome))
        elif kind == "started":
            put(shard, i.Started(source, attempt_id))
        elif kind == "returned":
            count += 1
            # One that is not known here is that of a newer sidecar.
            reason = _RETURN_REASONS.get(report.returned.reason, "OTHER")
            failure = Failure(FailureKind.TRANSIENT, f"came back before it began: {reason}")
            put(shard, i.Report(session, source, attempt_id, Outcome(AttemptState.RETURNED, b"", failure)))
        elif kind == "subgraph":
            count += 1
            assert_labels(report.subgraph.input, principal) if report.subgraph.HasField("input") else None
            answered(session, source, report)
        else:
            put(shard, i.Progress(source, attempt_id, report.progress))
    session.unanswered += count
