"""Three orchestrators on one etcd while they come, go, die and stall, judged by what clients and agents recorded."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
from antiphon import Client, Graph, Retry, output_of, ref

from tests.harness import eventually, journal_of
from tests.harness.cluster import SHARDS, Cluster
from tests.harness.etcd import Etcd

pytest_plugins = ("tests.harness.etcd_fixtures",)

PATIENCE = timedelta(seconds=60)
RULE = Retry(["LOST", "TRANSIENT"], max_attempts=20, backoff=timedelta(milliseconds=20))


@pytest.fixture
def cluster(etcd_current: Etcd) -> Iterator[Cluster]:
    with Cluster(etcd_current, 3) as cluster:
        yield cluster
        cluster.show()


def chain() -> Graph:
    graph = Graph("chain", output=ref("tasks.c.output"))
    graph.task("a", "work.double@1", input=ref("input"), retry=[RULE])
    graph.task("b", "work.double@1", input=ref("tasks.a.output"), retry=[RULE])
    graph.task("c", "work.double@1", input=ref("tasks.b.output"), retry=[RULE])
    return graph


async def submitted(client: Client, first: int, count: int) -> list[str]:
    graph = chain()
    runs = await asyncio.gather(*(client.submit(graph, n, timeout=PATIENCE) for n in range(first, first + count)))
    return [run.run_id for run in runs]


async def all_ended_once(cluster: Cluster, client: Client, run_ids: list[str]) -> None:
    for n, run_id in enumerate(run_ids):
        run = await client.wait(run_id, timeout=PATIENCE)
        assert output_of(run) == 8 * n
        assert run.totals.succeeded == run.totals.total == 3
    done = [entry.idempotency_key for entry in journal_of(cluster.journal) if entry.event == "done"]
    assert len(done) == len(set(done)) == 3 * len(run_ids), "a task that was done was done again"


@pytest.mark.proves("orchestrator dies")
async def test_any_replica_takes_any_call_and_the_runs_of_a_killed_one_end_on_the_others(cluster: Cluster) -> None:
    cluster.sidecar(concurrency=8)
    shards = await cluster.settled(3)
    async with cluster.client() as client:
        await cluster.attached(client)
        run_ids = await submitted(client, 0, 24)
        assert {cluster.owner(shards, run_id).address for run_id in run_ids} == set(shards)
        await all_ended_once(cluster, client, run_ids)
        run_ids += await submitted(client, 24, 24)
        cluster.replicas[1].kill9()
        run_ids += await submitted(client, 48, 24)
        await all_ended_once(cluster, client, run_ids)
    assert set(await cluster.settled(2)) == set(cluster.addresses)


@pytest.mark.proves("rolling restart")
async def test_a_rolling_restart_fails_no_call_and_runs_no_task_twice(cluster: Cluster) -> None:
    cluster.sidecar(concurrency=8)
    await cluster.settled(3)
    run_ids: list[str] = []
    stop = asyncio.Event()

    async def load(client: Client) -> None:
        while not stop.is_set():
            first = len(run_ids)
            run_ids.append("")
            (run_ids[first],) = await submitted(client, first, 1)
            await client.get_run(run_ids[first])
            await asyncio.sleep(0.01)

    async with cluster.client() as one, cluster.client() as other:
        await cluster.attached(one)
        async with asyncio.TaskGroup() as group:
            loads = [group.create_task(load(client)) for client in (one, other)]
            for replica in list(cluster.replicas):
                assert await asyncio.to_thread(replica.term) == 0
                await asyncio.to_thread(replica.start)
                await cluster.settled(3, replica.address)
            stop.set()
        assert all(task.done() for task in loads)
        await all_ended_once(cluster, one, run_ids)
    for replica in cluster.replicas:
        assert "shard_not_ours" not in replica.said(), "a shard was taken and not handed over"


async def test_a_third_replica_gets_a_third_of_the_shards_and_few_others_move(etcd_current: Etcd) -> None:
    with Cluster(etcd_current, 2) as cluster:
        before = await cluster.settled(2)
        third = cluster.add()
        third.start()
        after = await cluster.settled(3)
        assert max(map(len, after.values())) == -(-SHARDS // 3)
        moved = [shard for address, owned in before.items() for shard in set(after[address]).difference(owned)]
        assert len(moved) <= len(after[third.address])
        cluster.show()


@pytest.mark.proves("process pause")
async def test_a_stalled_owner_that_wakes_up_is_refused_and_goes_on_as_a_replica(cluster: Cluster) -> None:
    cluster.sidecar(concurrency=2)
    shards = await cluster.settled(3)
    async with cluster.client(address=[cluster.replicas[0].address]) as client:
        await cluster.attached(client)
        zombie = cluster.replicas[2]
        run_ids = await submitted(client, 0, 40)
        zombie.stall()
        try:
            await all_ended_once(cluster, client, run_ids)
            await cluster.settled(2)
        finally:
            zombie.send(signal.SIGCONT)
        again = await cluster.settled(3)
        assert set(again) == set(shards)
        run_ids += await submitted(client, 40, 20)
        await all_ended_once(cluster, client, run_ids)
    assert zombie.alive
    assert "lease_lost" in zombie.said()


@pytest.mark.proves("orchestrator dies")
async def test_a_long_attempt_of_a_killed_owner_is_adopted_and_a_watch_goes_on_without_gap_or_repeat(
    cluster: Cluster,
) -> None:
    cluster.sidecar(concurrency=4)
    shards = await cluster.settled(3)
    graph = Graph("long", output=ref("tasks.b.output"))
    graph.task("a", "work.sleep@1", input=ref("input"))
    graph.task("b", "work.echo@1", input=1, needs=["a"])
    async with cluster.client() as client:
        await cluster.attached(client)
        runs = [await client.submit(graph, 8.0) for _ in range(4)]
        watched = {run.run_id: asyncio.create_task(events_of(client, run.run_id)) for run in runs}
        await eventually(lambda: sum(entry.event == "begun" for entry in journal_of(cluster.journal)) == len(runs))
        cluster.owner(shards, runs[0].run_id).kill9()
        for run in runs:
            ended = await client.wait(run.run_id, timeout=PATIENCE)
            assert output_of(ended) == 1
            numbers = await watched[run.run_id]
            assert numbers == list(range(1, ended.event_seq + 1))
    started = [entry.idempotency_key for entry in journal_of(cluster.journal) if entry.event == "begun"]
    assert len(started) == len(set(started)) == 2 * len(runs), "an attempt that ran was run again"


async def events_of(client: Client, run_id: str) -> list[int]:
    return [event.event_seq async for event in client.watch(run_id) if event.event_seq]
