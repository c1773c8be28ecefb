"""What is kept across crashes: request ids, runs, cursors, trace context; and reading live and archived runs alike."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from antiphon import Client, CursorInvalid, Graph, GraphNotFound, RequestIdReused, Retry, RunNotFound, output_of
from antiphon.v1 import failure_pb2, run_pb2
from antiphon_orchestrator.store import Delete, Put, SqliteStore, Txn, keys

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def archived(client: Client, run: run_pb2.Run, mesh: Mesh) -> None:
    """Return once the run is in the archive's files."""
    files = [mesh.orchestrator.data / name for name in ("archive.db", "archive.db-wal")]
    await eventually(lambda: any(run.run_id.encode() in file.read_bytes() for file in files if file.exists()))


async def test_the_same_request_id_is_the_same_run_whatever_happens_in_between(client: Client, mesh: Mesh) -> None:
    graph = one_task("work.who@1")
    first = await client.submit(graph, "in", request_id="once", wait=True)
    assert (await client.submit(graph, "in", request_id="once")).run_id == first.run_id
    async with client.submitter() as submitter:
        answer = await submitter.submit(graph, "in", request_id="once", wait=True)
        assert (await answer).run_id == first.run_id
    mesh.orchestrator.restart()
    again = await client.submit(graph, "in", request_id="once", wait=True)
    assert (again.run_id, output_of(again)) == (first.run_id, output_of(first))
    with pytest.raises(RequestIdReused):
        await client.submit(graph, "other", request_id="once")
    async with client.submitter() as submitter:
        answer = await submitter.submit(graph, "other", request_id="once")
        with pytest.raises(RequestIdReused):
            await answer


async def test_many_of_the_same_request_at_once_are_one_run(client: Client, mesh: Mesh) -> None:
    graph = one_task("work.who@1")
    runs = await asyncio.gather(*(client.submit(graph, 1, request_id="storm", wait=True) for _ in range(20)))
    assert len({run.run_id for run in runs}) == 1
    begun = [e for e in journal_of(mesh.journal) if e.event == "begun" and e.attempt_id.startswith(runs[0].run_id)]
    assert len(begun) == 1


async def test_the_same_request_id_of_another_caller_is_another_run(client: Client, mesh: Mesh) -> None:
    graph = one_task("work.echo@1", 1)
    mine = await client.submit(graph, request_id="shared", wait=True)
    async with mesh.client("bob") as bob:
        assert (await bob.submit(graph, request_id="shared", wait=True)).run_id != mine.run_id


async def test_another_namespace_sees_neither_runs_nor_agents_nor_graphs(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task("work.echo@1", 1), wait=True)
    graph = Graph("mine", version="1")
    graph.task("t", "work.echo@1")
    await client.register_graph(graph)
    async with mesh.client("mallory", namespace="team-b") as stranger:
        with pytest.raises(RunNotFound):
            await stranger.get_run(run.run_id)
        with pytest.raises(RunNotFound):
            await stranger.cancel(run.run_id)
        with pytest.raises(RunNotFound):
            async for _ in stranger.watch(run.run_id):
                pass
        with pytest.raises(GraphNotFound):
            await stranger.submit("mine@1")
        assert [one async for one in stranger.list_runs()] == []
        assert [one async for one in stranger.list_agents()] == []


