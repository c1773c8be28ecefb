"""Pieces of output at an orchestrator: who is shown them, in which form, and that slow watchers lose nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, run_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.run_service import _Watcher
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.mesh import partials
from antiphon_orchestrator.mesh.session import Session
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.shard import Shard
from shard_rig import Rig, instance

from tests.fakes.plans import Node, payload, plan

PRINCIPAL = "spiffe://x/ns/demo/sidecar/s"


class OneShard:
    """The part of a host that pieces need: shard 0, here or elsewhere."""

    shard_count = 1

    def __init__(self, shard: Shard, here: bool = True) -> None:
        self._shard, self._here = shard, here

    def holds(self, number: int) -> bool:
        return self._here

    def shard(self, number: int) -> Shard:
        return self._shard


class Audience:
    """A watcher, and the way to callers."""

    def __init__(self) -> None:
        self.shown: list[run_pb2.PartialOutput] = []
        self.passed: list[tuple[str, agent_service_pb2.CallPartial]] = []

    def records(self, records: list[bytes]) -> None: ...

    def progress(self, task_id: str, member: int, progress: Any) -> None: ...

    def partial(self, task_id: str, member: int, piece: run_pb2.PartialOutput) -> None:
        self.shown.append(piece)

    def ended(self, run: Run) -> None: ...

    def moved(self) -> None: ...

    def pass_on(self, instance_id: str, piece: agent_service_pb2.CallPartial) -> None:
        self.passed.append((instance_id, piece))


def said(attempt_id: str, text: str = "x", *labels: str, shard: int = 0) -> mesh.PartialReport:
    report = mesh.PartialReport(shard=shard)
    report.update.attempt_id, report.update.partial.text = attempt_id, text
    for key in labels:
        report.update.partial.labels.add(key=key, asserted_by="me")
    return report


def tell(rig: Rig, audience: Audience, *reports: mesh.PartialReport, source: str = "s", here: bool = True) -> None:
    session = Session("demo", source, PRINCIPAL, "i", 1, AttemptTokens(b"k" * 32), lambda: 0)
    host: Any = OneShard(rig.shard, here)
    partials.take(session, reports, host, rig.fleet, audience.pass_on)


def watched(rig: Rig, run_id: str = "r1") -> Audience:
    audience = Audience()
    rig.tell(i.Watch(run_id, 0, audience, lambda answer: None))
    return audience


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.fleet.attach(instance(slots=9, clearance=["pii"]))
    yield made


def test_a_watcher_is_shown_pieces_of_attempts_that_are_out_to_who_says_so(rig: Rig) -> None:
    rig.tell(rig.submit("r1", plan(Node())))
    audience = watched(rig)
    tell(rig, audience, said("r1/t0/0/1", "mine"), said("r1/t0/0/2"), said("r1/t9/0/1"), said("r2/t0/0/1"), said("x"))
    tell(rig, audience, said("r1/t0/0/1", "another's"), source="other")
    tell(rig, audience, said("r1/t0/0/1", "elsewhere"), here=False)
    assert [(piece.text, piece.attempt) for piece in audience.shown] == [("mine", 1)]
    rig.tell(rig.report("r1/t0/0/1"))
    tell(rig, audience, said("r1/t0/0/1", "late"))
    assert len(audience.shown) == 1
    with pytest.raises(ApiError, match="there is no shard 1"):
        tell(rig, audience, said("r1/t0/0/1", shard=1))


def test_labels_of_a_piece_are_vouched_for_by_its_sidecar(rig: Rig) -> None:
    rig.tell(rig.submit("r1", plan(Node())))
    audience = watched(rig)
    tell(rig, audience, said("r1/t0/0/1", "x", "other"))
    assert [(one.key, one.asserted_by) for one in audience.shown[0].labels] == [("other", PRINCIPAL)]


@pytest.mark.parametrize("where", ["piece", "input", "schema"])
def test_what_release_refuses_for_a_label_of_piece_input_or_schema_is_withheld(where: str) -> None:
    no_pii = """@id("all") permit (principal, action, resource);
        @id("no.pii") forbid (principal, action == Action::"release", resource)
        when { context.labels.contains("pii") };"""
    bundle = PolicyBundle.of(1, [PolicyFile("a.cedar", no_pii)])
    rig = Rig(Fleet(CedarPolicies(bundle), SchemaSet(Values())))
    schema = '{"properties": {"name": {"x-antiphon-labels": ["pii"]}}}' if where == "schema" else ""
    rig.fleet.attach(instance(slots=9, clearance=["pii"], output_schema=schema))
    rig.tell(rig.submit("r1", plan(Node(input=payload("name", "pii") if where == "input" else b""))))
    audience = watched(rig)
    tell(rig, audience, said("r1/t0/0/1", "Ada", *(["pii"] if where == "piece" else [])))
    (piece,) = audience.shown
    assert not piece.text and not piece.labels and not piece.offset
    assert "no.pii" in piece.withheld


def test_a_call_is_shown_to_the_present_attempt_of_the_task_that_waits_for_it(rig: Rig) -> None:
    rig.tell(rig.submit("r1", plan(Node())))
    rig.tell(
        i.Call("demo/s", "r1/t0/0/1", "c#1", "r2", plan(Node()), None, b"d", payload("name"), None, lambda answer: None)
    )
    audience = Audience()
    tell(rig, audience, said("r2/t0/0/1", "made"))
    ((instance_id, piece),) = audience.passed
    assert instance_id == "s/i/a"
    assert (piece.attempt_id, piece.call_id, piece.partial.text) == ("r1/t0/0/1", "c#1", "made")
    rig.tell(rig.report("r1/t0/0/1"))
    tell(rig, audience, said("r2/t0/0/1", "too late"))
    assert len(audience.passed) == 1


def test_a_caller_gets_pieces_with_the_labels_that_it_has_clearance_for() -> None:
    schema = '{"properties": {"name": {"x-antiphon-labels": ["pii"]}}}'
    for clearance, given in ((["pii"], "Ada"), ([], "")):
        rig = Rig()
        rig.fleet.attach(instance(slots=9, clearance=clearance))
        rig.fleet.attach(instance("b", slots=9, capabilities=("text.other",), output_schema=schema))
        rig.tell(rig.submit("r1", plan(Node())))
        callee = plan(Node(capability="text.other@1"))
        rig.tell(
            i.Call("demo/s", "r1/t0/0/1", "c#1", "r2", callee, None, b"d", payload("name"), None, lambda answer: None)
        )
        audience = Audience()
        tell(rig, audience, said("r2/t0/0/1", "Ada"))
        piece = audience.passed[0][1].partial
        assert piece.text == given and [label.key for label in piece.labels] == clearance
        assert ("no clearance for its labels: pii" in piece.withheld) == (not clearance)


async def test_a_watcher_that_is_not_read_loses_pieces_but_no_events(rig: Rig) -> None:
    rig.tell(rig.submit("r1", plan(Node())))
    watcher = _Watcher(False, True)
    rig.tell(i.Watch("r1", 0, watcher, lambda answer: None))
    audience, text = Audience(), "x" * 4_096
    for number in range(100):
        report = said("r1/t0/0/1", text)
        report.update.partial.offset = number * len(text)
        tell(rig, audience, report)
    rig.tell(rig.report("r1/t0/0/1"))
    run = rig.run("r1")
    events = [event async for response in watcher.responses(run) for event in response.events]
    assert [event.event_seq for event in events if event.event_seq] == list(range(1, run.event_seq + 1))
    length = sum(len(event.partial.text) for event in events)
    assert 0 < length <= 65_536


async def test_a_watcher_who_did_not_ask_keeps_no_pieces(rig: Rig) -> None:
    watcher = _Watcher(True, False)
    watcher.partial("t0", 0, run_pb2.PartialOutput(text="x"))
    assert not watcher._pieces
