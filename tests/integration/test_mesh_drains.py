"""Drains under load lose no work: of a sidecar, of an agent, of the orchestrator, in time, too late, and at once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import failure_pb2, run_pb2

from tests.harness import Mesh, SidecarProcess, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

AGAIN = [Retry(["LOST"], max_attempts=5, backoff=timedelta(milliseconds=10))]
SHORT = 40


def load(gate: Path, version: int) -> Graph:
    """Work that is short and comes one after the other, beside some that lasts until the gate opens."""
    graph = Graph("load")
    graph.task("long", f"work.hold@{version}", input=str(gate), retry=AGAIN)
    graph.task("short", f"work.sleep@{version}", for_each=str([0.01] * SHORT), retry=AGAIN)
    graph.task("after", f"work.echo@{version}", input="done", needs=["short"], retry=AGAIN)
    return graph


def events(mesh: Mesh, run: run_pb2.Run, task: str = "") -> list[str]:
    start = f"{run.run_id}/{task}"
    return [entry.event for entry in journal_of(mesh.journal) if entry.attempt_id.startswith(start)]


async def begun_once(client: Client, mesh: Mesh, run: run_pb2.Run) -> None:
    """The run has succeeded, and each of its tasks was begun once and done once."""
    ended = await client.wait(run.run_id)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    attempts = Counter(
        (entry.idempotency_key, entry.event)
        for entry in journal_of(mesh.journal)
        if entry.attempt_id.startswith(run.run_id)
    )
    assert set(attempts.values()) == {1}
    assert len(attempts) == 2 * (SHORT + 2)


async def under_way(client: Client, mesh: Mesh, version: int) -> tuple[run_pb2.Run, Path]:
    """A run of which the long task has begun, and some of the short ones are done."""
    gate = mesh.path("gate")
    run = await client.submit(load(gate, version))
    await eventually(lambda: events(mesh, run, "long") == ["begun"])
    await eventually(lambda: events(mesh, run, "short").count("done") >= 3)
    return run, gate


async def test_a_sidecar_that_drains_under_load_begins_nothing_twice(client: Client, mesh: Mesh) -> None:
    leaving = mesh.sidecar("leaving", version="21", concurrency=2, prefetch=4)
    await mesh.attached(client, "leaving")
    run, gate = await under_way(client, mesh, 21)
    leaving.send(signal.SIGTERM)
    await eventually(lambda: '"draining"' in leaving.said())
    mesh.sidecar("leaving", version="21", concurrency=2, prefetch=4)
    await eventually(lambda: events(mesh, run, "after") == ["begun", "done"])
    assert leaving.alive, "it waits for the long one"
    gate.touch()
    assert leaving.end() == 0
    await begun_once(client, mesh, run)


async def test_an_agent_that_drains_under_load_begins_nothing_twice(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("changing", version="22", concurrency=2, prefetch=4)
    await mesh.attached(client, "changing")
    run, gate = await under_way(client, mesh, 22)
    (pid,) = sidecar.agent_pids()
    os.kill(pid, signal.SIGTERM)
    gate.touch()
    await eventually(lambda: sidecar.said().count('"agent present"') == 2)
    await begun_once(client, mesh, run)


async def test_an_orchestrator_that_ends_under_load_and_comes_back_begins_nothing_twice(
    client: Client, mesh: Mesh
) -> None:
    mesh.sidecar("staying", version="23", concurrency=2, prefetch=4)
    await mesh.attached(client, "staying")
    run, gate = await under_way(client, mesh, 23)
    assert mesh.orchestrator.term() == 0
    mesh.orchestrator.start()
    gate.touch()
    await begun_once(client, mesh, run)


async def attempts_of(client: Client, run: run_pb2.Run, task: str = "long") -> list[run_pb2.Attempt]:
    return [one async for one in client.list_attempts(run.run_id, task)]


async def test_what_does_not_end_within_the_grace_is_tried_again_and_nobody_is_said_to_have_died(
    client: Client, mesh: Mesh
) -> None:
    leaving = mesh.sidecar("brief", version="24", concurrency=2, prefetch=4, arguments=["--grace", "3s"])
    await mesh.attached(client, "brief")
    run, gate = await under_way(client, mesh, 24)
    assert leaving.term() == 0
    first = (await attempts_of(client, run))[0]
    assert (first.state, first.failure.kind) == (run_pb2.ATTEMPT_STATE_LOST, failure_pb2.FAILURE_KIND_LOST)
    assert first.failure.code == ""
    gate.touch()
    leaving.start()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert len(await attempts_of(client, run)) == 2
    assert events(mesh, run, "short").count("done") == SHORT


async def test_a_second_signal_ends_a_sidecar_and_its_agents_at_once(client: Client, mesh: Mesh) -> None:
    leaving = mesh.sidecar("hasty", version="25", concurrency=2, prefetch=4)
    await mesh.attached(client, "hasty")
    run, gate = await under_way(client, mesh, 25)
    pids = leaving.agent_pids()
    leaving.send(signal.SIGTERM)
    await eventually(lambda: '"draining"' in leaving.said())
    leaving.send(signal.SIGTERM)
    assert leaving.end() == 130
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    gate.touch()
    leaving.start()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert events(mesh, run, "after") == ["begun", "done"]


def spooled(sidecar: SidecarProcess) -> list[Path]:
    return list((sidecar.state / "spool").glob("*.spool"))


def one_task(capability: str, input: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, retry=AGAIN)
    return graph


@pytest.mark.proves("sidecar dies")
async def test_an_outcome_survives_the_crash_of_its_sidecar(client: Client, mesh: Mesh) -> None:
    """The orchestrator stands still while the agent answers and the sidecar dies; the next life of it reports."""
    sidecar = mesh.sidecar("careful", version="26")
    await mesh.attached(client, "careful")
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@26", str(gate)))
    await eventually(lambda: events(mesh, run) == ["begun"])
    mesh.orchestrator.stall()
    try:
        gate.touch()
        await eventually(lambda: any(path.stat().st_size > 40 for path in spooled(sidecar)))
        sidecar.kill_agent()
        sidecar.kill9()
        sidecar.start()
        await eventually(lambda: '"outcomes of a former life"' in sidecar.said())
    finally:
        mesh.orchestrator.send(signal.SIGCONT)
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    assert [one.state for one in await attempts_of(client, run, "t")] == [run_pb2.ATTEMPT_STATE_SUCCEEDED]
    assert events(mesh, run) == ["begun", "done"]
    await eventually(lambda: not spooled(sidecar))
