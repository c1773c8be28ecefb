"""An owner of shards that was stopped while others took over: nothing that it says afterwards counts.

Its offers are on their way to the sidecar all the while, in the buffers of sockets, and arrive when others have done
what they ask for. Who runs what, the agents say.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from antiphon import Graph, Retry, output_of
from antiphon.v1 import run_pb2

from tests.harness import eventually, journal_of
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.network import Network, Way

PATIENCE = timedelta(seconds=90)
RULE = Retry(["LOST", "TRANSIENT"], max_attempts=20, backoff=timedelta(milliseconds=20))
RUNS = 24
UNDER_WAY = {run_pb2.ATTEMPT_STATE_OFFERED, run_pb2.ATTEMPT_STATE_SUCCEEDED}


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.long_form
@pytest.mark.proves("process pause", "partition, each side")
async def test_offers_that_a_stalled_owner_had_sent_are_refused_when_they_arrive(
    etcd_current: Etcd, network: Network
) -> None:
    with Cluster(etcd_current, 3, network=network) as cluster:
        try:
            await stall_with_offers_on_their_way(cluster, network)
        finally:
            cluster.show()


async def stall_with_offers_on_their_way(cluster: Cluster, network: Network) -> None:
    sidecar = cluster.sidecar(concurrency=RUNS)
    shards = await cluster.settled(3)
    zombie = cluster.replicas[2]
    graph = Graph("one")
    graph.task("t", "work.echo@1", input="done", retry=[RULE])
    async with cluster.client(address=[replica.address for replica in cluster.replicas[:2]]) as client:
        await cluster.attached(client, slots=1)
        network.cut(zombie.name, sidecar.name, Way.HOLD)
        runs = await asyncio.gather(*(client.submit(graph, timeout=PATIENCE) for _ in range(RUNS)))
        stranded = {run.run_id for run in runs if cluster.owner(shards, run.run_id) is zombie}
        assert stranded, "none of so many runs falls to the one that is to stall"

        async def under_way() -> bool:
            """Offered by the zombie and received by nobody, unless it has lost its shards by itself."""
            attempts = [one for run_id in stranded async for one in client.list_attempts(run_id, "t")]
            return any(attempt.state in UNDER_WAY for attempt in attempts)

        await eventually(under_way)
        async with cluster.client(address=[zombie.address]) as other:
            await other.get_run(runs[0].run_id)
            zombie.stall()
            try:
                # These lie in its socket, and are the first that it does when it goes on.
                late = [asyncio.ensure_future(other.submit(graph, wait=True, timeout=PATIENCE)) for _ in range(RUNS)]
                for run in runs:
                    assert output_of(await client.wait(run.run_id, timeout=PATIENCE)) == {"t": "done"}
                await cluster.settled(2)
            finally:
                zombie.send(signal.SIGCONT)
            assert all(output_of(run) == {"t": "done"} for run in await asyncio.gather(*late))
        # It is a replica again, with slots; only now does the sidecar hear what it said before.
        await cluster.settled(3)
        network.heal()
        again = await asyncio.gather(*(client.submit(graph, wait=True, timeout=PATIENCE) for _ in range(RUNS)))
        assert all(output_of(run) == {"t": "done"} for run in again)
    assert zombie.alive
    assert "lease_lost" in zombie.said()
    assert "shard_not_ours" in zombie.said(), "it was not refused"
    counts = Counter(entry.attempt_id for entry in journal_of(cluster.journal) if entry.event == "begun")
    assert {attempt_id: count for attempt_id, count in counts.items() if count > 1} == {}
    done = Counter(entry.idempotency_key for entry in journal_of(cluster.journal) if entry.event == "done")
    assert len(done) == sum(done.values()) == 3 * RUNS, "a task that was done was done again"
