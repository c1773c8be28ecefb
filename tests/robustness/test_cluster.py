"""Three orchestrators on one etcd while they come, go, die and stall, judged by what clients and agents recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from antiphon import Client, Graph, Retry, output_of, ref

from tests.harness import journal_of
from tests.harness.cluster import Cluster
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
