"""A replica that is cut off from the store, while the others are not: it says nothing old, and keeps nobody waiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon import Graph, Retry
from antiphon.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Kind
from antiphon_orchestrator.shards.payloads import request_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import eventually
from tests.harness.authority import DOMAIN, NAMESPACE
from tests.harness.cluster import SHARDS, Cluster
from tests.harness.etcd import StartEtcd
from tests.harness.network import Network
from tests.harness.orchestrator import OrchestratorProcess
from tests.harness.raw import channel, reason_of

PATIENCE = timedelta(seconds=60)
SERVING, NOT_SERVING = (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING)
RUNS = 8


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.proves("a replica is cut off from the store")
async def test_callers_of_a_replica_that_is_cut_off_get_their_answers_from_another(
    start_etcd: StartEtcd, network: Network
) -> None:
    etcd = start_etcd(network=network)
    with Cluster(etcd, 2, network=network) as cluster:
        try:
            await cut_off_one(cluster, network, etcd.members[0].name)
        finally:
            cluster.show()


async def cut_off_one(cluster: Cluster, network: Network, etcd: str) -> None:
    cluster.sidecar(concurrency=RUNS)
    shards = await cluster.settled(2)
    alone, other = cluster.replicas
    gate = cluster.path("gate")
    graph = Graph("held")
    graph.task("t", "work.hold@1", input=str(gate), retry=[Retry(["LOST"], max_attempts=9)])
    async with AsyncExitStack() as stack:
        both = await stack.enter_async_context(
            cluster.client(address=[alone.address, other.address], timeout=PATIENCE, patience=PATIENCE)
        )
        raw = await stack.enter_async_context(channel(alone.address, cluster.ca.issue(Kind.CLIENT, "raw")))
        runs: Any = run_service_pb2_grpc.RunServiceStub(raw)
        health = health_pb2_grpc.HealthStub(raw)
        await cluster.attached(both)
        held = [(await both.submit(graph)).run_id for _ in range(RUNS)]
        mine = [run_id for run_id in held if cluster.owner(shards, run_id) is alone]
        assert mine, "none of so many runs falls to the one that is to be cut off"
        waiting = [asyncio.ensure_future(both.wait(run_id, timeout=PATIENCE)) for run_id in held]
        watch = aiter(runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=mine[0])))
        await anext(watch)

        network.part(alone.name, etcd)
        # Before anybody knows: it waits for the store, and is not left to its deadline.
        begun = runs.SubmitRun(submission(shards[alone.address], graph), timeout=300)
        for call in (begun, watched(watch)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert reason_of(refused.value) == "NOT_SERVING" and "cut off from the store" in str(refused.value)
        for late in (
            runs.GetRun(run_service_pb2.GetRunRequest(run_id=mine[0]), timeout=300),
            runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=300),
            runs.SubmitRun(submission(shards[alone.address], graph), timeout=300),
            runs.PauseRun(run_service_pb2.PauseRunRequest(run_id=mine[0]), timeout=300),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await late
            assert reason_of(refused.value) == "NOT_SERVING"
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=30)).status == NOT_SERVING
        assert looked(alone) == (1, "NOT_SERVING") and looked(alone, "--live") == (0, "NOT_SERVING")

        # Who knows of the other one as well goes on there.
        gate.touch()
        assert {run.state for run in await asyncio.gather(*waiting)} == {run_pb2.RUN_STATE_SUCCEEDED}
        assert (await both.submit(graph, wait=True, timeout=PATIENCE)).state == run_pb2.RUN_STATE_SUCCEEDED
        async with both.submitter() as submitter:
            answers = [await submitter.submit(graph, wait=True) for _ in range(RUNS)]
            assert {run.state for run in await asyncio.gather(*answers)} == {run_pb2.RUN_STATE_SUCCEEDED}
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=30)).status == NOT_SERVING

        network.heal()

        async def serves() -> bool:
            return bool((await health.Check(health_pb2.HealthCheckRequest(), timeout=30)).status == SERVING)

        await eventually(serves)
        await cluster.settled(2)
        for run_id in held:
            found = await runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=30)
            assert found.run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert looked(alone) == (0, "SERVING")


async def watched(watch: Any) -> None:
    """A watch to its end."""
    async for _ in watch:
        pass


def submission(owned: list[int], graph: Graph) -> run_service_pb2.SubmitRunRequest:
    """One that falls to one of these shards."""
    principal = f"spiffe://{DOMAIN}/ns/{NAMESPACE}/client/raw"
    return next(
        run_service_pb2.SubmitRunRequest(request_id=f"mine-{n}", inline=graph.to_proto())
        for n in range(10 * SHARDS)
        if zlib.crc32(request_key(principal, f"mine-{n}")) % SHARDS in owned
    )


def looked(replica: OrchestratorProcess, *arguments: str) -> tuple[int, str]:
    """The exit code of the command that probes a replica, and what it says."""
    where = ("--data", str(replica.data), "--authority", str(replica.authority))
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", "health", *where, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.rpartition(": ")[2].strip()
