"""What watches of shared context are told: how far nothing has changed, and nothing of what the caller may not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import SystemClock
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.context import Quota, SharedContext, Standing
from antiphon_orchestrator.context.reading import Changes
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


async def put(shared: SharedContext, key: str, label: str = "", ttl: float = 0) -> int:
    request = api.PutEntryRequest(key=key, request_id=uuid4().hex)
    request.value.inline = b"1"
    if label:
        request.value.labels.add(key=label)
    if ttl:
        request.ttl.FromNanoseconds(int(ttl * 1e9))
    return (await shared.put(ALICE, request)).revision


async def delete(shared: SharedContext, key: str) -> None:
    await shared.delete(ALICE, api.DeleteEntryRequest(key=key, request_id=uuid4().hex))


async def told(changes: Changes, count: int) -> list[tuple[str, str]]:
    """The next so many events: what happened to which key."""
    events: list[tuple[str, str]] = []
    while len(events) < count:
        for event in (await asyncio.wait_for(anext(changes), 20)).events:
            kind = event.WhichOneof("kind") or ""
            events.append((kind, getattr(event, kind).key))
    return events


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


async def test_a_watch_tells_no_names_of_what_its_caller_may_not_read(shared: SharedContext) -> None:
    changes = shared.watch(ALICE, api.WatchEntriesRequest(prefix="w/"))
    await anext(changes)
    await put(shared, "w/secret", "restricted")
    await put(shared, "w/secret", "restricted")
    await put(shared, "w/short", "restricted", ttl=0.001)
    await delete(shared, "w/secret")
    await put(shared, "w/open")
    assert await told(changes, 1) == [("put", "w/open")]
    await put(shared, "w/open", "restricted")
    await put(shared, "w/open", "restricted")
    await put(shared, "w/other")
    assert await told(changes, 2) == [("deleted", "w/open"), ("put", "w/other")], "it was told before, so it is gone"
    await delete(shared, "w/open")
    await delete(shared, "w/other")
    assert await told(changes, 1) == [("deleted", "w/other")]
    await put(shared, "w/open")
    await delete(shared, "w/open")
    assert await told(changes, 2) == [("put", "w/open"), ("deleted", "w/open")]
    await changes.aclose()


async def test_a_watch_from_a_snapshot_on_tells_what_was_deleted_of_it(shared: SharedContext) -> None:
    written = await put(shared, "w/open")
    await delete(shared, "w/open")
    changes = shared.watch(ALICE, api.WatchEntriesRequest(prefix="w/", from_revision=written + 1))
    assert await told(changes, 1) == [("deleted", "w/open")]
    await changes.aclose()


async def test_whoever_asks_again_and_again_is_told_what_a_watch_that_goes_on_is(shared: SharedContext) -> None:
    asked = api.WatchEntriesRequest(prefix="w/")

    async def changes() -> list[tuple[str, str]]:
        """What has changed since it was asked last."""
        answer = await shared.next_changes(ALICE, asked, 20)
        asked.from_revision = answer.revision + 1
        kinds = [(event.WhichOneof("kind") or "", event) for event in answer.events]
        return [(kind, getattr(event, kind).key) for kind, event in kinds]

    await put(shared, "w/secret", "restricted")
    await put(shared, "w/open")
    assert await changes() == []
    await put(shared, "w/open", "restricted")
    assert await changes() == [("deleted", "w/open")], "it might be read until then"
    await put(shared, "w/open", "restricted")
    await delete(shared, "w/secret")
    await put(shared, "w/last")
    assert await changes() == [("put", "w/last")], "of what was hidden nobody hears"
    await delete(shared, "w/open")
    await delete(shared, "w/last")
    assert await changes() == [("deleted", "w/last")]


async def test_a_watch_that_began_after_an_entry_was_hidden_says_nothing_of_its_end(shared: SharedContext) -> None:
    await put(shared, "w/secret", "restricted")
    await put(shared, "w/short", "restricted", ttl=0.001)
    changes = shared.watch(ALICE, api.WatchEntriesRequest(prefix="w/"))
    await anext(changes)
    await delete(shared, "w/secret")
    await put(shared, "w/secret")
    assert await told(changes, 1) == [("put", "w/secret")]
    await changes.aclose()
