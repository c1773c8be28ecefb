"""What sidecars report, as inputs of shards; each report that waits for a verdict is counted until it has one."""

from __future__ import annotations

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import failure_pb2, payload_pb2, run_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.engine.decide import Verdict
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.mesh import reports
from antiphon_orchestrator.mesh.session import Session
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.leaving import turn_away

KINDS = [
    mesh.Report(attempt_id="r/a/0/1", output=payload_pb2.Payload(inline=b"1")),
    mesh.Report(attempt_id="r/b/0/1", failure=failure_pb2.Failure(kind=failure_pb2.FAILURE_KIND_LOST)),
    mesh.Report(attempt_id="r/c/0/1", returned=mesh.Returned(reason=mesh.RETURN_REASON_NO_SLOT)),
    mesh.Report(attempt_id="r/d/0/1", started=mesh.Started()),
    mesh.Report(attempt_id="r/f/0/1", subgraph=mesh.AnsweredGraph(input=payload_pb2.Payload(inline=b"1"))),
    mesh.Report(attempt_id="r/e/0/1", progress=run_pb2.Progress(fraction=0.5)),
]


def session() -> Session:
    return Session("demo", "s", "spiffe://x/ns/demo/sidecar/s", "i", 1, AttemptTokens(b"k" * 32), lambda: 0)


def taken(of: Session) -> list[i.Input]:
    inputs: list[i.Input] = []

    def answered(reporter: i.Reporter, source: str, report: mesh.Report) -> None:
        failure = Failure(FailureKind.INVALID_OUTPUT, "no graph")
        inputs.append(i.Answered(reporter, source, report.attempt_id, "r2", failure, None, b"", report.busy))

    reports.take(of, KINDS, 1, lambda shard, item: inputs.append(item), Values(), answered)
    return inputs


def test_reports_that_wait_for_a_verdict_are_counted_until_it_is_written() -> None:
    one = session()
    kinds = [type(item) for item in taken(one)]
    assert kinds == [i.Report, i.Report, i.Report, i.Started, i.Answered, i.Progress]
    assert one.unanswered == 4
    for attempt_id in ("r/a/0/1", "r/b/0/1", "r/c/0/1", "r/f/0/1"):
        one.verdict(attempt_id, Verdict.ACCEPTED)
    one.next_message()
    assert one.unanswered == 0


def test_a_report_to_a_shard_that_is_not_here_waits_for_no_verdict_here() -> None:
    one = session()
    for item in taken(one):
        turn_away(0, Fleet(CedarPolicies(), SchemaSet(Values())), item)
    assert one.unanswered == 0


def test_a_shard_that_is_none_ends_the_stream() -> None:
    with pytest.raises(ApiError, match="there is no shard 1"):
        reports.take(session(), [mesh.Report(shard=1)], 1, lambda shard, item: None, Values(), lambda *_: None)


@pytest.mark.proves("version skew of one minor")
def test_a_reason_for_a_return_that_is_not_known_here_counts_as_one() -> None:
    report = mesh.Report(attempt_id="r/a/0/1")
    report.returned.reason = 99  # type: ignore[assignment]
    inputs: list[i.Input] = []
    reports.take(session(), [report], 1, lambda shard, item: inputs.append(item), Values(), lambda *_: None)
    (item,) = inputs
    assert isinstance(item, i.Report) and item.outcome.failure is not None
    assert item.outcome.failure.message == "came back before it began: OTHER"
