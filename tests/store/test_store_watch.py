"""Watching: nothing lost, nothing repeated, bounded history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from antiphon.etcd.v3 import kv_pb2
from antiphon_orchestrator.store import (
    Compacted,
    Delete,
    EventType,
    KeyValue,
    Put,
    Store,
    StoreUnavailable,
    Txn,
    UnwatchedPrefix,
    WatchBatch,
    WatchEvent,
    prefix_end,
    sqlite,
)
from antiphon_orchestrator.store.etcd import watching
from antiphon_orchestrator.store.etcd.codec import Keyspace
from antiphon_orchestrator.store.etcd.health import orders_progress
from backends import Backend, EtcdBackend, SqliteBackend


async def take(watch: AsyncIterator[WatchBatch], count: int) -> list[WatchEvent]:
    """The next `count` events or a few more, never half a batch."""
    events: list[WatchEvent] = []
    while len(events) < count:
        batch = await asyncio.wait_for(anext(watch), 10)
        assert not batch.events or batch.revision == batch.events[-1].kv.mod_revision
        events += batch.events
    return events


async def put(store: Store, *keys: bytes, value: bytes = b"v") -> int:
    return (await store.commit(Txn(ops=tuple(Put(key, value) for key in keys)))).revision


async def test_a_watch_shows_what_changes_under_its_prefix_from_the_moment_it_is_asked_for(backend: Backend) -> None:
    async with backend.open() as store:
        await put(store, b"a/0")
        watch = store.watch(b"a/")
        created = await put(store, b"a/1", b"b/1")
        changed = await put(store, b"a/1")
        deleted = (await store.commit(Txn(ops=(Delete(b"a/1"), Delete(b"a/9"))))).revision
        assert await take(watch, 3) == [
            WatchEvent(EventType.PUT, KeyValue(b"a/1", b"v", created, created, 1)),
            WatchEvent(EventType.PUT, KeyValue(b"a/1", b"v", created, changed, 2)),
            WatchEvent(EventType.DELETE, KeyValue(b"a/1", b"", 0, deleted, 0)),
        ]


async def test_a_watch_that_asks_for_it_shows_what_was_there_before_each_change(backend: Backend) -> None:
    large, larger = b"x" * 600, b"y" * 70_000
    async with backend.open() as store:
        lease = await store.grant(600)
        for value in (b"", b"small", large, larger, b"last"):
            await put(store, b"a/1", value=value)
        await store.commit(Txn(ops=(Delete(b"a/1"),)))
        await put(store, b"a/1", b"a/2", b"a/3", value=large)
        await store.commit(Txn(ops=(Delete(b"a/1", b"a/3"),)))
        await store.commit(Txn(ops=(Put(b"a/3", b"leased", lease),)))
        await store.revoke(lease)
        together = [Txn(ops=(Put(b"a/4", large),)), Txn(ops=(Put(b"a/4", b"v"),)), Txn(ops=(Delete(b"a/4"),))]
        await asyncio.gather(*map(store.commit, together))
        changes = await take(store.watch(b"a/", backend.first, before=True), 15)
        assert [event.before for event in changes[:12]] == [
            *(None, b"", b"small", large, larger, b"last"),
            *(None, None, None, large, large, large),
        ]
        assert [event.before for event in changes[12:13]] == [b"leased"]
        last = None
        for event in changes[13:]:
            assert event.before == last
            last = event.kv.value if event.type is EventType.PUT else None
        assert {event.before for event in await take(store.watch(b"a/", backend.first), 15)} == {None}


def test_what_etcd_has_forgotten_meanwhile_of_what_was_there_before_is_compacted_history() -> None:
    nothing: Any = None
    watch = watching.Watch(nothing, Keyspace(b"p/"), b"a/", 1, True)
    created = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"p/a/1", mod_revision=7, version=1))
    assert watch._event(created).before is None
    for event in (
        kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"p/a/1", mod_revision=7, version=2)),
        kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"p/a/1", mod_revision=7)),
    ):
        with pytest.raises(Compacted) as refused:
            watch._event(event)
        assert refused.value.revision == 8


async def test_a_waiting_watch_is_woken_by_a_change(backend: Backend) -> None:
    async with backend.open() as store:
        watch = store.watch(b"a/")
        waiting = asyncio.ensure_future(take(watch, 1))
        for i in range(5):
            await put(store, b"b/%d" % i)
        assert not waiting.done()
        await put(store, b"a/1")
        assert [event.kv.key for event in await waiting] == [b"a/1"]


async def test_a_watch_resumes_over_reopening_with_no_loss_and_no_repeat(backend: Backend) -> None:
    revisions: list[int] = []
    seen: list[int] = []
    resume = backend.first
    for round_number in range(4):
        async with backend.open() as store:
            revisions += [await put(store, b"a/%d" % i) for i in range(3)]
            watch = store.watch(b"a/", resume)
            more = asyncio.gather(*(put(store, b"a/%d" % (round_number * 10 + i)) for i in range(20)))
            batch = await anext(watch)  # stops somewhere in the middle
            seen += [event.kv.mod_revision for event in batch.events]
            resume = batch.revision + 1
            revisions += await more
    async with backend.open() as store:
        rest = await take(store.watch(b"a/", resume), 1) if len(seen) < len(revisions) else []
        assert seen + [event.kv.mod_revision for event in rest] == sorted(revisions)


async def test_a_revision_is_never_split_over_batches(backend: Backend) -> None:
    async with backend.open() as store:
        for i in range(30):
            await put(store, *(b"a/%d/%d" % (i, j) for j in range(120)), value=b"v" * 3000)
        deleted = (await store.commit(Txn(ops=(Delete(b"a/", prefix_end(b"a/")),)))).revision
        watch = store.watch(b"a/", backend.first)
        batches: list[WatchBatch] = []
        while not batches or batches[-1].revision < deleted:
            batches.append(await anext(watch))
        assert len(batches) > 2
        assert sum(len(batch.events) for batch in batches) == 2 * 30 * 120
        ends = [{event.kv.mod_revision for event in batch.events} for batch in batches]
        assert all(not first & second for first, second in pairwise(ends))
        assert len([event for event in batches[-1].events if event.kv.mod_revision == deleted]) == 30 * 120


async def test_a_watch_from_a_future_revision_waits_for_it(backend: Backend) -> None:
    async with backend.open() as store:
        now = await put(store, b"a/0")
        watch = store.watch(b"a/", now + 3)
        waiting = asyncio.ensure_future(take(watch, 1))
        for i in range(1, 4):
            await put(store, b"a/%d" % i)
        assert [event.kv.key for event in await waiting] == [b"a/3"]


async def test_compacted_history_is_refused_with_the_revision_to_go_on_from(backend: Backend) -> None:
    async with backend.open() as store:
        revisions = [await put(store, b"a/%d" % i) for i in range(5)]
        await store.compact(revisions[3])
        await store.compact(revisions[1])  # already done
        with pytest.raises(Compacted) as refused:
            await anext(store.watch(b"a/", revisions[2]))
        assert refused.value.revision == revisions[3]
        assert len(await take(store.watch(b"a/", revisions[3]), 2)) == 2
        with pytest.raises(ValueError):
            await store.compact(revisions[4] + 1)
    async with backend.open() as store:
        with pytest.raises(Compacted):
            await anext(store.watch(b"a/", revisions[2]))


async def test_history_keeps_the_last_revisions_and_not_much_more(embedded: SqliteBackend) -> None:
    async with embedded.open(history_revisions=100) as store:
        revisions = [await put(store, b"a/1") for _ in range(400)]
        assert len(await take(store.watch(b"a/", revisions[-100]), 100)) == 100
        with pytest.raises(Compacted) as refused:
            await anext(store.watch(b"a/", 1))
        assert revisions[-100] >= refused.value.revision > revisions[-120]


async def test_history_is_bounded_in_bytes(embedded: SqliteBackend) -> None:
    async with embedded.open(history_bytes=1_000_000) as store:
        first = await put(store, b"a/1")
        for _ in range(40):
            await put(store, b"a/1", value=b"x" * 100_000)
        with pytest.raises(Compacted):
            await anext(store.watch(b"a/", first))
        assert await store.size() < 3_000_000


async def test_journal_writes_do_not_use_history_up(embedded: SqliteBackend) -> None:
    async with embedded.open(history_revisions=10) as store:
        first = await put(store, b"a/1")
        for i in range(100):
            await put(store, b"log/%d" % i)
        await put(store, b"a/1")
        assert len(await take(store.watch(b"a/", first), 2)) == 2


async def test_compaction_does_not_overtake_a_watch_that_missed_nothing(embedded: SqliteBackend) -> None:
    async with embedded.open(history_revisions=10) as store:
        watch = store.watch(b"quiet/")
        waiting = asyncio.ensure_future(take(watch, 1))
        for _ in range(100):
            await put(store, b"busy/1")
        await put(store, b"quiet/1")
        assert [event.kv.key for event in await waiting] == [b"quiet/1"]


@pytest.mark.parametrize("kind", ["sqlite", "etcd_current"])
async def test_a_quiet_watch_tells_how_far_it_has_come_so_that_it_can_be_resumed_there(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite, watching):
        monkeypatch.setattr(module, "PROGRESS", 0.05)
    backend: Backend = (
        request.getfixturevalue("embedded") if kind == "sqlite" else EtcdBackend(request.getfixturevalue(kind))
    )
    async with backend.open() as store:
        first = await put(store, b"busy/0")
        for begin in (0, 1):
            watch = store.watch(b"quiet/", begin and first)
            busy = 0
            for n in range(3):
                busy = await put(store, b"busy/%d" % n)
                revision = 0
                while revision < busy:
                    batch = await asyncio.wait_for(anext(watch), 10)
                    assert batch.events == () and batch.revision > revision
                    revision = batch.revision
            await store.compact(busy)
            written = await put(store, b"quiet/1")
            assert [event.kv.mod_revision for event in await take(store.watch(b"quiet/", revision + 1), 1)] == [written]
            assert [event.kv.mod_revision for event in await take(watch, 1)] == [written]
            await watch.aclose()
            with pytest.raises(Compacted):
                await anext(store.watch(b"quiet/", first))
            first = written + 1


@pytest.mark.parametrize(
    ("version", "ordered"),
    [
        ("3.4.24", False),
        ("3.4.25", True),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("4.0.0", True),
        ("", False),
    ],
)
def test_progress_is_asked_of_releases_alone_that_tell_it_in_its_place(version: str, ordered: bool) -> None:
    assert orders_progress(version) is ordered


@pytest.mark.parametrize("prefix", [b"log/", b"log/0001/", b"lo", b""])
async def test_what_has_no_history_cannot_be_watched(backend: Backend, prefix: bytes) -> None:
    async with backend.open() as store:
        with pytest.raises(UnwatchedPrefix):
            store.watch(prefix)


async def test_without_unwatched_prefixes_everything_can_be_watched(backend: Backend) -> None:
    async with backend.open(unwatched=()) as store:
        watch = store.watch(b"")
        await put(store, b"log/1", b"\xff\xff")
        assert {event.kv.key for event in await take(watch, 2)} == {b"log/1", b"\xff\xff"}


async def test_closing_the_store_ends_its_watches(backend: Backend) -> None:
    async with backend.open() as store:
        waiting = asyncio.ensure_future(anext(store.watch(b"a/")))
        await put(store, b"b/1")
    with pytest.raises(StoreUnavailable):
        await waiting
