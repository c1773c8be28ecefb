"""A full or broken disk: nothing half done, nothing lost, and a way out."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
from antiphon_orchestrator.store import (
    UP_TO_LAST,
    Compare,
    Delete,
    Put,
    SqliteStore,
    Store,
    StoreFull,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)
from backends import FailingFiles, SqliteBackend

LIMIT = 4_000_000


def append(seq: int) -> Txn:
    key = b"log/%04d" % seq
    return Txn((Compare(key, Target.VERSION, 0),), (Put(key, b"%d" % seq * 20_000), Put(b"watched", b"%d" % seq)))


async def fill(store: Store, seq: int = 0) -> int:
    """Appends until there is no space; returns the first `seq` that did not fit."""
    while True:
        try:
            await store.commit(append(seq))
        except StoreFull:
            return seq
        seq += 1


async def test_a_full_store_refuses_puts_and_keeps_what_it_has(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        count = await fill(store)
        before = await store.range(b"\0", UP_TO_LAST)
        with pytest.raises(StoreFull):
            await store.commit(append(count))
        assert await store.range(b"\0", UP_TO_LAST) == before
        assert await store.size() <= LIMIT
    async with embedded.open(max_bytes=LIMIT) as store:
        assert await store.range(b"\0", UP_TO_LAST) == before


async def test_what_is_full_is_named_the_limit_or_the_disk(
    embedded: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        count = await fill(store)
        with pytest.raises(StoreFull, match="within its limit; let runs end, or raise its limit"):
            await store.commit(append(count))
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=-1))
        with pytest.raises(StoreFull, match="the disk of the store has -1 bytes free; free some there"):
            await store.commit(append(count))


async def test_a_full_store_accepts_deletes_and_then_the_identical_put(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        count = await fill(store)
        for _ in range(3):
            fenced = Compare(b"watched", Target.VALUE, b"%d" % (count - 1))
            trim = Txn((fenced,), (Delete(b"log/", prefix_end(b"log/")),))
            assert (await store.commit(trim)).succeeded
            assert (await store.commit(append(count))).succeeded
            count = await fill(store, count + 1)


async def test_what_comes_before_a_deletion_has_room_of_its_own_that_nothing_else_takes(
    embedded: SqliteBackend,
) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        for round in range(3):
            count = await fill(store, 1000 * round)
            spare = Txn(ops=(Put(b"requests/%d" % round, b"x" * 300_000),), spare=True)
            assert (await store.commit(spare)).succeeded
            with pytest.raises(StoreFull):
                await store.commit(append(count))
            assert (
                await store.commit(Txn(ops=(Delete(b"requests/%d" % round), Put(b"head", b"")), spare=True))
            ).succeeded
            # The file has grown by what was put beyond the limit, and what is freed there again is still no room.
            with pytest.raises(StoreFull):
                await store.commit(append(count))
            assert (await store.commit(Txn(ops=(Delete(b"log/", prefix_end(b"log/")),)))).succeeded
            assert await store.size() < LIMIT
    async with embedded.open(max_bytes=LIMIT) as store:
        await fill(store, 9000)
        assert await store.size() <= LIMIT
        assert (await store.commit(spare)).succeeded


async def test_the_room_for_what_comes_before_deletions_ends_too_and_deletions_still_go_through(
    embedded: SqliteBackend,
) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        await fill(store)
        with pytest.raises(StoreFull):
            for number in range(100):
                await store.commit(Txn(ops=(Put(b"requests/%d" % number, b"x" * 300_000),), spare=True))
        assert (await store.commit(Txn(ops=(Delete(b"log/", prefix_end(b"log/")),)))).succeeded


async def test_deletes_that_free_no_page_still_have_room_for_their_history(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        keys: list[bytes] = []
        while True:
            some = [b"context/%06d/" % (len(keys) + i) + b"k" * 100 for i in range(100)]
            try:
                await store.commit(Txn(ops=tuple(Put(key, b"") for key in some)))
            except StoreFull:
                break
            keys += some
        scattered = keys[::20]
        for start in range(0, len(scattered), 100):
            await store.commit(Txn(ops=tuple(Delete(key) for key in scattered[start : start + 100])))
        left = await store.range(b"context/", prefix_end(b"context/"))
        assert {kv.key for kv in left.kvs} == set(keys) - set(scattered)


async def test_deletes_go_through_in_a_group_with_puts_that_do_not_fit(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        count = await fill(store)
        big = Txn(ops=(Put(b"log/big", b"x" * 1_000_000),))
        small = Txn(ops=(Delete(b"log/0001"),))
        results = await asyncio.gather(
            *(store.commit(txn) for txn in (big, small, big)), store.commit(append(count)), return_exceptions=True
        )
        assert isinstance(results[0], StoreFull) and isinstance(results[2], StoreFull)
        assert not isinstance(results[1], BaseException)
        assert not (await store.range(b"log/0001")).kvs


async def test_a_lease_ends_on_a_full_store(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        lease = await store.grant(10)
        await store.commit(Txn(ops=(Put(b"alive/1", b"", lease),)))
        await fill(store)
        embedded.clock.seconds += 10
        assert not (await store.range(b"alive/1")).kvs


async def test_a_full_disk_rolls_back_and_the_identical_transaction_works_later(tmp_path: Path) -> None:
    files = FailingFiles()
    async with SqliteStore(tmp_path / "store.db", open_file=files) as store:
        before = (await store.commit(append(0))).revision
        files.file.faults = [sqlite3.SQLITE_FULL]
        first = await store.commit(append(1))  # the group failed, then its transaction succeeded alone
        assert first.succeeded and first.revision == before + 1
        files.file.faults = [sqlite3.SQLITE_FULL]
        with pytest.raises(StoreFull):
            await store.compact(first.revision)
        files.file.faults = [sqlite3.SQLITE_FULL] * 2
        with pytest.raises(StoreFull):
            await store.commit(append(2))
        assert not (await store.range(b"log/0002")).kvs
        assert (await store.range(b"watched")).kvs[0].value == b"1"
        assert (await store.commit(append(2))).revision == before + 2
        assert [event.kv.value for event in (await anext(store.watch(b"watched", before))).events] == [b"0", b"1", b"2"]


async def test_an_input_output_error_stops_the_store_until_it_is_opened_again(tmp_path: Path) -> None:
    files = FailingFiles()
    store = SqliteStore(tmp_path / "store.db", open_file=files)
    async with store:
        running = asyncio.ensure_future(store.run())
        await store.commit(append(0))
        files.file.faults = [sqlite3.SQLITE_IOERR]
        outcomes = await asyncio.gather(*(store.commit(append(seq)) for seq in (1, 2)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        with pytest.raises(StoreUnavailable, match="must be opened again"):
            await store.range(b"watched")
        with pytest.raises(StoreUnavailable):
            await running
    async with SqliteStore(tmp_path / "store.db") as store:
        assert (await store.commit(append(1))).succeeded


async def test_what_is_deleted_makes_room_although_history_keeps_it_for_a_while(embedded: SqliteBackend) -> None:
    async with embedded.open(max_bytes=LIMIT) as store:
        for name in (b"a/%d", b"b/%d", b"c/%d"):
            keys = [name % number for number in range(20)]
            for key in keys:
                await store.commit(Txn(ops=(Put(key, b"x" * 120_000),)))
            for key in keys:
                assert (await store.commit(Txn(ops=(Delete(key),)))).succeeded
