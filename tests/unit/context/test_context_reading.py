"""What watches of shared context are told: how far nothing has changed, and nothing of what the caller may not read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import SystemClock
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.context import Quota, SharedContext, Standing
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.store import SqliteStore, sqlite

ALICE = Standing("spiffe://mesh.test/ns/demo/client/alice", "client", "demo")


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[SharedContext]:
    """Over a store whose history is ten revisions long."""
    async with (
        SqliteStore(tmp_path / "store.db", history_revisions=10) as store,
        ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs,
    ):
        policy = CedarPolicies(dev_profile())
        context = SharedContext(store, policy, AuditLog(store, "a", lambda: 0), blobs, Quota(), SystemClock())
        await context.load()
        yield context


async def put(shared: SharedContext, key: str) -> int:
    request = api.PutEntryRequest(key=key, request_id=f"{key} put")
    request.value.inline = b"1"
    return (await shared.put(ALICE, request)).revision


async def test_whoever_asks_again_and_again_what_has_changed_is_not_overtaken_by_compaction(
    shared: SharedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PROGRESS", 0.01)
    asked = api.WatchEntriesRequest(prefix="quiet/")
    asked.from_revision = (await shared.next_changes(ALICE, asked, 0)).revision + 1
    for n in range(10):
        for k in range(5):
            await put(shared, f"busy/{n}/{k}")
        answer = await shared.next_changes(ALICE, asked, 0.1)
        assert not answer.events
        asked.from_revision = answer.revision + 1
    written = await put(shared, "quiet/1")
    answer = await shared.next_changes(ALICE, asked, 20)
    assert [event.put.key for event in answer.events] == ["quiet/1"] and answer.revision == written
