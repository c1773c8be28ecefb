"""A policy change mid-run: from its commit on nothing is dispatched under the old epoch; a crash does not undo it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from antiphon import Client, Graph
from antiphon.v1 import run_pb2

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"
NO_ECHO = '@id("no.echo") forbid (principal, action == Action::"dispatch", resource == Capability::"team-a/work.echo");'


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    """An operator; the policies are the profile's again afterwards, because other tests share the mesh."""
    async with mesh.operator() as made:
        yield made
        await made.activate_policies(profile(), expected_epoch=await epoch(made))


def profile(*more: str) -> dict[str, str]:
    files = {path.name: path.read_text() for path in PROFILE.iterdir()}
    return {**files, **{f"more{number}.cedar": text for number, text in enumerate(more)}}


async def epoch(operator: Client) -> int:
    return (await operator.get_policy()).epoch


def one_task(capability: str, input: Any = None) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input)
    return graph


def begun(mesh: Mesh, run: run_pb2.Run) -> list[str]:
    entries = journal_of(mesh.journal)
    return [e.attempt_id for e in entries if e.event == "begun" and e.attempt_id.startswith(run.run_id)]


@pytest.mark.proves("policy change while a run goes on")
async def test_the_next_task_of_a_run_is_decided_by_the_new_policies(
    client: Client, operator: Client, mesh: Mesh
) -> None:
    gate = mesh.path("gate")
    graph = Graph("two")
    graph.task("first", "work.hold@1", input=str(gate))
    graph.task("second", "work.echo@1", input="x", needs=["first"])
    run = await client.submit(graph)
    await eventually(lambda: begun(mesh, run))
    changed = await operator.activate_policies(profile(NO_ECHO), expected_epoch=await epoch(operator))
    gate.touch()
    ended = await client.wait(run.run_id)
    assert ended.state == run_pb2.RUN_STATE_FAILED and "denied by policy no.echo" in ended.failure.message
    told = await client.explain(run.run_id, "first")
    assert told.attempts[0].decision.policy.epoch < changed.epoch  # what had begun went on, under what permitted it
    assert begun(mesh, run) == [f"{run.run_id}/first/0/1"]


async def test_what_waits_beside_the_agent_is_not_begun_under_the_old_policies(
    client: Client, operator: Client, mesh: Mesh
) -> None:
    gate = mesh.path("gate")
    sidecar = mesh.sidecar("narrow", version="7", concurrency=1, prefetch=4)
    await mesh.attached(client, "narrow")
    holding = await client.submit(one_task("work.hold@7", str(gate)))
    await eventually(lambda: begun(mesh, holding))
    waiting = [await client.submit(one_task("work.echo@7", number)) for number in range(4)]

    async def offered() -> bool:
        attempts = [[one async for one in client.list_attempts(run.run_id, "t")] for run in waiting]
        return all(some and some[0].state == run_pb2.ATTEMPT_STATE_OFFERED for some in attempts)

    await eventually(offered)
    await operator.activate_policies(profile(NO_ECHO), expected_epoch=await epoch(operator))
    for run in waiting:  # although their agent never came free
        ended = await client.wait(run.run_id)
        assert "denied by policy no.echo" in ended.failure.message
        (first,) = [one async for one in client.list_attempts(run.run_id, "t")]
        assert first.state == run_pb2.ATTEMPT_STATE_RETURNED and "STALE_POLICY" in first.failure.message
    gate.touch()
    assert (await client.wait(holding.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert [begun(mesh, run) for run in waiting] == [[], [], [], []]
    mesh.dismiss(sidecar)


async def test_a_change_that_was_acknowledged_survives_kill_9(client: Client, operator: Client, mesh: Mesh) -> None:
    changed = await operator.activate_policies(profile(NO_ECHO), expected_epoch=await epoch(operator))
    mesh.orchestrator.kill9()
    mesh.orchestrator.start()
    assert await epoch(operator) == changed.epoch
    await mesh.attached(client)
    ended = await client.submit(one_task("work.echo@1", 1), wait=True)
    assert "denied by policy no.echo" in ended.failure.message
