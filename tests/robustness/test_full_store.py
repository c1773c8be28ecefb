"""A store that has no room: new runs are refused with a reason, accepted ones end, and room comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from antiphon import Client, Graph, StoreFull, output_of
from antiphon.v1 import run_pb2

from tests.harness import Mesh, eventually

LIMIT = 6 << 20


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
        async with mesh.client(timeout=timedelta(seconds=5)) as client:
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
            with pytest.raises(StoreFull):
                await submit(client, graph, "one more")
            gate.touch()
            for run_id in accepted:
                assert output_of(await client.wait(run_id, timeout=timedelta(seconds=30))) == {"after": "fine"}

            async def accepts() -> bool:
                try:
                    run = await client.submit(graph, "again", wait=True)
                except StoreFull:
                    return False
                return bool(output_of(run) == {"after": "fine"})

            await eventually(accepts)


@pytest.mark.proves("store full")
async def test_runs_that_need_more_than_there_is_wait_and_end_when_the_limit_is_raised() -> None:
    with Mesh("--store-max-bytes", str(LIMIT)) as mesh, shown(mesh):
        mesh.sidecar(concurrency=1000)
        async with mesh.client(timeout=timedelta(seconds=5)) as client:
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


async def submit(client: Client, graph: Graph, request_id: str) -> str:
    """A submission that is given up soon when it is refused."""
    run = await client.submit(graph, "x" * 20_000, request_id=request_id, timeout=timedelta(seconds=3))
    return run.run_id


async def fill(client: Client, graph: Graph) -> list[str]:
    """Submit until the store is full; which runs were accepted."""
    accepted: list[str] = []
    for number in range(1000):
        try:
            accepted.append(await submit(client, graph, str(number)))
        except StoreFull:
            return accepted
    raise AssertionError("the store was never full")