async def test_trace_context_reaches_the_agent_as_another_span_of_the_same_trace(client: Client) -> None:
    run = await client.submit(one_task("work.who@1"), traceparent=PARENT, wait=True)
    version, trace, span, flags = output_of(run)["t"]["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != PARENT.split("-")[2]
    assert run.traceparent.split("-")[1] == TRACE


async def test_trace_context_survives_a_crash_of_the_orchestrator(bare: Mesh) -> None:
    async with bare.client() as client:
        run = await client.submit(one_task("work.who@1"), traceparent=PARENT)
        bare.orchestrator.restart()
        bare.sidecar()
        ended = await client.wait(run.run_id)
        assert output_of(ended)["t"]["traceparent"].split("-")[1] == TRACE


async def test_a_watch_goes_on_without_gap_or_repeat_across_a_crash(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    graph = Graph("watched")
    graph.task("before", "work.double@1", for_each="input")
    graph.task("held", "work.hold@1", input=str(gate), needs=["before"])
    graph.task("after", "work.double@1", for_each="input", needs=["held"])
    run = await client.submit(graph, list(range(10)))
    seen: list[run_pb2.RunEvent] = []
    async for event in client.watch(run.run_id):
        seen.append(event)
        if event.key.task_id == "held" and event.attempt.state == run_pb2.ATTEMPT_STATE_OFFERED:
            mesh.orchestrator.restart()
            gate.touch()
    assert [event.event_seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].run_state == run_pb2.RUN_STATE_SUCCEEDED
    ended = await client.get_run(run.run_id)
    assert ended.event_seq == len(seen)
    await archived(client, run, mesh)
    again = [event async for event in client.watch(run.run_id)]
    assert again == seen
    assert [event async for event in client.watch(run.run_id, cursor=7)] == seen[7:]
    assert [event async for event in client.watch(run.run_id, cursor=len(seen))] == []
    with pytest.raises(CursorInvalid):
        async for _ in client.watch(run.run_id, cursor=len(seen) + 1):
            pass


async def test_attempts_that_run_through_a_crash_of_the_orchestrator_are_adopted(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    graph = Graph("adopted")
    graph.task("each", "work.hold@1", for_each="input")
    run = await client.submit(graph, [str(gate)] * 8)
    await eventually(
        lambda: sum(e.event == "begun" and e.attempt_id.startswith(run.run_id) for e in journal_of(mesh.journal)) == 8
    )
    mesh.orchestrator.restart()
    gate.touch()
    ended = await client.wait(run.run_id)
    assert output_of(ended)["each"] == ["released"] * 8
    for member in range(1, 9):
        assert (await client.get_task(run.run_id, "each", member)).attempt_count == 1
    begun = [e for e in journal_of(mesh.journal) if e.event == "begun" and e.attempt_id.startswith(run.run_id)]
    assert len(begun) == 8


async def test_outcomes_that_come_while_the_orchestrator_is_away_wait_in_the_sidecar(
    client: Client, mesh: Mesh
) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))
    await eventually(lambda: any(e.attempt_id.startswith(run.run_id) for e in journal_of(mesh.journal)))
    mesh.orchestrator.kill9()
    gate.touch()
    done = ("done", f"{run.run_id}/t/0/1")
    await eventually(lambda: done in {(e.event, e.attempt_id) for e in journal_of(mesh.journal)})
    mesh.orchestrator.start()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    assert (await client.get_task(run.run_id, "t")).attempt_count == 1


async def test_a_task_that_waits_for_its_next_try_goes_on_after_a_crash(client: Client, mesh: Mesh) -> None:
    rule = Retry(["TRANSIENT"], backoff=timedelta(seconds=1))
    run = await client.submit(one_task("work.fail@1", {"kind": "transient", "times": 1}, retry=[rule]))

    async def waiting() -> bool:
        return (await client.get_task(run.run_id, "t")).state == run_pb2.TASK_STATE_WAITING

    await eventually(waiting)
    mesh.orchestrator.restart()
    assert output_of(await client.wait(run.run_id)) == {"t": 2}


async def test_lists_of_archived_runs_say_of_what_kind_their_failure_is(client: Client) -> None:
    labels = {"set": "kinds"}
    run = await client.submit(one_task("work.fail@1", {"kind": "permanent"}), labels=labels, wait=True)

    async def forgotten() -> bool:
        # What the archive tells of has no totals.
        return [one.totals.total async for one in client.list_runs(labels=labels)] == [0]

    await eventually(forgotten)
    (found,) = [one async for one in client.list_runs(labels=labels)]
    assert (found.failure.kind, found.failure.code) == (failure_pb2.FAILURE_KIND_PERMANENT, "asked-for")
    assert found.failure.message == run.failure.message


async def test_pages_go_through_live_and_archived_runs_newest_first(client: Client, mesh: Mesh) -> None:
    labels = {"set": "pages"}
    gate = mesh.path("gate")
    ended = [(await client.submit(one_task("work.echo@1", n), labels=labels, wait=True)).run_id for n in range(7)]
    live = [(await client.submit(one_task("work.hold@1", str(gate)), labels=labels)).run_id for _ in range(4)]
    expected = [*reversed(ended + live)]
    for size in (1, 3, 100):
        assert [run.run_id async for run in client.list_runs(labels=labels, page_size=size)] == expected
    mesh.orchestrator.restart()
    assert [run.run_id async for run in client.list_runs(labels=labels, page_size=3)] == expected
    succeeded = [run_pb2.RUN_STATE_SUCCEEDED]
    found = [run.run_id async for run in client.list_runs(labels=labels, states=succeeded, page_size=2)]
    assert found == [*reversed(ended)]
    gate.touch()
    for run_id in live:
        await client.wait(run_id)
    assert [run.run_id async for run in client.list_runs(labels=labels, page_size=4)] == expected


async def test_an_archived_run_reads_as_it_did_when_it_was_live(client: Client, mesh: Mesh) -> None:
    graph = Graph("kept", output={"sum": "${tasks.each.output}"})
    graph.task("each", "work.double@1", for_each="input")
    graph.task("bad", "work.fail@1", input={"kind": "permanent"}, on_failure="continue")
    run = await client.submit(graph, [1, 2], labels={"a": "b"}, wait=True)
    await archived(client, run, mesh)
    mesh.orchestrator.restart()
    assert await client.get_run(run.run_id) == run
    explained = await client.explain(run.run_id, "each", 2)
    assert explained.task.state == run_pb2.TASK_STATE_SUCCEEDED and explained.attempts[0].decision.chosen
    tasks = [task.key.member async for task in client.list_tasks(run.run_id, include_payloads=True)]
    assert tasks == [0, 1, 2, 0]


async def test_large_payloads_travel_by_reference(client: Client) -> None:
    data = b'"' + b"x" * 200_000 + b'"'
    payload = await client.upload_payload(data)
    assert payload.blob.size == len(data)
    run = await client.submit(one_task("work.echo@1", None), "x" * 200_000, wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert await client.download_payload(run.input) == data


async def test_a_run_whose_graph_cannot_be_loaded_stops_the_start_in_one_line_and_is_not_lost(bare: Mesh) -> None:
    async with bare.client("alice") as client:
        graph = Graph("gone", version="1")
        graph.task("t", "nobody.offers@1")
        await client.register_graph(graph)
        run = await client.submit("gone@1")
    bare.orchestrator.kill9()
    key = keys.graph("team-a", "gone", "1")
    async with SqliteStore(bare.orchestrator.data / "store.db") as store:
        (kept,) = (await store.range(key)).kvs
        await store.commit(Txn((), (Delete(key),)))
    bare.orchestrator.begin()
    assert bare.orchestrator.end() == 2
    assert f"run {run.run_id} goes on with graph gone" in bare.orchestrator.said()
    assert "Traceback" not in bare.orchestrator.said()
    async with SqliteStore(bare.orchestrator.data / "store.db") as store:
        await store.commit(Txn((), (Put(key, kept.value),)))
    bare.orchestrator.start()
    async with bare.client("alice") as client:
        assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_RUNNING
