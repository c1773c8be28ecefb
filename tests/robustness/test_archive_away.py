"""PostgreSQL stands still, dies and restarts under load: runs go on, the archive catches up, nothing is lost or twice.

What is in the archive is read past the orchestrator, and compared with what clients saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

import pytest
from antiphon import Client, Graph, ref
from antiphon.store.v1 import journal_pb2
from antiphon.v1 import run_pb2
from antiphon_orchestrator.archive import Archive, ArchivedRun, RunFilter, archive_at

from tests.conftest import RequireTool
from tests.harness import Mesh, eventually
from tests.harness.postgres import PASSWORD, Postgres

LOAD = 4
ENOUGH = 20
"""Runs that must end while the archive is away, so that it is known to hold up none."""


@pytest.fixture
def server(require_tool: RequireTool) -> Iterator[Postgres]:
    require_tool("initdb", package="postgresql")
    with Postgres() as made:
        yield made


def chain() -> Graph:
    graph = Graph("chain", output=ref("tasks.b.output"))
    graph.task("a", "work.echo@1", input=ref("input"))
    graph.task("b", "work.echo@1", input=ref("tasks.a.output"))
    return graph


async def load(client: Client, ended: list[run_pb2.Run], stop: asyncio.Event) -> None:
    while not stop.is_set():
        ended.append(await client.submit(chain(), len(ended), wait=True, timeout=timedelta(seconds=60)))


def stand_still(server: Postgres) -> Callable[[], None]:
    server.pause()
    return server.resume


def die(server: Postgres) -> Callable[[], None]:
    server.kill9()
    return server.start


def restart(server: Postgres) -> Callable[[], None]:
    server.stop()
    return server.start


@pytest.mark.proves("archive down")
@pytest.mark.parametrize(
    ("fault", "crash"),
    [
        pytest.param(fault, crash, marks=[pytest.mark.long_form] if (fault is die) != crash else [])
        for fault in (stand_still, die, restart)
        for crash in (False, True)
    ],
)
async def test_runs_go_on_without_the_archive_which_catches_up(
    server: Postgres, fault: Callable[[Postgres], Callable[[], None]], crash: bool
) -> None:
    url = server.database()
    with Mesh("--archive", url) as mesh:
        try:
            mesh.sidecar(concurrency=8)
            ended: list[run_pb2.Run] = []
            stop = asyncio.Event()
            async with mesh.client(timeout=timedelta(seconds=30)) as client:
                await mesh.attached(client)
                async with asyncio.TaskGroup() as group:
                    for _ in range(LOAD):
                        group.create_task(load(client, ended, stop))
                    await eventually(lambda: len(ended) >= ENOUGH)
                    undo = await asyncio.to_thread(fault, server)
                    try:
                        so_far = len(ended)
                        await eventually(lambda: len(ended) >= so_far + ENOUGH, limit=40)
                        await eventually(lambda: "archive_unavailable" in mesh.orchestrator.said(), limit=60)
                        if crash:
                            await asyncio.to_thread(mesh.orchestrator.restart)
                            so_far = len(ended)
                            await eventually(lambda: len(ended) >= so_far + ENOUGH, limit=40)
                    finally:
                        await asyncio.to_thread(undo)
                    so_far = len(ended)
                    await eventually(lambda: len(ended) >= so_far + ENOUGH, limit=40)
                    stop.set()
            await archived(url, ended)
            assert PASSWORD not in mesh.orchestrator.said()
        finally:
            mesh.show()


async def archived(url: str, ended: list[run_pb2.Run]) -> None:
    """Returns once the archive has every run, with every event once and in order; fails if it never does."""
    async with archive_at(url) as archive:

        async def all_there() -> bool:
            found = [one async for one in every_run(archive)]
            return {one.run_id for one in found if one.end_time} >= {run.run_id for run in ended}

        await eventually(all_there, limit=60)
        found = [one async for one in every_run(archive)]
        assert len({one.run_id for one in found}) == len(found)
        for run in found:
            numbers = []
            for chunk in await archive.events(run.run_id):
                records = journal_pb2.LogSegment.FromString(chunk.data).records
                assert len(records) == chunk.last_seq - chunk.first_seq + 1
                numbers += range(chunk.first_seq, chunk.last_seq + 1)
            assert numbers == list(range(1, run.last_event_seq + 1)), run


async def every_run(archive: Archive) -> AsyncIterator[ArchivedRun]:
    token = ""
    while True:
        page, token = await archive.list_runs(RunFilter("team-a"), 500, token)
        for one in page:
            yield one
        if not token:
            return
