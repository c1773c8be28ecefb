"""Values above the inline limit: agents send and get them whole, and sidecars keep and fetch them on the way."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from antiphon import Client, Graph, output_of, ref
from antiphon.v1 import failure_pb2, run_pb2

from tests.harness import Mesh, eventually, journal_of
from tests.harness.objects import S3Server

pytest_plugins = ("tests.harness.fixtures",)

PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"
LARGE = 200_000
"""Bytes: more than travels inline, and less than an agent may answer."""


def one(capability: str) -> Graph:
    graph = Graph("one", output=ref("tasks.t.output"))
    graph.task("t", capability, input=ref("input"))
    return graph


async def test_what_an_agent_answers_is_kept_and_what_the_next_one_gets_is_whole(client: Client) -> None:
    graph = Graph("relay", output=ref("tasks.last.output"))
    graph.task("first", "work.large@1", input=ref("input"))
    graph.task("second", "work.echo@1", input=ref("tasks.first.output"))
    graph.task("last", "work.echo@1", input=ref("tasks.second.output"))
    run = await client.submit(graph, LARGE, wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
    assert (run.output.blob.size, run.output.inline) == (LARGE + 2, b"")
    assert await client.download_payload(run.output) == json.dumps("x" * LARGE).encode()
    # The same value is one in the store, whoever made it.
    assert {(await client.get_task(run.run_id, task)).output.blob.digest for task in ("first", "last")} == {
        run.output.blob.digest
    }


@pytest.mark.parametrize("size", [65_536, 65_537, (2 << 20)])
async def test_every_size_up_to_the_largest_goes_there_and_back(client: Client, size: int) -> None:
    value = "y" * (size - 2)
    run = await client.submit(one("work.echo@1"), value, wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
    assert run.output.HasField("blob") == (size > 65_536)
    assert await client.download_payload(run.output) == json.dumps(value).encode()


async def test_one_that_is_larger_still_is_the_agents_to_upload_and_to_fetch(client: Client) -> None:
    run = await client.submit(one("work.large@1"), (2 << 20) - 1, wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
    assert "larger than 2097152 bytes" in run.failure.message
    assert "Client.upload_payload" in run.failure.message
    value = b'"' + b"z" * (2 << 20) + b'"'
    run = await client.submit(one("work.bytes@1"), await client.upload_payload(value), wait=True)
    assert await client.download_payload(run.output) == value, "its handler got the reference and answered with it"


async def test_what_is_called_for_with_and_answered_is_whole_too(client: Client) -> None:
    how = {"capability": "work.large@1", "input": LARGE}
    run = await client.submit(one("work.call@1"), how, wait=True)
    assert await client.download_payload(run.output) == json.dumps("x" * LARGE).encode()
    (child,) = [one async for one in client.list_runs(parent=run.run_id)]
    assert (await client.get_run(child.run_id)).output.blob.digest == run.output.blob.digest
    how = {"capability": "work.echo@1", "input": "v" * LARGE}
    run = await client.submit(one("work.call@1"), how, wait=True)
    assert await client.download_payload(run.output) == json.dumps("v" * LARGE).encode()


async def test_an_entry_of_shared_context_is_written_and_read_whole(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("team", command=(sys.executable, "-m", "tests.harness.context_agent"))
    await mesh.attached(client, "team")
    value = "e" * LARGE
    steps = [{"do": "put", "key": "report", "value": value}, {"do": "get", "key": "report"}]
    run = await client.submit(one("team.script@1"), steps, wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
    assert json.loads(await client.download_payload(run.output))[1] == value
    assert (await client.get_entry("report")).value.blob.size == LARGE + 2


async def test_many_at_once_all_arrive(client: Client) -> None:
    graph = Graph("many", output=ref("tasks.sizes.output"))
    graph.task(
        "made", "work.large@1", for_each="[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]", input=1_900_000
    )
    graph.task("sizes", "work.echo@1", needs=["made"], input=16)
    run = await client.submit(graph, wait=True)
    assert (run.state, output_of(run)) == (run_pb2.RUN_STATE_SUCCEEDED, 16)


async def test_an_adapters_program_gets_and_answers_large_values(bare: Mesh) -> None:
    program = "import json, sys; value = json.load(sys.stdin); print(json.dumps(value * 2))"
    bare.sidecar(
        "tool",
        config=f"""
[[agent]]
name = "tool"
adapter = "exec"
command = [{json.dumps(sys.executable)}, "-c", {json.dumps(program)}]
[[agent.capability]]
name = "tool.twice"
version = "1"
""",
    )
    async with bare.client() as client:
        await bare.attached(client, "tool")
        run = await client.submit(one("tool.twice@1"), "w" * LARGE, wait=True)
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
        assert await client.download_payload(run.output) == json.dumps("w" * 2 * LARGE).encode()


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An object store that processes find by their environment."""
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


async def test_what_was_answered_waits_for_the_place_of_payloads_and_for_the_orchestrator(objects: S3Server) -> None:
    """The place stands still when the agent answers, and the orchestrator is killed before it has kept the value."""
    with Mesh("--payloads", objects.bucket()) as mesh:
        sidecar = mesh.sidecar()
        async with mesh.client() as client:
            await mesh.attached(client)
            gate = mesh.path("gate")
            slow = Graph("slow", output=ref("tasks.large.output"))
            slow.task("large", "work.large@1", input=LARGE)
            beside = await client.submit(one("work.hold@1"), str(gate))
            await mesh.attached(client, slots=2)
            objects.pause()
            run = await client.submit(slow)

            async def answered() -> bool:
                of_it = [entry for entry in journal_of(mesh.journal) if entry.capability.startswith("work.large")]
                return [entry.event for entry in of_it] == ["begun", "done"]

            await eventually(answered)
            gate.touch()
            assert output_of(await client.wait(beside.run_id)) == "released", "small ones do not wait for large ones"
            mesh.orchestrator.kill9()
            objects.resume()
            mesh.orchestrator.start()
            ended = await client.wait(run.run_id)
            assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended.failure
            assert await client.download_payload(ended.output) == json.dumps("x" * LARGE).encode()
            assert (await client.get_task(run.run_id, "large")).attempt_count == 1
            # A sidecar that is to stop first brings in what its agent has answered.
            objects.pause()
            run = await client.submit(slow)
            await eventually(lambda: len([e for e in journal_of(mesh.journal) if e.event == "done"]) == 3)
            sidecar.send(signal.SIGTERM)
            await eventually(lambda: '"draining"' in sidecar.said())
            objects.resume()
            assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
            assert (await client.get_task(run.run_id, "large")).attempt_count == 1


async def test_a_sidecar_that_may_not_keep_payloads_says_so(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    shutil.copytree(PROFILE, policies)
    profile = policies / "dev.cedar"
    text = profile.read_text()
    denied = text.replace('["client", "sidecar"].contains(principal.kind)', 'principal.kind == "client"')
    assert denied != text
    profile.write_text(denied)
    with Mesh(policy=("--policy-folder", str(policies))) as mesh:
        mesh.sidecar()
        async with mesh.client() as client:
            await mesh.attached(client)
            run = await client.submit(one("work.large@1"), LARGE, wait=True)
            assert run.failure.kind == failure_pb2.FAILURE_KIND_POLICY
            assert "the value could not be kept" in run.failure.message
            given = await client.upload_payload(json.dumps("x" * LARGE).encode())
            run = await client.submit(one("work.echo@1"), given, wait=True)
            assert run.failure.kind == failure_pb2.FAILURE_KIND_POLICY
            assert "the value could not be fetched" in run.failure.message
