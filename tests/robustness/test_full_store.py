"""A store that has no room: new runs are refused with a reason, accepted ones end, and room comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial

import pytest
from antiphon import Client, DeadlineExceeded, Graph, StoreFull, output_of
from antiphon.v1 import run_pb2
from antiphon_orchestrator.store import Delete, Put, Txn
from antiphon_orchestrator.store import StoreFull as NoSpace
from antiphon_orchestrator.store.etcd import EtcdStore

from tests.harness import Mesh, eventually
from tests.harness.etcd import Etcd, StartEtcd

LIMIT = 6 << 20
PATIENCE = timedelta(seconds=60)


@contextmanager
def shown(mesh: Mesh) -> Iterator[None]:
    try:
        yield
    finally:
        mesh.show()


def held(gate: str, after: str) -> Graph:
    graph = Graph("held")
    graph.task("t", "work.hold@1", input=gate)
    graph.task("after", "work.echo@1", input=after, needs=["t"])
    return graph


@pytest.mark.proves("store full")
async def test_a_full_store_refuses_new_runs_ends_old_ones_and_recovers() -> None:
    with Mesh("--store-max-bytes", str(LIMIT)) as mesh, shown(mesh):
        mesh.sidecar(concurrency=1000)
        async with mesh.client(timeout=PATIENCE) as client:
            await mesh.attached(client)
            gate = mesh.path("gate")
            graph = held(str(gate), "fine")
            accepted = await fill(client, graph)
            assert len(accepted) > 20
            assert (await client.get_run(accepted[0])).state == run_pb2.RUN_STATE_RUNNING
            # The same request is no new run.
            again = await client.submit(graph, "x" * 20_000, request_id="0")
            assert again.run_id == accepted[0]
            mesh.orchestrator.restart()
            with pytest.raises(StoreFull, match="bytes are in use"):
                await submit(client, graph, "one more")
            gate.touch()
            for run_id in accepted:
                assert output_of(await client.wait(run_id, timeout=timedelta(seconds=30))) == {"after": "fine"}
            await eventually(partial(accepts, client, graph, "fine"))


@pytest.mark.proves("store full")
async def test_runs_that_need_more_than_there_is_wait_and_end_when_the_limit_is_raised() -> None:
    with Mesh("--store-max-bytes", str(LIMIT)) as mesh, shown(mesh):
        mesh.sidecar(concurrency=1000)
        async with mesh.client(timeout=PATIENCE) as client:
            await mesh.attached(client)
            gate = mesh.path("gate")
            accepted = await fill(client, held(str(gate), "${input}"))
            gate.touch()
            await eventually(lambda: "store_takes_no_writes" in mesh.orchestrator.said())
            mesh.orchestrator.kill9()
            mesh.orchestrator.settings = ("--policy-profile", "dev", "--store-max-bytes", str(10 * LIMIT))
            mesh.orchestrator.start()
            for run_id in accepted:
                ended = await client.wait(run_id, timeout=timedelta(seconds=30))
                assert output_of(ended) == {"after": "x" * 20_000}
                assert (await client.get_task(run_id, "t")).attempt_count == 1


async def test_work_that_fills_the_store_to_its_last_page_makes_room_by_what_has_ended() -> None:
    with Mesh("--store-max-bytes", str(LIMIT), "--shards", "1") as mesh, shown(mesh):
        async with mesh.client(timeout=PATIENCE) as client:
            graph = Graph("large")
            graph.task("after", "work.echo@1", input="${input}")
            accepted = await fill(client, graph)
            mesh.sidecar(concurrency=10)
            for run_id in accepted:  # what they put out is more than there is room for
                ended = await client.wait(run_id, timeout=timedelta(seconds=60))
                assert output_of(ended) == {"after": "x" * 20_000}
            mesh.orchestrator.restart()
            again = await client.submit(graph, "again", wait=True, timeout=timedelta(seconds=60))
            assert output_of(again) == {"after": "again"}
            known = await client.submit(graph, "x" * 20_000, request_id="0")
            assert known.run_id == accepted[0]


async def test_at_the_quota_of_etcd_runs_end_and_room_comes_back_without_an_operator(start_etcd: StartEtcd) -> None:
    etcd = start_etcd(tls=False, quota=24 << 20)
    with Mesh("--store", etcd.url("test/full")) as mesh, shown(mesh):
        mesh.sidecar(concurrency=1000)
        async with mesh.client(timeout=PATIENCE) as client:
            await mesh.attached(client)
            gate = mesh.path("gate")
            accepted = [await submit(client, held(str(gate), "fine"), str(number)) for number in range(20)]
            await fill_with_history(etcd)
            gate.touch()
            for run_id in accepted:
                ended = await client.wait(run_id, timeout=timedelta(seconds=120))
                assert output_of(ended) == {"after": "fine"}
                assert (await client.get_task(run_id, "t")).attempt_count == 1
            await eventually(partial(accepts, client, held(str(gate), "again"), "again"))


@pytest.mark.parametrize("lived", [True, False])
async def test_an_orchestrator_that_starts_at_the_quota_of_etcd_makes_room_by_itself(
    start_etcd: StartEtcd, lived: bool
) -> None:
    """One that lived before, and one of a new mesh in a cluster that somebody else has filled."""
    etcd = start_etcd(tls=False, quota=24 << 20)
    mesh = Mesh("--store", etcd.url("test/full"))
    graph = Graph("echo")
    graph.task("t", "work.echo@1", input="fine")
    if not lived:
        await fill_with_history(etcd)
    with mesh, shown(mesh):
        if lived:
            mesh.orchestrator.kill9()
            await fill_with_history(etcd)
            mesh.orchestrator.start()
        mesh.sidecar()
        async with mesh.client() as client:
            await mesh.attached(client)
            assert output_of(await client.submit(graph, wait=True)) == {"t": "fine"}


async def test_an_orchestrator_that_starts_where_no_room_can_be_made_says_so_and_serves_once_there_is_some(
    start_etcd: StartEtcd,
) -> None:
    etcd = start_etcd(tls=False, quota=24 << 20)
    mesh = Mesh("--store", etcd.url("test/full"))
    orchestrator = mesh.orchestrator
    async with EtcdStore(etcd.address("somebody-else")) as other:
        with pytest.raises(NoSpace):
            for number in range(200):
                await other.commit(Txn(ops=(Put(b"key%d" % number, b"x" * 300_000),)))
        try:
            orchestrator.begin()
            await eventually(lambda: "store_takes_no_writes" in orchestrator.said())
            assert "has reached its quota; docs/store.md says how to make room" in orchestrator.said()
            assert orchestrator.alive and not (orchestrator.data / "endpoints.json").exists()
            await other.commit(Txn(ops=(Delete(b"key", b"kez"),)))
            await asyncio.to_thread(orchestrator.wait_ready)
        finally:
            mesh.show()
            mesh.close()


async def fill_with_history(etcd: Etcd) -> None:
    """Somebody else's former values fill the database, and etcd takes nothing more from anyone."""
    async with EtcdStore(etcd.address("somebody-else")) as other:
        with pytest.raises(NoSpace):
            for number in range(200):
                await other.commit(Txn(ops=(Put(b"key", b"%d" % number * 300_000),)))


async def submit(client: Client, graph: Graph, request_id: str) -> str:
    """A submission that is given up soon when it is refused. One that took long is sent again, and is the same run."""
    async with asyncio.timeout(60):
        while True:
            with suppress(DeadlineExceeded):
                run = await client.submit(graph, "x" * 20_000, request_id=request_id, timeout=timedelta(seconds=3))
                return run.run_id


async def accepts(client: Client, graph: Graph, answer: str) -> bool:
    """Whether there is room for a new run, which then ends well."""
    try:
        run = await client.submit(graph, "again", wait=True, timeout=timedelta(seconds=5))
    except (StoreFull, DeadlineExceeded):
        return False
    return bool(output_of(run) == {"after": answer})


async def fill(client: Client, graph: Graph) -> list[str]:
    """Submit until the store is full; which runs were accepted."""
    accepted: list[str] = []
    for number in range(1000):
        try:
            accepted.append(await submit(client, graph, str(number)))
        except StoreFull:
            return accepted
    raise AssertionError("the store was never full")
