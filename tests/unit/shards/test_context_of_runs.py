"""Entries in the scope of a run: its shard says whether it has ended, or the archive once it is there alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from antiphon.v1 import context_service_pb2 as api
from antiphon_orchestrator.admission import Values
from antiphon_orchestrator.archive import ArchivedRun
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.context import Quota, SharedContext, Standing
from antiphon_orchestrator.mesh.context import ContextDesk
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.runs.archived import ArchivedRuns
from antiphon_orchestrator.runs.catalog import Catalog
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.host import Host
from antiphon_orchestrator.store import SqliteStore
from shard_rig import POLICY, Rig
from test_host import PLAN, FullStore, host_of, owned

from tests.harness import eventually

ALICE = Standing("spiffe://antiphon.internal/ns/demo/client/alice", "client", "demo")
GOING, ENDED, ARCHIVED, UNKNOWN = (f"r0000{n}" for n in range(4))


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        raise AssertionError("nothing waits here")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


async def begin(host: Host, rig: Rig) -> None:
    told: list[object] = []
    for run_id in (GOING, ENDED):
        host.submit(0, rig.submit(run_id, PLAN, told.append))
    await eventually(lambda: len(told) == 2)
    host.put(0, i.Cancel(ENDED, ALICE.principal, "enough", told.append))
    await eventually(lambda: len(told) == 3)


async def test_entries_outlive_their_run_by_an_hour_wherever_it_is(store: SqliteStore, tmp_path: Path) -> None:
    clock = Clock()
    archived = ArchivedRun(
        ARCHIVED, "demo", "g", "", "SUCCEEDED", "me", b"", b"", clock.time, 9, clock.time + timedelta(minutes=30)
    )
    host, rig = host_of(cast(FullStore, store))
    async with (
        SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as archive,
        ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs,
        owned(host),
    ):
        await archive.write([archived], [])
        audit = AuditLog(store, "a", lambda: 0)
        shared = SharedContext(store, POLICY, audit, blobs, Quota(), cast(Any, clock))
        await shared.load()
        catalog = Catalog(store, Values())
        ContextDesk(shared, await AttemptTokens.load(store), ArchivedRuns(archive, catalog)).bind(host)
        await begin(host, rig)
        for run_id in (GOING, ENDED, ARCHIVED, UNKNOWN):
            request = api.PutEntryRequest(key="notes", request_id=run_id)
            request.scope.run_id = run_id
            request.value.inline = b"1"
            await shared.put(ALICE, request)

        async def left() -> list[str]:
            await shared.collect_runs()
            there = []
            for run_id in (GOING, ENDED, ARCHIVED, UNKNOWN):
                request = api.ListEntriesRequest()
                request.scope.run_id = run_id
                there += [run_id for _ in (await shared.list(ALICE, request)).entries]
            return there

        clock.time += timedelta(minutes=59)
        assert await left() == [GOING, ENDED, ARCHIVED, UNKNOWN]
        clock.time += timedelta(minutes=2)
        assert await left() == [GOING, ARCHIVED]
        clock.time += timedelta(minutes=28)
        assert await left() == [GOING, ARCHIVED]
        clock.time += timedelta(minutes=2)
        assert await left() == [GOING]
