"""A commit of the embedded store is answered when it is durable and not before, and nothing is seen of it until then.

The disk is one that the test tells when it is done; the kernel's own way is tried on real files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import structlog
from antiphon_orchestrator.store import Compare, EventType, Put, SqliteStore, StoreUnavailable, Target, Txn
from antiphon_orchestrator.store.datasync import DataSync, Done
from antiphon_orchestrator.store.file import connect
from backends import FailingFiles, ManualClock
from structlog.testing import LogCapture

from tests.harness import eventually

T = TypeVar("T")


class Disk:
    """A disk that is done when the test says so. Use it as the `sync` of a store, too."""

    def __init__(self) -> None:
        self.begun = 0
        self.closed = False
        self.refuses: OSError | None = None
        self._done: Done | None = None
        self._resting = False

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
        if self._resting:
            asyncio.get_running_loop().call_soon(self.end)

    def rest(self) -> None:
        """From now on it is done at once: a test that has failed does not wait for it."""
        self._resting = True
        if self._done is not None:
            self.end()

    def end(self, failure: OSError | None = None) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(failure)

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def opened(path: Path, disk: Disk, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(path, sync=disk, clock=clock) as store:
        try:
            yield store
        finally:
            disk.rest()


def put(key: bytes, value: bytes = b"") -> Txn:
    return Txn(ops=(Put(key, value),))


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def soon(outcome: Awaitable[T]) -> Awaitable[T]:
    """Nobody is to wait for ever."""
    return asyncio.wait_for(outcome, 10)


async def settled() -> None:
    """Lets everything run that does not wait for the disk."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_not_durable_is_neither_answered_nor_seen(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path / "store.db", disk) as store:
        watch = store.watch(b"k")
        committed = asyncio.ensure_future(store.commit(put(b"k", b"the value")))
        seen = asyncio.ensure_future(anext(watch))
        await settled()
        read = asyncio.ensure_future(store.range(b"k"))
        await settled()
        assert disk.begun == 1 and b"the value" in disk.written
        assert not (committed.done() or read.done() or seen.done())
        disk.end()
        assert (await soon(committed)).succeeded
        assert [kv.value for kv in (await soon(read)).kvs] == [b"the value"]
        assert [event.kv.value for event in (await soon(seen)).events] == [b"the value"]


async def test_who_watches_something_else_is_not_told_how_far_it_is_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antiphon_orchestrator.store.sqlite.PROGRESS", 0.01)
    disk = Disk()
    async with opened(tmp_path / "store.db", disk) as store:
        told: list[int] = []

        async def watch() -> None:
            async for batch in store.watch(b"quiet"):
                told.append(batch.revision)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await settled()
            committed = group.create_task(store.commit(put(b"k")))
            await settled()
            await asyncio.sleep(0.05)  # the timer by which it would be told is due before this one
            assert disk.begun == 1 and 2 not in told
            disk.end()
            assert (await soon(committed)).revision == 2
            await eventually(lambda: 2 in told)
            watching.cancel()


async def test_a_compaction_is_durable_before_it_is_answered(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path / "store.db", disk) as store:
        committed = asyncio.ensure_future(store.commit(put(b"k")))
        await settled()
        disk.end()
        revision = (await soon(committed)).revision
        compacted = asyncio.ensure_future(store.compact(revision))
        await settled()
        assert disk.begun == 2 and not compacted.done()
        disk.end()
        await soon(compacted)


async def test_what_comes_while_one_is_made_durable_shares_the_next(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path / "store.db", disk) as store:
        first = asyncio.ensure_future(store.commit(put(b"first")))
        await settled()
        others = [asyncio.ensure_future(store.commit(put(b"k%d" % number))) for number in range(5)]
        await settled()
        assert disk.begun == 1
        disk.end()
        await soon(first)
        await settled()
        assert disk.begun == 2 and not any(other.done() for other in others)
        disk.end()
        assert [(await soon(other)).revision for other in others] == [3, 4, 5, 6, 7]


async def test_what_writes_nothing_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path / "store.db", disk) as store:
        there = Txn((Compare(b"k", Target.VERSION, 1),), (Put(b"k", b""),))
        assert not (await soon(store.commit(there))).succeeded
        assert not (await soon(store.range(b"k"))).kvs
        assert disk.begun == 0


