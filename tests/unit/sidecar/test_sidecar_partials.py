"""Pieces of output in a sidecar: they leave with the next message or sweep, before the outcome, to who listens."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as agents
from antiphon.v1 import run_pb2
from antiphon_sidecar.boxes import Link, Seat
from antiphon_sidecar.checks import mistake_in_partial, mistake_in_piece
from antiphon_sidecar.inflight import Inflight
from antiphon_sidecar.wire import next_request
from pytest import fixture, mark

NOW = 100.0


def ignore() -> None:
    return None


class Bench:
    """A sidecar whose agent works on attempt a, and how often the writer to its replica was woken."""

    def __init__(self) -> None:
        self.core = Inflight()
        self.woken = 0
        self.seat: Seat = self.core.add_seat("echo", ignore)
        self.link: Link = self.core.attach(self._wake)
        self.core.welcomed(self.link, self.core.hello(self.link))
        self.core.claim(self.link, [(0, 1)])
        self.core.agent_came(self.seat, 2, 2, NOW)
        for attempt_id in ("a", "b"):
            self.core.offer(self.link, "echo", attempt_id, 0, 1, None, b"token", 0, None, NOW, 1)
        self.core.take(self.seat, NOW, 256, 1 << 20)
        while next_request(self.core, self.link, {}) is not None:
            pass
        self.woken = 0

    def _wake(self) -> None:
        self.woken += 1

    def emit(self, text: str, offset: int = 0) -> None:
        self.core.emitted(self.seat, "a", run_pb2.PartialOutput(text=text, offset=offset))


@fixture
def bench() -> Bench:
    return Bench()


def test_pieces_wait_for_the_sweep_so_that_many_become_one(bench: Bench) -> None:
    bench.emit("one ")
    bench.emit("two", 4)
    assert not bench.woken
    bench.core.sweep(NOW)
    assert bench.woken
    request = next_request(bench.core, bench.link, {})
    assert request is not None
    (report,) = request.partials
    assert (report.update.attempt_id, report.update.partial.text) == ("a", "one two")
    bench.woken = 0
    bench.core.sweep(NOW)
    assert not bench.woken


def test_the_last_pieces_leave_with_the_outcome_that_follows_them_at_once(bench: Bench) -> None:
    bench.emit("last")
    bench.core.ended(bench.seat, "a", agents.Result(attempt_id="a"), 0, NOW)
    request = next_request(bench.core, bench.link, {})
    assert request is not None
    assert [one.update.partial.text for one in request.partials] == ["last"]
    assert [report.attempt_id for report in request.reports] == ["a"]


def test_pieces_of_attempts_that_are_over_or_unknown_go_nowhere(bench: Bench) -> None:
    bench.core.ended(bench.seat, "a", agents.Result(attempt_id="a"), 0, NOW)
    bench.emit("late")
    assert not bench.link.pieces


def test_pieces_of_a_call_reach_the_agent_that_waits_for_it_and_nobody_else(bench: Bench) -> None:
    attempt = bench.seat.running["a"]
    bench.core.called(attempt, "1", agents.CallRequest(call_id="1", attempt_id="a"), 0, lambda response: None)
    for attempt_id, call_id in (("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")):
        bench.core.call_emitted(attempt_id, call_id, run_pb2.PartialOutput(text="x"))
    assert [key for key, _ in bench.seat.pieces.take()] == [("a", "1")]
    bench.core.answered("a", "1", None)
    bench.core.call_emitted("a", "1", run_pb2.PartialOutput(text="late"))
    assert not bench.seat.pieces


def test_an_agent_that_goes_takes_the_pieces_for_it_along(bench: Bench) -> None:
    attempt = bench.seat.running["a"]
    bench.core.called(attempt, "1", agents.CallRequest(call_id="1", attempt_id="a"), 0, lambda response: None)
    bench.core.call_emitted("a", "1", run_pb2.PartialOutput(text="x"))
    bench.core.agent_went(bench.seat, NOW)
    assert not bench.seat.pieces


@mark.parametrize(
    ("piece", "field"),
    [
        (run_pb2.PartialOutput(text="x" * 4_096), ""),
        (run_pb2.PartialOutput(text="x" * 4_097), "text"),
        (run_pb2.PartialOutput(json=b"1" * 16_385), "json"),
        (run_pb2.PartialOutput(withheld="x" * 4_097), "withheld"),
        (run_pb2.PartialOutput(labels=[{"key": "pii"}] * 65), "labels"),
        (run_pb2.PartialOutput(labels=[{"key": "No"}]), "labels[0].key"),
    ],
)
def test_a_piece_that_breaks_a_rule_is_named_by_its_field(piece: run_pb2.PartialOutput, field: str) -> None:
    mistake = mistake_in_piece(piece)
    assert (mistake.field if mistake else "") == field
    request = agents.ReportPartialRequest(attempt_token=b"t")
    request.update.attempt_id = "a"
    request.update.partial.CopyFrom(piece)
    unary = mistake_in_partial(request)
    assert (unary.field if unary else "") == (f"update.partial.{field}" if field else "")
