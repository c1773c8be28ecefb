"""A run that a bug keeps from being carried on: the orchestrator lives, others go on, and whoever asks is told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from antiphon import Agent, Client, Graph, RunNotFound, RunSetAside, output_of, ref
from antiphon.testing import Mesh, eventually
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards import recovery
from google.protobuf.timestamp_pb2 import Timestamp

LONG = timedelta(seconds=30)
"""What nobody who is told at once needs."""


@pytest.mark.proves("a bug in how one run is carried on")
async def test_a_bug_in_one_run_leaves_the_orchestrator_and_all_others_at_work() -> None:
    agent, gate, begun = Agent("waiter", concurrency=1), asyncio.Event(), asyncio.Event()

    @agent.capability("text.wait@1")
    async def wait(text: str) -> str:
        begun.set()
        await gate.wait()
        return text

    graph = Graph("waits", output=ref("tasks.wait.output"))
    graph.task("wait", "text.wait@1", input=ref("input"))
    async with Mesh() as mesh:
        mesh.add(agent)
        bad = await mesh.client.submit(graph, "bad", request_id="bad")
        await begun.wait()
        other = await mesh.client.submit(graph, "other")
        waits = asyncio.create_task(mesh.client.wait(other.run_id))
        in_vain = [
            asyncio.create_task(mesh.client.submit(graph, "bad", request_id="bad", wait=True, timeout=LONG)),
            asyncio.create_task(mesh.client.wait(bad.run_id, timeout=LONG)),
        ]
        host: Any = mesh._server._orchestrator.shards
        for times in (1, 2):
            await eventually(lambda: bool(host.shards))
            shard = host.shards[0]
            host.put(0, bug(bad.run_id))
            await eventually(lambda shard=shard: bool(host.shards) and host.shards[0] is not shard)
            await eventually(lambda times=times: host.aside() == times - 1)
        seen = await mesh.client.get_run(bad.run_id)
        assert seen.warnings[-1].startswith("it stands still")
        with pytest.raises(RunSetAside, match="nothing can be asked of run"):
            await mesh.operator.cancel(bad.run_id)
        for steer in steering(mesh.client, bad.run_id):
            with pytest.raises(RunSetAside, match="nothing can be asked of run"):
                await steer
        stranger = mesh._server._identities.client("eve", namespace="other")
        async with Client.connect(address=mesh._server.address, credentials=stranger) as eve:
            for steer in (*steering(eve, bad.run_id), eve.cancel(bad.run_id)):
                with pytest.raises(RunNotFound):
                    await steer
        for waiting in in_vain:
            with pytest.raises(RunSetAside, match=f"run {bad.run_id} now: it stands still"):
                await waiting
        events: list[int] = []
        with pytest.raises(RunSetAside):
            await watch(mesh, bad.run_id, events)
        assert events == list(range(1, max(events) + 1)), "what has happened is told"
        gate.set()
        assert output_of(await waits) == "other"
        assert output_of(await mesh.client.submit(graph, "new", wait=True)) == "new"
        assert (await mesh.client.get_run(bad.run_id)).totals.running == 1


@pytest.mark.proves("a bug in how one run is carried on")
async def test_a_run_that_cannot_be_rebuilt_waits_with_its_outcome_for_who_can() -> None:
    agent, gate, begun = Agent("waiter", concurrency=2), asyncio.Event(), []

    @agent.capability("text.wait@1")
    async def wait(text: str) -> str:
        begun.append(text)
        await gate.wait()
        return text

    graph = Graph("waits", output=ref("tasks.wait.output"))
    graph.task("wait", "text.wait@1", input=ref("input"))
    apply = recovery.apply

    def halfway(run: Run, event: Any, now: int) -> None:
        apply(run, event, now)
        if run.run_id == bad.run_id:
            raise RuntimeError("a bug")

    async with Mesh() as mesh:
        mesh.add(agent)
        bad, other = [await mesh.client.submit(graph, text) for text in ("bad", "other")]
        await eventually(lambda: len(begun) == 2)
        host: Any = mesh._server._orchestrator.shards

        async def rebuild(run_id: str) -> None:
            shard = host.shards[0]
            host.put(0, bug(run_id))
            await eventually(lambda: bool(host.shards) and host.shards[0] is not shard)

        with patch.object(recovery, "apply", halfway):
            await rebuild(other.run_id)
            assert host.aside() == 1
            gate.set()
            assert output_of(await mesh.client.wait(other.run_id)) == "other"
            new = await mesh.client.submit(graph, "new", wait=True)
            seen = await mesh.client.get_run(bad.run_id)
            assert seen.totals.running == 0 and "could not be rebuilt" in seen.warnings[-1]
            listed = [run async for run in mesh.client.list_runs()]
            assert {run.run_id for run in listed} == {bad.run_id, other.run_id, new.run_id}
            with pytest.raises(RunSetAside, match="nothing can be asked of run"):
                await mesh.operator.cancel(bad.run_id)
            events: list[int] = []
            with pytest.raises(RunSetAside, match="could not be rebuilt"):
                await watch(mesh, bad.run_id, events)
            assert events == [], "it is shown as it was submitted"
        gate.clear()
        later = await mesh.client.submit(graph, "later")
        await eventually(lambda: "later" in begun)
        await rebuild(later.run_id)
        assert output_of(await mesh.client.wait(bad.run_id)) == "bad"
        assert begun.count("bad") == begun.count("other") == 1


def steering(client: Client, run_id: str) -> tuple[Coroutine[Any, Any, Any], ...]:
    """Whatever steers a run and changes it, but to cancel it."""
    return (
        client.pause(run_id),
        client.resume(run_id),
        client.cancel_task(run_id, "wait"),
        client.retry(run_id, "wait", end_time=Timestamp(seconds=1)),
        client.resolve(run_id, "wait", output="done"),
        client.signal(run_id, "go"),
    )


async def watch(mesh: Mesh, run_id: str, events: list[int]) -> None:
    async with asyncio.timeout(LONG.total_seconds()):
        async for event in mesh.client.watch(run_id):
            events.append(event.event_seq)


def bug(run_id: str) -> i.Steer:
    """An input whose handling raises, as one does that the rules have forgotten."""

    def wish(run: Run, now: int) -> i.Steered:
        raise RuntimeError("a bug")

    return i.Steer(run_id, "spiffe://mesh.test/ns/test/client/tester", "pause", "", {}, wish, lambda answer: None)