async def test_the_end_of_a_lease_is_made_durable_before_it_is_seen(tmp_path: Path) -> None:
    disk, clock = Disk(), ManualClock()
    async with opened(tmp_path / "store.db", disk, clock) as store:
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
        assert not (await soon(read)).kvs


async def test_a_lease_ends_by_itself_although_nobody_asks(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db") as store:
        lease = await store.grant(1)
        revision = (await store.commit(Txn(ops=(Put(b"alive", b"", lease),)))).revision
        batch = await soon(anext(store.watch(b"alive", revision + 1)))
        assert [event.type for event in batch.events] == [EventType.DELETE]


async def test_what_the_last_process_had_leased_is_gone_for_good_before_anybody_sees_it_gone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteStore(path) as store:
        await store.commit(Txn(ops=(Put(b"alive", b"", await store.grant(10)),)))
        shutil.copytree(tmp_path, tmp_path / "killed")  # with its log, as a killed process leaves them
    modes: list[int] = []
    files: list[sqlite3.Connection] = []

    def open_file(path: Path) -> sqlite3.Connection:
        files.append(connect(path))
        return files[-1]

    class Looking(Disk):
        def __call__(self, log: Path) -> Disk:
            modes.append(mode(files[0]))
            assert not files[0].in_transaction
            assert files[0].execute("SELECT count(*) FROM kv WHERE lease != 0").fetchone() == (0,)
            return super().__call__(log)

    async with SqliteStore(tmp_path / "killed" / "store.db", open_file=open_file, sync=Looking()) as store:
        assert modes == [2] and not (await store.range(b"alive")).kvs


@pytest.mark.parametrize("when", ["it begins", "it ends"])
async def test_when_the_disk_fails_what_was_written_is_unclear_and_the_store_stops(tmp_path: Path, when: str) -> None:
    disk = Disk()
    failure = OSError(errno.EIO, "the disk failed")
    async with opened(tmp_path / "store.db", disk) as store:
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
                await soon(unanswered)
        with pytest.raises(StoreUnavailable, match="must be opened again"):
            await store.range(b"k")
    assert disk.closed


async def test_when_statements_fail_what_came_with_them_is_unclear_too(tmp_path: Path) -> None:
    files = FailingFiles()
    async with SqliteStore(tmp_path / "store.db", open_file=files) as store:
        lease = await store.grant(10)
        await store.commit(Txn(ops=(Put(b"alive", b"", lease),)))
        files.file.faults = [sqlite3.SQLITE_IOERR]
        outcomes = await soon(asyncio.gather(store.range(b"k"), store.commit(put(b"k")), return_exceptions=True))
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable]


async def test_a_disk_that_fails_while_the_store_is_closed_is_no_quiet_end(tmp_path: Path) -> None:
    disk = Disk()
    store = SqliteStore(tmp_path / "store.db", sync=disk)
    await store.open()
    running = asyncio.ensure_future(store.run())
    committed = asyncio.ensure_future(store.commit(put(b"k")))
    await settled()
    closing, again = asyncio.ensure_future(store.close()), asyncio.ensure_future(store.close())
    await settled()
    assert not closing.done() and not again.done()
    disk.end(OSError(errno.EIO, "the disk failed"))
    await soon(asyncio.gather(closing, again))
    for told in (committed, running):
        with pytest.raises(StoreUnavailable, match="the disk failed"):
            await soon(told)


async def test_a_file_that_does_not_even_close_ends_the_store_all_the_same(tmp_path: Path) -> None:
    class Stuck(Disk):
        def close(self) -> None:
            raise OSError(errno.EIO, "it does not close")

    disk = Stuck()
    store = SqliteStore(tmp_path / "store.db", sync=disk)
    await store.open()
    running = asyncio.ensure_future(store.run())
    committed = asyncio.ensure_future(store.commit(put(b"k")))
    await settled()
    with pytest.raises(OSError, match="does not close"):
        disk.end(OSError(errno.EIO, "the disk failed"))
    for told in (committed, running):
        with pytest.raises(StoreUnavailable, match="the disk failed"):
            await soon(told)


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
    await soon(closing)
    assert ((await soon(first)).revision, (await soon(second)).revision) == (2, 3)


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
        await soon(closing)
    with pytest.raises(StoreUnavailable):
        await soon(committed)
    assert disk.closed


