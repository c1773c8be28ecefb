"""Each promise for the day something breaks, as far as one orchestrator can keep it; one test for each row.

Kills at random moments are in test_kills.py, a full store in test_full_store.py, certificates and tokens in
tests/integration/test_mesh_trust.py, a lost answer of a commit in tests/simulation.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from antiphon import Client, Graph, Retry, output_of
from antiphon.mesh.v1 import mesh_service_pb2, mesh_service_pb2_grpc
from antiphon.v1 import failure_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Kind

from tests.harness import Mesh, eventually, journal_of
from tests.harness.process import stall
from tests.harness.raw import channel, reason_of

pytest_plugins = ("tests.harness.fixtures",)

BRIEFLY = timedelta(milliseconds=10)
AGAIN = [Retry(["LOST", "TRANSIENT"], max_attempts=5, backoff=BRIEFLY)]


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


def begun(mesh: Mesh, run: run_pb2.Run) -> list[str]:
    return [
        e.attempt_id for e in journal_of(mesh.journal) if e.event == "begun" and e.attempt_id.startswith(run.run_id)
    ]


@pytest.mark.proves("agent process dies")
async def test_agent_process_dies(client: Client, mesh: Mesh) -> None:
    """Its attempt fails within 3 s; the task is tried again; finished tasks are not run again."""
    gate = mesh.path("gate")
    graph = Graph("half-way")
    graph.task("done", "work.echo@1", input=1)
    graph.task("t", "work.hold@1", input=str(gate), needs=["done"], retry=AGAIN)
    run = await client.submit(graph)
    await eventually(lambda: f"{run.run_id}/t/0/1" in begun(mesh, run))
    killed = datetime.now(UTC)
    mesh.sidecars[0].kill_agent()
    gate.touch()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    first, _ = [one async for one in client.list_attempts(run.run_id, "t")]
    assert first.state == run_pb2.ATTEMPT_STATE_LOST
    assert "was killed by signal 9" in first.failure.message
    assert first.end_time.ToDatetime(UTC) - killed < timedelta(seconds=3)
    assert begun(mesh, run) == [f"{run.run_id}/{attempt}" for attempt in ("done/0/1", "t/0/1", "t/0/2")]


@pytest.mark.proves("sidecar dies")
async def test_sidecar_dies(client: Client, mesh: Mesh) -> None:
    """What was acknowledged stays; what its agents were at is lost and tried again, on another one if need be."""
    first = mesh.sidecar("pair", version="5", concurrency=4, prefetch=0)
    mesh.sidecar("pair", version="5", concurrency=4, prefetch=0)
    await mesh.attached(client, "pair", instances=2)
    gate = mesh.path("gate")
    graph = Graph("spread")
    graph.task("done", "work.echo@5", for_each="[1, 2, 3, 4]", retry=AGAIN)
    graph.task("t", "work.hold@5", for_each="input", needs=["done"], retry=AGAIN)
    run = await client.submit(graph, [str(gate)] * 8)
    await eventually(lambda: sum("/t/" in attempt for attempt in begun(mesh, run)) == 8)
    first.kill_agent()
    first.kill9()
    gate.touch()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert sum("/done/" in attempt for attempt in begun(mesh, run)) == 4
    assert 8 < sum("/t/" in attempt for attempt in begun(mesh, run)) <= 12


@pytest.mark.proves("orchestrator dies")
async def test_orchestrator_dies(client: Client, mesh: Mesh) -> None:
    """Again and again during one run: it is not lost, what runs is adopted, and a watcher sees each event once."""
    gates = [mesh.path("gate") for _ in range(3)]
    graph = Graph("survivor")
    graph.task("a", "work.hold@1", input=str(gates[0]))
    graph.task("b", "work.hold@1", input=str(gates[1]), needs=["a"])
    graph.task("c", "work.hold@1", input=str(gates[2]), needs=["b"])
    run = await client.submit(graph)

    async def watch() -> list[int]:
        return [event.event_seq async for event in client.watch(run.run_id)]

    watching = asyncio.create_task(watch())
    for number, gate in enumerate(gates, 1):
        await eventually(lambda number=number: len(begun(mesh, run)) == number)  # type: ignore[misc]
        mesh.orchestrator.restart()
        gate.touch()
    numbers = await watching
    assert numbers == list(range(1, len(numbers) + 1))
    assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert len(begun(mesh, run)) == 3


@pytest.mark.proves("process pause")
async def test_process_pause(client: Client, mesh: Mesh) -> None:
    """Whoever is stopped for a while goes on where it was, and nothing runs twice."""
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))
    await eventually(lambda: begun(mesh, run))
    sidecar = mesh.sidecars[0]
    for pid in (mesh.orchestrator.pid, sidecar.pid, *sidecar.agent_pids()):
        stall(pid)
        try:
            await asyncio.sleep(1.0)  # the pause itself, not a wait for something
        finally:
            os.kill(pid, signal.SIGCONT)
        assert output_of(await client.submit(one_task("work.echo@1", pid), wait=True)) == {"t": pid}
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    assert len(begun(mesh, run)) == 1


@pytest.mark.proves("archive down")
async def test_archive_down(client: Client, mesh: Mesh) -> None:
    """Runs go on, an alarm says so, and it catches up by itself."""
    archive = sqlite3.connect(mesh.orchestrator.data / "archive.db", isolation_level=None)
    archive.execute("BEGIN IMMEDIATE")
    try:
        runs = [await client.submit(one_task("work.echo@1", n), wait=True) for n in range(20)]
        assert [output_of(run)["t"] for run in runs] == list(range(20))
        await eventually(lambda: "archive_unavailable" in mesh.orchestrator.said())
        assert (await client.get_run(runs[0].run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    finally:
        archive.execute("ROLLBACK")

    def archived() -> bool:
        (count,) = archive.execute(
            f"SELECT count(*) FROM runs WHERE run_id >= '{min(r.run_id for r in runs)}'"
        ).fetchone()
        return bool(count >= len(runs))

    try:
        await eventually(archived)
    finally:
        archive.close()
    assert await client.get_run(runs[0].run_id) == runs[0]


@asynccontextmanager
async def own_sidecar(mesh: Mesh) -> AsyncIterator[Any]:
    """An Attach stream of a sidecar written here, with the agent `odd` that has one slot for work.odd@1."""
    pem = mesh.ca.issue(Kind.SIDECAR, "odd", agents=["odd"], capabilities=["work.odd"])
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = mesh_service_pb2_grpc.MeshServiceStub(raw)
        stream = stub.Attach()
        first = mesh_service_pb2.AttachRequest()
        first.hello.incarnation = os.urandom(8).hex()
        first.hello.generation = first.hello.protocol_version = 1
        description = first.hello.agents.add(name="odd", concurrency=1)
        description.capabilities.add(name="work.odd", version="1")
        first.hello.windows.add(agent="odd", generation=1, slots=1)
        await stream.write(first)
        yield stream
        stream.cancel()


async def offered(stream: Any) -> mesh_service_pb2.Offer:
    while not (message := await stream.read()).offers:
        pass
    offer: mesh_service_pb2.Offer = message.offers[0]
    return offer


async def verdict(stream: Any, offer: mesh_service_pb2.Offer, output: bytes) -> str:
    """What becomes of an output that is reported for an offer."""
    request = mesh_service_pb2.AttachRequest()
    report = request.reports.add(attempt_id=offer.assignment.attempt_id, shard=offer.shard, agent="odd")
    report.output.inline = output
    await stream.write(request)
    while not (message := await stream.read()).verdicts:
        pass
    return mesh_service_pb2.VerdictKind.Name(message.verdicts[0].kind).removeprefix("VERDICT_KIND_")


@pytest.mark.proves("duplicate or late result")
async def test_duplicate_or_late_result(client: Client, mesh: Mesh) -> None:
    """An outcome is accepted once; one that comes after the task has moved on is recorded and not used."""
    async with own_sidecar(mesh) as stream:
        graph = Graph("odd")
        graph.task("t", "work.odd@1", deadline=timedelta(seconds=60), retry=AGAIN)
        graph.task("held", "work.hold@1", input=str(mesh.path("never")))
        run = await client.submit(graph)
        offer = await offered(stream)
        assert await verdict(stream, offer, b'"one"') == "ACCEPTED"
        assert await verdict(stream, offer, b'"two"') == "DUPLICATE"
        assert (await client.get_task(run.run_id, "t")).output.inline == b'"one"'
        await client.cancel(run.run_id)
        run = await client.submit(one_task("work.odd@1"))
        offer = await offered(stream)
        await client.cancel(run.run_id)
        assert await verdict(stream, offer, b'"late"') in ("STALE", "GONE")
        assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED


@pytest.mark.proves("the same submission twice")
async def test_the_same_submit_run_twice(client: Client, mesh: Mesh) -> None:
    """One run, though the first answer was lost with the orchestrator."""
    graph = one_task("work.echo@1", 1)
    lost = asyncio.create_task(client.submit(graph, request_id="twice", wait=True))
    await asyncio.sleep(0)
    mesh.orchestrator.restart()
    first = await lost
    assert (await client.submit(graph, request_id="twice", wait=True)).run_id == first.run_id
    assert len(begun(mesh, first)) == 1


@pytest.mark.proves("slow agent")
async def test_slow_agent(client: Client, mesh: Mesh) -> None:
    """The time left shrinks from hop to hop, ends what is slow at zero, and nobody else waits for it."""
    slow = one_task("work.hold@1", str(mesh.path("never")), timeout=timedelta(seconds=4))
    waiting = await client.submit(slow)
    graph = one_task("work.call@1", {"capability": "work.who@1"}, timeout=timedelta(seconds=10))
    run = await client.submit(graph, wait=True)
    assert 0 < output_of(run)["t"]["remaining"] < 10
    assert (await client.get_run(waiting.run_id)).state == run_pb2.RUN_STATE_RUNNING
    ended = await client.wait(waiting.run_id)
    assert ended.failure.kind == failure_pb2.FAILURE_KIND_TIMEOUT
    cancelled = ("cancelled", f"{waiting.run_id}/t/0/1")
    await eventually(lambda: cancelled in {(e.event, e.attempt_id) for e in journal_of(mesh.journal)})


@pytest.mark.proves("overload")
async def test_overload() -> None:
    """Queues are bounded: unary callers are told to come back, streams are slowed, and all that obey are served."""
    with Mesh("--shards", "1", "--inbox-limit", "1") as mesh:
        mesh.sidecar()
        async with mesh.client(timeout=timedelta(seconds=30)) as client:
            await mesh.attached(client)
            # How many at once are too many depends on the machine: more come until somebody is refused.
            told: set[str] = set()
            callers = 4
            async with asyncio.timeout(120):
                while told != {"", "OVERLOADED"}:
                    assert told <= {"", "OVERLOADED"}
                    told = told.union(*await asyncio.gather(*(impatient(mesh) for _ in range(callers))))
                    callers += 2
            runs = await asyncio.gather(*(client.submit(one_task("work.echo@1", n), wait=True) for n in range(200)))
            assert [output_of(run)["t"] for run in runs] == list(range(200))
            async with client.submitter() as submitter:
                answers = [await submitter.submit(one_task("work.echo@1", n), wait=True) for n in range(500)]
                assert [output_of(await answer)["t"] for answer in answers] == list(range(500))


async def impatient(mesh: Mesh) -> set[str]:
    """A hundred submissions at once by a caller who does not come back: how they were refused, "" for not at all."""
    pem = mesh.ca.issue(Kind.CLIENT, f"impatient-{uuid.uuid4().hex[:8]}")
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        graph = one_task("work.echo@1", 1).to_proto()

        async def one(number: int) -> str:
            request = run_service_pb2.SubmitRunRequest(request_id=str(number), inline=graph)
            try:
                await stub.SubmitRun(request, timeout=20)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return reason_of(error)
            return ""

        return set(await asyncio.gather(*(one(number) for number in range(100))))
