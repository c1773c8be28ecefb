"""A store that does not answer: a metric and two lines of the log say when calls are refused and when not any more."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from antiphon import Client, Graph
from antiphon.v1 import run_pb2
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Kind
from antiphon_orchestrator.telemetry import REPEATED

from tests.harness import eventually
from tests.harness.cluster import SHARDS, Cluster
from tests.harness.etcd import StartEtcd
from tests.harness.ports import free_ports

PATIENCE = timedelta(seconds=60)
REPEATS = {"store_takes_no_writes", "lease_not_renewed", "store_size_unknown", "cluster_not_followed"}


async def test_a_store_that_is_away_is_told_by_a_metric_and_in_few_lines(start_etcd: StartEtcd) -> None:
    etcd = start_etcd()
    (port,) = free_ports(1)
    with Cluster(etcd, 1, "--telemetry-metrics-port", str(port)) as cluster:
        try:
            async with cluster.client(timeout=PATIENCE, patience=PATIENCE) as client:
                await go_through_an_outage(cluster, client, etcd, port)
        finally:
            cluster.show()


async def go_through_an_outage(cluster: Cluster, client: Client, etcd: Any, port: int) -> None:
    cluster.sidecar()
    await cluster.attached(client)
    graph = Graph("one")
    graph.task("t", "work.echo@1", input="done")
    replica, context = cluster.orchestrator, shown(cluster)

    async def value(name: str) -> float:
        return (await scraped(context, port))[name]

    async def told() -> bool:
        events = Counter(line["event"] for line in lines(replica.log))
        return events["lease_not_renewed"] > 1 and events["store_takes_no_writes"] > 0

    assert await value("antiphon_serving") == 1
    assert await value("antiphon_internal_errors_total") == 0
    etcd.stop(0)
    try:
        # So many that some have a commit under way in nearly every shard.
        begun = [asyncio.ensure_future(client.submit(graph, wait=True)) for _ in range(2 * SHARDS)]

        async def refused() -> bool:
            return await value("antiphon_serving") == 0

        await eventually(refused)
        await eventually(told)
    finally:
        etcd.cont(0)

    async def serves() -> bool:
        return await value("antiphon_serving") == 1

    await eventually(serves)
    assert {run.state for run in await asyncio.gather(*begun)} == {run_pb2.RUN_STATE_SUCCEEDED}

    said = lines(replica.log)
    changes = [(line["level"], line["event"]) for line in said if line["event"] in ("serving", "not_serving")]
    assert changes == [("info", "serving"), ("error", "not_serving"), ("info", "serving")]
    for event in REPEATS:
        times = [datetime.fromisoformat(line["time"]) for line in said if line["event"] == event]
        assert all((after - before).total_seconds() > REPEATED - 1 for before, after in pairwise(times)), event


def lines(log: Path) -> list[dict[str, Any]]:
    """All of them: each is JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def shown(cluster: Cluster) -> ssl.SSLContext:
    """A client of the mesh, as which metrics are fetched."""
    key, chain, bundle = cluster.ca.issue(Kind.CLIENT, "prometheus")
    context = ssl.create_default_context(cadata=bundle.decode())
    (pem := cluster.path("prometheus.pem")).write_bytes(key + chain)
    context.load_cert_chain(pem)
    return context


async def scraped(context: ssl.SSLContext, port: int) -> dict[str, float]:
    """The metrics that have no labels."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=ORCHESTRATOR_DNS_NAME
        )
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
    found = (line.split() for line in text.partition("\r\n\r\n")[2].splitlines() if not line.startswith("#"))
    return {name: float(number) for name, number in found if "{" not in name}
