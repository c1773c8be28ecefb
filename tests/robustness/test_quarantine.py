"""Poison: a task that takes with it whoever works on it is found out, alone, and those beside it are not blamed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import failure_pb2, run_pb2

from tests.harness import Entry, Mesh, SidecarProcess, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

AGAIN = [Retry(["LOST"], max_attempts=5, backoff=timedelta(milliseconds=10))]
BESIDE = 3


def journal(mesh: Mesh, *runs: run_pb2.Run) -> list[Entry]:
    wanted = tuple(run.run_id for run in runs)
    return [entry for entry in journal_of(mesh.journal) if entry.attempt_id.startswith(wanted)]


def begun(mesh: Mesh, run: run_pb2.Run) -> int:
    return sum(entry.event == "begun" for entry in journal(mesh, run))


async def state_of(client: Client, run: run_pb2.Run, task: str = "t") -> str:
    return run_pb2.TaskState.Name((await client.get_task(run.run_id, task)).state).removeprefix("TASK_STATE_")


async def attempts_of(client: Client, run: run_pb2.Run, task: str = "t", member: int = 0) -> list[run_pb2.Attempt]:
    return [one async for one in client.list_attempts(run.run_id, task, member)]


def beside(mesh: Mesh, version: int) -> tuple[Graph, Path]:
    """Bystanders that work until a gate opens."""
    gate = mesh.path("gate")
    graph = Graph("beside")
    graph.task("t", f"work.hold@{version}", for_each=f"{[str(gate)] * BESIDE}".replace("'", '"'), retry=AGAIN)
    return graph, gate


def poison(capability: str, input: object) -> Graph:
    graph = Graph("poison")
    graph.task("t", capability, input=input, retry=AGAIN)
    return graph


@pytest.mark.proves("poison task")
async def test_a_task_that_kills_its_agents_is_set_aside_alone_and_bystanders_are_not_blamed(
    client: Client, mesh: Mesh
) -> None:
    mesh.sidecar("victim", version="31")
    await mesh.attached(client, "victim")
    graph, gate = beside(mesh, 31)
    bystanders = await client.submit(graph)
    await eventually(lambda: begun(mesh, bystanders) == BESIDE)
    killer = await client.submit(poison("work.die@31", 100))
    await eventually(lambda: begun(mesh, killer) == 2)
    gate.touch()
    assert (await client.wait(bystanders.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED

    async def quarantined() -> bool:
        return await state_of(client, killer) == "QUARANTINED"

    await eventually(quarantined)
    attempts = await attempts_of(client, killer)
    assert [one.failure.code for one in attempts] == ["AGENT_DIED"] * 3
    entries = journal(mesh, bystanders, killer)
    third = next(n for n, entry in enumerate(entries) if entry.attempt_id == f"{killer.run_id}/t/0/3")
    same = [entry for entry in entries if entry.pid == entries[third].pid]
    before = same[: same.index(entries[third])]
    assert same[-1] is entries[third], "something began beside what was to be alone"
    assert sum(entry.event == "begun" for entry in before) == sum(entry.event == "done" for entry in before)

    # It is a person's now: seen in the run, taken up again, and settled.
    run = await client.get_run(killer.run_id)
    assert (run.state, run.totals.quarantined) == (run_pb2.RUN_STATE_RUNNING, 1)
    assert "antiphon run resolve" in (await client.get_task(killer.run_id, "t")).reason
    await client.retry(killer.run_id, "t", reason="the agent was mended, it was said")
    await eventually(lambda: begun(mesh, killer) == 4)
    await eventually(quarantined)
    await client.resolve(killer.run_id, "t", output=7)
    assert output_of(await client.wait(killer.run_id)) == {"t": 7}


async def test_a_graph_that_goes_on_without_it_does_so(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("victim", version="32")
    await mesh.attached(client, "victim")
    graph = Graph("goes-on")
    retry = [Retry(["LOST"], max_attempts=2, backoff=timedelta(milliseconds=10))]
    graph.task("t", "work.die@32", input=100, retry=retry, on_failure="continue")
    graph.task("next", "work.echo@32", input="on", needs=["t"])
    run = await client.wait((await client.submit(graph)).run_id)
    assert output_of(run) == {"next": "on"}
    failure = (await client.get_task(run.run_id, "t")).failure
    assert (failure.kind, failure.code) == (failure_pb2.FAILURE_KIND_LOST, "POISON")


@pytest.mark.long_form
@pytest.mark.proves("poison task")
async def test_a_task_that_kills_sidecars_is_set_aside_and_one_that_was_beside_it_is_not(
    client: Client, mesh: Mesh
) -> None:
    """Each death is one of the whole sidecar, while it was known that the task had begun."""
    sidecar = mesh.sidecar("tomb", version="33")
    await mesh.attached(client, "tomb")
    gate = mesh.path("gate")
    killer = await client.submit(poison("work.hold@33", str(mesh.path("never"))))
    other = await client.submit(poison("work.hold@33", str(gate)))
    for number in (1, 2):
        await running(client, killer, number)
        await running(client, other, number)
        await crash(mesh, client, sidecar)
    gate.touch()  # the bystander's next try, alone like the other's and before or after it, is short
    await running(client, killer, 3)
    await crash(mesh, client, sidecar)

    async def quarantined() -> bool:
        return await state_of(client, killer) == "QUARANTINED"

    await eventually(quarantined)
    assert [one.failure.code for one in await attempts_of(client, killer)] == ["SIDECAR_DIED"] * 3
    assert output_of(await client.wait(other.run_id)) == {"t": "released"}
    assert [one.failure.code for one in await attempts_of(client, other)][:2] == ["SIDECAR_DIED"] * 2


async def running(client: Client, run: run_pb2.Run, number: int) -> None:
    """An attempt is known to have begun."""

    async def look() -> bool:
        attempts = await attempts_of(client, run)
        return len(attempts) == number and attempts[-1].state == run_pb2.ATTEMPT_STATE_RUNNING

    await eventually(look)


async def crash(mesh: Mesh, client: Client, sidecar: SidecarProcess) -> None:
    sidecar.kill_agent()
    sidecar.kill9()
    sidecar.start()
    await mesh.attached(client, "tomb")
