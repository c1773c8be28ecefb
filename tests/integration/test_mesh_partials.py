"""Partial output over real processes: it reaches who watches and who called, under the rules of the output."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from antiphon import Client, Graph, output_of
from antiphon.v1 import run_pb2

from tests.harness import Mesh

pytest_plugins = ("tests.harness.fixtures",)

PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.operator() as made:
        yield made
        await activate(made)


async def activate(operator: Client, *more: str) -> None:
    files = {path.name: path.read_text() for path in PROFILE.iterdir()}
    files |= {f"more{number}.cedar": text for number, text in enumerate(more)}
    await operator.activate_policies(files, expected_epoch=(await operator.get_policy()).epoch)


def one_task(capability: str, input: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input)
    return graph


async def watched(
    client: Client, graph: Graph, gate: Path, **options: bool
) -> tuple[run_pb2.Run, list[run_pb2.RunEvent]]:
    """The run as it ended and all its events; the gate opens once the agent is known to work, and be watched."""
    run = await client.submit(graph)
    events = []
    async for event in client.watch(run.run_id, **options):
        events.append(event)
        if event.attempt.state == run_pb2.ATTEMPT_STATE_RUNNING:
            gate.touch()  # noqa: ASYNC240
    return await client.get_run(run.run_id), events


def pieces(events: list[run_pb2.RunEvent]) -> list[run_pb2.PartialOutput]:
    return [event.partial for event in events if event.HasField("partial")]


async def test_pieces_reach_a_watcher_in_order_and_before_the_outcome_even_if_that_follows_at_once(
    client: Client, mesh: Mesh
) -> None:
    gate = mesh.path("gate")
    how = {"gate": str(gate), "pieces": ["Hel", "lo, ", {"tool": "wave"}, "wörld", "!"]}
    run, events = await watched(client, one_task("work.emit@1", how), gate, include_partials=True)
    seen = pieces(events)
    assert "".join(piece.text for piece in seen) == output_of(run)["t"] == "Hello, wörld!"
    assert [piece.json for piece in seen if piece.HasField("json")] == [b'{"tool":"wave"}']
    expected = 0
    for piece in seen:
        assert (piece.offset, piece.attempt) == (expected, 1)
        expected += len(piece.text.encode()) + len(piece.json)
    kinds = ["piece" if event.HasField("partial") else run_pb2.TaskState.Name(event.task_state) for event in events]
    assert kinds.index("TASK_STATE_SUCCEEDED") > max(place for place, kind in enumerate(kinds) if kind == "piece")
    made = [event for event in events if event.HasField("partial")]
    assert {(event.event_seq, event.key.task_id) for event in made} == {(0, "t")}
    numbers = [event.event_seq for event in events if event.event_seq]
    assert numbers == list(range(1, run.event_seq + 1))


async def test_who_does_not_ask_sees_none(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    how = {"gate": str(gate), "pieces": ["a"]}
    _, events = await watched(client, one_task("work.emit@1", how), gate, include_progress=True)
    assert not pieces(events)


async def test_a_caller_sees_what_its_call_is_making(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    inner = {"gate": str(gate), "pieces": ["one", "two"]}
    how = {"capability": "work.emit@1", "input": inner, "emitted": True}
    run, events = await watched(client, one_task("work.call@1", how), gate, include_partials=True)
    said = "".join(piece.text for piece in pieces(events))
    assert said.replace("><", "") == "<onetwo>"
    assert output_of(run) == {"t": "onetwo"}


async def test_what_policy_redacts_of_the_output_is_withheld_whole_in_its_pieces(
    client: Client, operator: Client, mesh: Mesh
) -> None:
    await activate(
        operator,
        """@id("no.secret") @obligation("redact") @fields("secret")
        permit (principal, action == Action::"release", resource == Capability::"team-a/work.emit");""",
    )
    gate = mesh.path("gate")
    how = {"gate": str(gate), "pieces": ["in", "side"]}
    _, events = await watched(client, one_task("work.emit@1", how), gate, include_partials=True)
    seen = pieces(events)
    assert seen and all("redact" in piece.withheld and not piece.text for piece in seen)


async def test_a_piece_whose_labels_policy_refuses_is_withheld_and_one_without_them_is_not(
    client: Client, operator: Client, mesh: Mesh
) -> None:
    await activate(
        operator,
        """@id("no.pii") forbid (principal, action == Action::"release", resource)
        when { context.labels.contains("pii") };""",
    )
    for labels, shown in ((["pii"], ""), (["other"], "name")):
        gate = mesh.path("gate")
        how = {"gate": str(gate), "pieces": ["name"], "labels": labels}
        _, events = await watched(client, one_task("work.emit@1", how), gate, include_partials=True)
        seen = pieces(events)
        assert "".join(piece.text + piece.json.decode().strip('"') for piece in seen) == shown
        assert ["no.pii" in piece.withheld for piece in seen] == [not shown]