def mode(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA synchronous").fetchone()
    return int(found)


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
        assert mode(files[0]) == (1 if able else 2)  # NORMAL, FULL
    async with SqliteStore(path) as store:
        assert [kv.value for kv in (await store.range(b"k")).kvs] == [b"49"]
    told = [(line["event"], line["cause"]) for line in said.entries]
    assert told == ([] if able else [("store_waits_for_disk", "[Errno 38] io_setup: Function not implemented")])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    return path


async def synced(sync: DataSync) -> OSError | None:
    told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    sync.begin(told.set_result)
    return await soon(told)


async def test_the_kernel_tells_when_a_file_is_durable(file: Path) -> None:
    with contextlib.closing(DataSync(file)) as sync:
        assert [await synced(sync) for _ in range(3)] == [None, None, None]
        assert not any(os.get_inheritable(descriptor) for descriptor in (sync._file, sync._told))


async def test_one_after_another_of_the_same_loop_is_told_of_its_own(file: Path) -> None:
    for _ in range(3):  # the kernel gives the same numbers again
        with contextlib.closing(DataSync(file)) as sync:
            assert await synced(sync) is None


async def test_closed_while_one_is_under_way_it_tells_nobody_and_keeps_nothing_open(file: Path) -> None:
    before = open_files(), contexts()
    told: list[OSError | None] = []
    sync = DataSync(file)
    sync.begin(told.append)
    assert contexts() > before[1]
    sync.close()
    await settled()
    assert told == [] and (open_files(), contexts()) == before


def contexts() -> int:
    """What this process has asked the kernel for."""
    return Path("/proc/self/maps").read_text().count("[aio]")


async def test_a_file_that_the_kernel_cannot_sync_is_refused_at_once_and_nothing_stays_open() -> None:
    before = open_files()
    with pytest.raises(OSError, match="io_submit"):
        DataSync(Path("/dev/null"))
    assert open_files() == before


def kind_of_file_system(file: Path) -> int:
    told = subprocess.run(["stat", "-f", "-c", "%t", file], capture_output=True, check=True, text=True)
    return int(told.stdout, 16)


async def test_a_file_system_of_a_program_is_not_relied_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antiphon_orchestrator.store.datasync._FUSE", kind_of_file_system(file))
    with pytest.raises(OSError, match="FUSE"):
        DataSync(file)


async def test_a_machine_that_is_not_known_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(OSError, match="s390x"):
        DataSync(file)


@pytest.mark.parametrize("fault", ["it failed", "there is none"])
async def test_a_sync_that_fails_says_with_what(file: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with contextlib.closing(DataSync(file)) as sync:
        call = sync._call

        def failing(name: str, *arguments: object) -> int:
            count = call(name, *arguments)
            if name == "io_getevents":
                sync._event.result = -errno.ENOSPC if fault == "it failed" else 0
                count = 1 if fault == "it failed" else 0
            return count

        monkeypatch.setattr(sync, "_call", failing)
        failure = await synced(sync)
    assert failure is not None and failure.errno == (errno.ENOSPC if fault == "it failed" else errno.EIO)


async def test_what_the_kernel_has_no_room_for_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(DataSync(file)) as sync:
        call, waited = sync._call, os.fdatasync
        files: list[int] = []

        def failing(name: str, *arguments: object) -> int:
            if name == "io_submit":
                raise OSError(errno.EAGAIN, "io_submit: Resource temporarily unavailable")
            return call(name, *arguments)

        def fdatasync(descriptor: int) -> None:
            files.append(descriptor)
            waited(descriptor)

        monkeypatch.setattr(sync, "_call", failing)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        assert [await synced(sync), await synced(sync)] == [None, None]
        assert files == [sync._file] * 2
        told: list[OSError | None] = []
        sync.begin(told.append)
        monkeypatch.undo()
    await settled()
    assert told == []  # it was closed before
