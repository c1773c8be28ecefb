"""A whole mesh on a cluster of three members by TLS, while its members and the orchestrator fail."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from datetime import timedelta

import pytest
from antiphon import Client, Graph, Retry, output_of, ref

from tests.harness import Mesh, eventually, journal_of
from tests.harness.etcd import Etcd, StartEtcd

PATIENCE = timedelta(seconds=60)
RULE = Retry(["LOST", "TRANSIENT"], max_attempts=20, backoff=timedelta(milliseconds=20))


def on(etcd: Etcd) -> Mesh:
    files = etcd.tls
    assert files is not None and files.certificate is not None and files.private_key is not None
    tls = ("--store-ca", files.ca, "--store-cert", files.certificate, "--store-key", files.private_key)
    return Mesh("--store", etcd.url("test/mesh"), *map(str, tls))


@pytest.fixture
def etcd(start_etcd: StartEtcd) -> Etcd:
    return start_etcd(nodes=3)


@pytest.fixture
def mesh(etcd: Etcd) -> Iterator[Mesh]:
    with on(etcd) as mesh:
        mesh.sidecar()
        yield mesh
        mesh.show()


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


async def all_ended_once(mesh: Mesh, client: Client, run_ids: list[str]) -> None:
    for n, run_id in enumerate(run_ids):
        run = await client.wait(run_id, timeout=PATIENCE)
        assert output_of(run) == 8 * n
        assert run.totals.succeeded == run.totals.total == 3
    done = {entry.idempotency_key for entry in journal_of(mesh.journal) if entry.event == "done"}
    assert len(done) == 3 * len(run_ids)


@pytest.mark.proves("leader of the store lost or stalled")
async def test_runs_go_on_while_the_leader_stalls_and_another_is_elected(etcd: Etcd, mesh: Mesh) -> None:
    async with mesh.client() as client:
        await mesh.attached(client)
        run_ids = await submitted(client, 0, 10)
        leader = etcd.leader()
        etcd.stop(leader)
        try:
            run_ids += await submitted(client, 10, 10)
            await all_ended_once(mesh, client, run_ids)
        finally:
            etcd.cont(leader)
        run_ids += await submitted(client, 20, 5)
        await all_ended_once(mesh, client, run_ids)


@pytest.mark.proves("leader of the store lost or stalled")
async def test_runs_survive_the_death_of_the_orchestrator_and_of_a_member_together(etcd: Etcd, mesh: Mesh) -> None:
    async with mesh.client() as client:
        await mesh.attached(client)
        run_ids = await submitted(client, 0, 20)
        etcd.kill(0)  # the first endpoint, which the next life tries first
        mesh.orchestrator.restart()
        await all_ended_once(mesh, client, run_ids)


@pytest.mark.proves("quorum of the store lost")
async def test_without_a_quorum_nothing_changes_and_all_goes_on_when_it_is_back(etcd: Etcd, mesh: Mesh) -> None:
    async with mesh.client() as client:
        await mesh.attached(client)
        run_ids = await submitted(client, 0, 5)
        etcd.kill(1)
        etcd.kill(2)
        waiting = asyncio.ensure_future(submitted(client, 5, 5))
        assert not (await asyncio.wait({waiting}, timeout=1))[0]
        etcd.restart(1, wait=False)
        etcd.restart(2)
        run_ids += await waiting
        await all_ended_once(mesh, client, run_ids)


async def test_a_call_that_is_under_way_when_the_orchestrator_ends_gets_its_record_and_its_answer(
    start_etcd: StartEtcd,
) -> None:
    etcd = start_etcd()
    mesh = on(etcd)
    mesh.orchestrator.environment["ANTIPHON_ORCHESTRATOR_API_SHUTDOWN_GRACE"] = "20s"
    graph = Graph("kept", version="1")
    graph.task("a", "work.double@1", input=1)
    with mesh:
        async with mesh.client() as client:
            await client.validate_graph(graph)
            etcd.stop(0)
            try:
                call = asyncio.create_task(client.register_graph(graph))
                await client.validate_graph(graph)  # so that the call is there, too
                mesh.orchestrator.send(signal.SIGTERM)
                await eventually(lambda: refuses(mesh.orchestrator.address))
            finally:
                etcd.cont(0)
            assert (await asyncio.wait_for(call, 15)).graph.graph.version == "1"


def refuses(address: str) -> bool:
    """Whether nobody listens there any more."""
    host, _, port = address.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) != 0
