"""The Go SDK against real processes: agents beside a sidecar, and a client that does all a client can do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from antiphon import Client, Graph, Retry, output_of, ref
from antiphon.v1 import failure_pb2, run_pb2
from antiphon_certs import Kind, Profile

from tests.harness import Mesh, eventually, journal_of
from tests.harness.authority import DOMAIN, NAMESPACE

SOON = timedelta(milliseconds=10)
ONCE = [Retry(["TRANSIENT", "TIMEOUT"], max_attempts=1)]
AGAIN = [Retry(["TRANSIENT", "LOST"], max_attempts=5, backoff=SOON)]


@pytest.fixture(scope="module")
def go_mesh(go_programs: Path) -> Iterator[Mesh]:
    with Mesh() as mesh:
        mesh.sidecar(command=[str(go_programs / "worker")], labels={"who": "worker"})
        yield mesh


@pytest_asyncio.fixture
async def client(go_mesh: Mesh) -> AsyncIterator[Client]:
    async with go_mesh.client() as client:
        await go_mesh.attached(client)
        yield client
    go_mesh.show()


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def answered(client: Client, capability: str, input: Any = None, **options: Any) -> Any:
    return output_of(await client.submit(one_task(capability, input, **options), wait=True))["t"]


def seen(mesh: Mesh, run: run_pb2.Run) -> list[str]:
    return [entry.event for entry in journal_of(mesh.journal) if entry.attempt_id.startswith(run.run_id)]


async def test_values_of_every_kind_come_back_as_they_went(client: Client) -> None:
    value = {"a": [1, 2.5, None, True, "\u00e9\u2028<&>"], "b": {}}
    assert await answered(client, "work.echo@1", value) == value


async def test_values_above_the_inline_limit_go_both_ways_whole(client: Client) -> None:
    value = "\u00e9" * 500_000
    cases = {"work.echo@1": value, "work.call@1": {"capability": "work.echo@1", "input": value}}
    for capability, given in cases.items():
        graph = Graph("one", output=ref("tasks.t.output"))
        graph.task("t", capability, input=ref("input"))
        run = await client.submit(graph, given, wait=True)
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
        assert json.loads(await client.download_payload(run.output)) == value


async def test_an_input_that_does_not_fit_never_reaches_the_handler(client: Client, go_mesh: Mesh) -> None:
    run = await client.submit(one_task("work.double@1", "two"), wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED and run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT
    assert seen(go_mesh, run) == []


async def test_a_task_knows_who_it_works_for(client: Client) -> None:
    who = await answered(client, "work.who@1", timeout=timedelta(seconds=30))
    assert who["agent"] == "worker" and who["principal"].endswith("/client/alice") and who["has_deadline"]
    assert who["attempt_id"].startswith(who["idempotency_key"]) and who["traceparent"].startswith("00-")


async def test_failures_have_their_kind_and_are_retried_by_it(client: Client) -> None:
    assert await answered(client, "work.fail@1", {"kind": "transient", "times": 2}, retry=AGAIN) == 3
    for kind, expected, text in (
        ("permanent", failure_pb2.FAILURE_KIND_PERMANENT, "permanent: the cause"),
        ("panic", failure_pb2.FAILURE_KIND_TRANSIENT, "panic: asked for"),
        ("other", failure_pb2.FAILURE_KIND_TRANSIENT, "a failure of kind other"),
    ):
        run = await client.submit(one_task("work.fail@1", {"kind": kind, "times": 9}, retry=ONCE), wait=True)
        assert (run.failure.kind, text in run.failure.message) == (expected, True), run.failure


async def test_an_agent_that_dies_is_started_again_and_its_task_is_tried_again(client: Client) -> None:
    assert await answered(client, "work.fail@1", {"kind": "die", "times": 1}, retry=AGAIN) == 2


async def test_a_killed_agent_loses_its_attempt_alone(client: Client, go_mesh: Mesh) -> None:
    before = await client.submit(one_task("work.double@1", 3), wait=True)
    gate = go_mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate), retry=AGAIN))
    await eventually(lambda: seen(go_mesh, run) == ["begun"])
    go_mesh.sidecars[0].kill_agent()
    await eventually(lambda: seen(go_mesh, run) == ["begun", "begun"])
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    assert seen(go_mesh, before) == ["begun", "done"]


async def test_a_cancelled_task_is_told(client: Client, go_mesh: Mesh) -> None:
    run = await client.submit(one_task("work.hold@1", str(go_mesh.path("gate"))))
    await eventually(lambda: seen(go_mesh, run) == ["begun"])
    await client.cancel(run.run_id)
    await eventually(lambda: seen(go_mesh, run) == ["begun", "cancelled"])


async def test_a_task_that_exceeds_its_time_is_told(client: Client, go_mesh: Mesh) -> None:
    gate = str(go_mesh.path("gate"))
    graph = one_task("work.hold@1", gate, timeout=timedelta(milliseconds=200), retry=ONCE)
    run = await client.submit(graph, wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_TIMEOUT
    await eventually(lambda: seen(go_mesh, run) == ["begun", "cancelled"])


async def test_progress_and_pieces_of_output_reach_who_watches(client: Client, go_mesh: Mesh) -> None:
    gate = go_mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))
    emitted = ""
    async for event in client.watch(run.run_id, include_progress=True, include_partials=True):
        if event.progress.message:
            assert event.progress.message == "holding" and event.progress.fraction == 0.5
        emitted += event.partial.text
        if event.partial.text:
            gate.touch()
    assert gate.exists()
    assert set(emitted.split()) == {"hold"}


async def test_agents_call_each_other(client: Client) -> None:
    assert await answered(client, "work.call@1", {"capability": "work.double@1", "input": 4}) == 8
    how = {"capability": "work.fail@1", "input": {"kind": "permanent", "times": 9}}
    assert (await answered(client, "work.call@1", how))["failed"] == "asked-for"


async def test_a_task_shares_context_under_a_claim(client: Client) -> None:
    assert await answered(client, "work.share@1", "plan") == {
        "n": 1,
        "conflict": True,
        "seen": ["plan"],
        "same_revision": True,
        "labels": 1,
        "nodes": 1,
        "deleted": True,
        "missing": True,
        "fence": True,
    }


async def test_sigterm_drains_what_is_at_work_and_exits_0(client: Client, go_mesh: Mesh, go_programs: Path) -> None:
    command = [str(go_programs / "worker")]
    leaving = go_mesh.sidecar("leaving", command=command, labels={"who": "leaving"})
    await go_mesh.attached(client, "leaving")
    gate = go_mesh.path("gate")
    held = await client.submit(one_task("work.hold@1", str(gate), agent_labels={"who": "leaving"}))
    await eventually(lambda: seen(go_mesh, held) == ["begun"])
    leaving.send(signal.SIGTERM)
    await eventually(lambda: '"draining"' in leaving.said())
    gate.touch()
    assert leaving.end() == 0
    assert output_of(await client.wait(held.run_id)) == {"t": "released"}
    assert seen(go_mesh, held) == ["begun", "done"]
    go_mesh.dismiss(leaving)


async def test_a_sidecar_that_restarts_has_its_agent_again(client: Client, go_mesh: Mesh) -> None:
    go_mesh.sidecars[0].restart()
    await go_mesh.attached(client)
    assert await answered(client, "work.double@1", 2) == 4


async def test_a_client_does_all_that_a_client_can_do(client: Client, go_mesh: Mesh, go_programs: Path) -> None:
    home = go_mesh.path("home")
    folder = home / "profiles" / "journey"
    go_mesh.ca.store(folder / "credential", go_mesh.ca.issue(Kind.CLIENT, "gopher"))
    address = go_mesh.orchestrator.address
    Profile(folder, ("127.0.0.1:9", address), (address,), DOMAIN, NAMESPACE).save()  # nobody listens at the first
    environ = {
        **os.environ,
        "ANTIPHON_HOME": str(home),
        "ANTIPHON_PROFILE": "journey",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    program = await asyncio.create_subprocess_exec(go_programs / "journey", env=environ, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(90):
        said, complaint = await program.communicate()
    assert program.returncode == 0, complaint.decode()
    report = json.loads(said)
    agents, watched = report.pop("agents"), report.pop("watched")
    assert "worker" in agents and watched in agents
    assert report.pop("offered") >= 8 and "doubling" in report.pop("graphs")
    assert report == {
        "allowed": True,
        "attempts": 1,
        "blob": False,
        "cancelled": "RUN_STATE_CANCELLED",
        "denied": True,
        "doubled": 42,
        "downloaded": 100_002,
        "ended": "RUN_STATE_SUCCEEDED",
        "events": True,
        "explained": True,
        "failed": True,
        "fenced": True,
        "held": True,
        "invalid": True,
        "listed": 201,
        "mistakes": 1,
        "no_graph": True,
        "not_found": ["RUN_NOT_FOUND", "FIX_REQUEST", "NotFound", "nowhere"],
        "own_context": True,
        "same_run": True,
        "seen": ["team/0", "team/1", "team/2"],
        "sum": sum(range(200)) * 2,
        "value": 2,
    }
