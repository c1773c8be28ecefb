"""A commit of the embedded store is answered when it is durable and not before, and nothing is seen of it until then.

The disk is one that the test tells when it is done; the kernel's own way is tried on real files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import pytest
import structlog
from antiphon_orchestrator.store import Compare, Put, SqliteStore, StoreUnavailable, Target, Txn
from antiphon_orchestrator.store.datasync import DataSync, Done
from antiphon_orchestrator.store.file import connect
from backends import ManualClock
from structlog.testing import LogCapture

from tests.harness import eventually


class Disk:
    """A disk that is done when the test says so. Use it as the `sync` of a store, too."""

    def __init__(self) -> None:
        self.begun = 0
        self.closed = False
        self.refuses: OSError | None = None
        self._done: Done | None = None

    def __call__(self, log: Path) -> Disk:
        self.log = log
        return self

    def begin(self, done: Done) -> None:
        assert self._done is None
        if self.refuses is not None:
            raise self.refuses
        self.begun += 1
        self.written = self.log.read_bytes()
        self._done = done

    def end(self, failure: OSError | None = None) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(failure)

    def close(self) -> None:
        self.closed = True


def put(key: bytes, value: bytes = b"") -> Txn:
    return Txn(ops=(Put(key, value),))


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def settled() -> None:
    """Lets everything run that does not wait for the disk."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_not_durable_is_neither_answered_nor_seen(tmp_path: Path) -> None:
    disk = Disk()
    async with SqliteStore(tmp_path / "store.db", sync=disk) as store:
        watch = store.watch(b"k")
        committed = asyncio.ensure_future(store.commit(put(b"k", b"the value")))
        seen = asyncio.ensure_future(anext(watch))
        await settled()
        read = asyncio.ensure_future(store.range(b"k"))
        await settled()
        assert disk.begun == 1 and b"the value" in disk.written
        assert not (committed.done() or read.done() or seen.done())
        disk.end()
        assert (await committed).succeeded
        assert [kv.value for kv in (await read).kvs] == [b"the value"]
        assert [event.kv.value for event in (await seen).events] == [b"the value"]


async def test_what_comes_while_one_is_made_durable_shares_the_next(tmp_path: Path) -> None:
    disk = Disk()
    async with SqliteStore(tmp_path / "store.db", sync=disk) as store:
        first = asyncio.ensure_future(store.commit(put(b"first")))
        await settled()
        others = [asyncio.ensure_future(store.commit(put(b"k%d" % number))) for number in range(5)]
        await settled()
        assert disk.begun == 1
        disk.end()
        await first
        await settled()
        assert disk.begun == 2 and not any(other.done() for other in others)
        disk.end()
        assert [(await other).revision for other in others] == [3, 4, 5, 6, 7]


async def test_what_writes_nothing_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    async with SqliteStore(tmp_path / "store.db", sync=disk) as store:
        there = Txn((Compare(b"k", Target.VERSION, 1),), (Put(b"k", b""),))
        assert not (await store.commit(there)).succeeded
        assert not (await store.range(b"k")).kvs
        assert disk.begun == 0


async def test_the_end_of_a_lease_is_made_durable_before_it_is_seen(tmp_path: Path) -> None:
    disk, clock = Disk(), ManualClock()
    async with SqliteStore(tmp_path / "store.db", sync=disk, clock=clock) as store:
        lease = await store.grant(10)
        committed = asyncio.ensure_future(store.commit(Txn(ops=(Put(b"alive", b"", lease),))))
        await settled()
        disk.end()
        await committed
        clock.seconds += 10
        read = asyncio.ensure_future(store.range(b"alive"))
        await settled()
        assert disk.begun == 2 and not read.done()
        disk.end()
        assert not (await read).kvs


@pytest.mark.parametrize("when", ["it begins", "it ends"])
async def test_when_the_disk_fails_what_was_written_is_unclear_and_the_store_stops(tmp_path: Path, when: str) -> None:
    disk = Disk()
    failure = OSError(errno.EIO, "the disk failed")
    async with SqliteStore(tmp_path / "store.db", sync=disk) as store:
        running = asyncio.ensure_future(store.run())
        disk.refuses = failure if when == "it begins" else None
        committed = asyncio.ensure_future(store.commit(put(b"k")))
        await settled()
        waiting = None
        if when == "it ends":
            waiting = asyncio.ensure_future(store.range(b"k"))
            await settled()
            disk.end(failure)
        for unanswered in (committed, running, *([waiting] if waiting else [])):
            with pytest.raises(StoreUnavailable, match="the disk failed"):
                await unanswered
        with pytest.raises(StoreUnavailable, match="must be opened again"):
            await store.range(b"k")
    assert disk.closed


