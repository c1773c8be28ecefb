"""The TypeScript SDK beside real sidecars and an orchestrator: what an agent goes through, and a client's journey."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from antiphon import Client, Graph, Retry, load_graph, output_of, ref
from antiphon.v1 import failure_pb2, run_pb2
from antiphon_certs import Kind, Profile

from tests.harness import Mesh, eventually
from tests.harness.authority import DOMAIN, NAMESPACE

pytest_plugins = ("tests.harness.fixtures", "tests.harness.typescript")

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk/typescript"
PROGRAMS = SDK / "test/programs"
WORKER = ("node", str(PROGRAMS / "worker.js"))
RETRY = [Retry(["TRANSIENT", "LOST"], max_attempts=3)]


@pytest.fixture(scope="module")
def module_mesh(typescript: Path) -> Iterator[Mesh]:
    """A mesh whose agent `worker` is written in TypeScript."""
    with Mesh() as mesh:
        mesh.sidecar(command=WORKER)
        yield mesh


@pytest_asyncio.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.client() as client:
        await mesh.attached(client)
        yield client


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def answer(client: Client, capability: str, input: Any = None, **options: Any) -> Any:
    return output_of(await client.submit(one_task(capability, input, **options), wait=True))["t"]


async def test_pieces_of_output_reach_who_watches(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))
    emitted = ""
    async for event in client.watch(run.run_id, include_partials=True):
        emitted += event.partial.text
        if event.partial.text:
            gate.touch()
    assert set(emitted.split()) == {"hold"}


def begun(mesh: Mesh, run: run_pb2.Run) -> list[str]:
    lines = mesh.journal.read_text().split() if mesh.journal.exists() else []
    return [line for line in lines if line.startswith(run.run_id)]


async def test_an_agent_serves_a_run_calls_others_and_fails_as_it_says(client: Client, mesh: Mesh) -> None:
    assert await answer(client, "work.echo@1", {"text": "ümlaut", "n": [1, 2.5, None]}) == {
        "text": "ümlaut",
        "n": [1, 2.5, None],
    }
    assert await answer(client, "work.call@1", "through another") == "through another"
    assert await answer(client, "work.fail@1", "once", retry=RETRY) == "done"
    failed = await client.submit(one_task("work.fail@1", "permanent", retry=RETRY), wait=True)
    task = await client.get_task(failed.run_id, "t")
    assert (task.failure.kind, task.failure.code, task.attempt_count) == (
        failure_pb2.FAILURE_KIND_PERMANENT,
        "no_use",
        1,
    )


async def test_many_tasks_at_once_are_each_answered(client: Client, mesh: Mesh) -> None:
    graph = Graph("many")
    graph.task("t", "work.echo@1", for_each="input", input="${item}")
    run = await client.submit(graph, list(range(500)), wait=True)
    assert output_of(run) == {"t": list(range(500))}


async def test_values_above_the_inline_limit_go_both_ways_whole(client: Client) -> None:
    value = "ü" * 500_000
    for capability in ("work.echo@1", "work.call@1"):
        graph = Graph("one", output=ref("tasks.t.output"))
        graph.task("t", capability, input=ref("input"))
        run = await client.submit(graph, value, wait=True)
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
        assert json.loads(await client.download_payload(run.output)) == value


async def test_a_task_shares_context_under_a_claim(client: Client, mesh: Mesh) -> None:
    assert await answer(client, "work.share@1", {"total": 7}) == {
        "same": True,
        "seen": "put",
        "refused": "ENTRY_CONFLICT",
        "value": {"total": 7},
    }


async def test_a_cancelled_run_ends_what_its_handler_does(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task("work.wait@1"))
    await eventually(lambda: begun(mesh, run))
    await client.cancel(run.run_id)
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED


async def test_a_deadline_ends_what_its_handler_does(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task("work.wait@1", timeout=timedelta(seconds=0.2)), wait=True)
    failed = await client.get_task(run.run_id, "t")
    assert failed.failure.kind == failure_pb2.FAILURE_KIND_TIMEOUT
    # Its place is free again: there are four of them.
    assert [await answer(client, "work.echo@1", n) for n in range(5)] == list(range(5))


async def test_an_agent_that_is_killed_is_started_again_and_its_task_tried_again(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate), retry=RETRY))
    await eventually(lambda: begun(mesh, run))
    (killed,) = mesh.sidecars[0].kill_agent()
    gate.touch()
    said = output_of(await client.wait(run.run_id))["t"]
    assert said["pid"] != killed and said["number"] == 2


async def test_sigterm_drains_an_agent_which_finishes_and_exits_0(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecars[0]
    gate = mesh.path("gate")
    held = await client.submit(one_task("work.hold@1", str(gate)))
    await eventually(lambda: begun(mesh, held))
    sidecar.send(signal.SIGTERM)
    await eventually(lambda: '"draining"' in sidecar.said())
    gate.touch()
    assert sidecar.end() == 0
    assert output_of(await client.wait(held.run_id))["t"]["number"] == 1
    assert sidecar.agent_pids() == []
    sidecar.start()
    await mesh.attached(client)
    assert await answer(client, "work.echo@1", 1) == 1


async def test_the_hello_agent_greets(client: Client, mesh: Mesh) -> None:
    example = mesh.folder / "hello"
    shutil.copytree(ROOT / "examples/hello_agent_typescript", example)
    scope = example / "node_modules/@antiphon"
    scope.mkdir(parents=True)
    (scope / "sdk").symlink_to(SDK)
    mesh.sidecar("hello", command=("node", str(example / "agent.js")))
    await mesh.attached(client, "hello")
    loaded = load_graph((ROOT / "examples/hello_agent/graph.yaml").read_text())
    assert output_of(await client.submit(loaded.graph, {"name": "Ada"}, wait=True)) == {"greet": "Hello, Ada!"}


async def test_the_journey_of_a_client(client: Client, mesh: Mesh) -> None:
    home = mesh.path("home")
    folder = home / "profiles/default"
    mesh.ca.store(folder / "credential", mesh.ca.issue(Kind.CLIENT, "tess"))
    Profile(folder, (mesh.orchestrator.address,), ("127.0.0.1:1",), DOMAIN, NAMESPACE).save()
    environment = {**os.environ, "ANTIPHON_HOME": str(home), "ANTIPHON_PROFILE": "default"}
    process = await asyncio.create_subprocess_exec(
        "node",
        str(PROGRAMS / "journey.js"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    said = json.loads(out)
    assert said == {
        "mistakes": 0,
        "graphs": ["journey@1"],
        "output": {"text": "Dear Ada", "all": {"name": "Ada"}},
        "again": True,
        "reused": "REQUEST_ID_REUSED/FIX_REQUEST",
        "events": list(range(1, len(said["events"]) + 1)),
        "rest": said["events"][2:],
        "tasks": [["echo", "SUCCEEDED"]],
        "agent": "worker",
        "runs": ["SUCCEEDED"],
        "agents": said["agents"],
        "late": "DEADLINE_EXCEEDED/RETRY",
        "cancelled": "CANCELLED",
        "failed": True,
        "missing": "RUN_NOT_FOUND/FIX_REQUEST",
        "noGraph": "GRAPH_NOT_FOUND/FIX_REQUEST",
        "invalid": said["invalid"],
        "conflict": "ENTRY_CONFLICT/REREAD",
        "kept": "blob",
        "bytes": 100_010,
        "labels": ["region=eu"],
        "change": ["put", 7],
        "removed": True,
        "gone": "ENTRY_NOT_FOUND/FIX_REQUEST",
        "allowed": True,
        "many": 300,
        "refused": "GRAPH_NOT_FOUND/FIX_REQUEST",
    }
    assert ["worker", "typescript"] in said["agents"]
    assert said["invalid"].endswith("/FIX_REQUEST")