async def test_closing_waits_for_the_disk_and_for_what_had_come_before(tmp_path: Path) -> None:
    disk = Disk()
    store = SqliteStore(tmp_path / "store.db", sync=disk)
    await store.open()
    first = asyncio.ensure_future(store.commit(put(b"first")))
    await settled()
    second = asyncio.ensure_future(store.commit(put(b"second")))
    await settled()
    closing = asyncio.ensure_future(store.close())
    await settled()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.range(b"first")
    assert not closing.done()
    disk.end()
    await eventually(lambda: disk.begun == 2)
    disk.end()
    await closing
    assert ((await first).revision, (await second).revision) == (2, 3)


async def test_who_gives_up_closing_leaves_nobody_waiting(tmp_path: Path) -> None:
    disk = Disk()
    store = SqliteStore(tmp_path / "store.db", sync=disk)
    await store.open()
    committed = asyncio.ensure_future(store.commit(put(b"k")))
    await settled()
    closing = asyncio.ensure_future(store.close())
    await settled()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(StoreUnavailable):
        await committed
    assert disk.closed


def modes(connection: sqlite3.Connection) -> int:
    (mode,) = connection.execute("PRAGMA synchronous").fetchone()
    return int(mode)


@pytest.mark.parametrize("able", [True, False])
async def test_where_the_kernel_does_not_do_it_sqlite_waits_for_the_disk(
    tmp_path: Path, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = LogCapture()
    monkeypatch.setattr("antiphon_orchestrator.store.sqlite.log", structlog.wrap_logger(None, processors=[said]))
    files: list[sqlite3.Connection] = []

    def open_file(path: Path) -> sqlite3.Connection:
        files.append(connect(path))
        return files[-1]

    def unable(log: Path) -> DataSync:
        raise OSError(errno.ENOSYS, "io_setup: Function not implemented")

    path = tmp_path / "store.db"
    async with SqliteStore(path, open_file=open_file, sync=DataSync if able else unable) as store:
        for number in range(50):
            await store.commit(put(b"k", b"%d" % number))
        assert modes(files[0]) == (1 if able else 2)  # NORMAL, FULL
    async with SqliteStore(path) as store:
        assert [kv.value for kv in (await store.range(b"k")).kvs] == [b"49"]
    told = [(line["event"], line["cause"]) for line in said.entries]
    assert told == ([] if able else [("store_waits_for_disk", "[Errno 38] io_setup: Function not implemented")])


async def test_the_kernel_tells_when_a_file_is_durable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    sync = DataSync(file)
    with contextlib.closing(sync):
        for _ in range(3):
            told = asyncio.get_running_loop().create_future()
            sync.begin(told.set_result)
            assert await asyncio.wait_for(told, 10) is None


async def test_closed_while_one_is_under_way_it_tells_nobody_and_keeps_nothing_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    before = open_files()
    told: list[OSError | None] = []
    sync = DataSync(file)
    sync.begin(told.append)
    sync.close()
    await settled()
    assert told == [] and open_files() == before


async def test_a_file_that_the_kernel_cannot_sync_is_refused_at_once_and_nothing_stays_open() -> None:
    before = open_files()
    with pytest.raises(OSError, match="io_submit"):
        DataSync(Path("/dev/null"))
    assert open_files() == before


async def test_a_sync_that_fails_says_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    with contextlib.closing(DataSync(file)) as sync:
        taken = sync._call

        def failing(name: str, *arguments: object) -> None:
            taken(name, *arguments)
            if name == "io_getevents":
                sync._event.result = -errno.EIO

        monkeypatch.setattr(sync, "_call", failing)
        told = asyncio.get_running_loop().create_future()
        sync.begin(told.set_result)
        failure = await asyncio.wait_for(told, 10)
    assert isinstance(failure, OSError) and failure.errno == errno.EIO
