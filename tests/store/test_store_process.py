"""The embedded store and real processes: one at a time, and a kill at any moment loses nothing acknowledged."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import crash_child
import pytest
from antiphon_orchestrator.store import (
    Compacted,
    Put,
    SqliteStore,
    StoreError,
    StoreLocked,
    StoreUnavailable,
    Txn,
    keys,
    prefix_end,
)

CHILD = Path(__file__).parent / "crash_child.py"


@contextmanager
def child(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the store open; killed at the end at the latest."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(CHILD), str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def test_a_store_that_another_process_has_open_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with child(path), pytest.raises(StoreLocked, match="stop that process"):
        await SqliteStore(path).open()
    async with SqliteStore(path) as store:
        assert not (await store.range(keys.replica("child"))).kvs  # the lease ended with its process


async def test_a_store_is_opened_once_within_a_process_too(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db"):
        with pytest.raises(StoreLocked):
            await SqliteStore(tmp_path / "store.db").open()


@pytest.mark.parametrize("content", [b"not a database, whatever it is" * 200, None])
async def test_a_file_that_is_no_store_is_refused_in_words(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "store.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="cannot open the store"):
        await SqliteStore(path).open()


async def test_a_file_that_is_damaged_behind_its_first_page_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteStore(path) as store:
        for number in range(40):
            await store.commit(Txn(ops=(Put(keys.log(0, number), bytes(900)), Put(b"run/%d" % number, bytes(300)))))
    whole = path.read_bytes()
    for start in range(4096, len(whole) - 4096, 4096):
        path.write_bytes(whole[:start] + bytes(8192) + whole[start + 8192 :])
        with pytest.raises(StoreUnavailable, match=r"malformed; restore a backup, as docs/operations\.md says"):
            async with SqliteStore(path) as store:
                await store.range(b"\0", prefix_end(keys.LOG))
                await store.commit(Txn(ops=(Put(b"run/new", b""),)))


async def test_a_file_of_another_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnavailable, match="upgrade antiphon"):
        await SqliteStore(tmp_path / "store.db").open()


async def test_a_file_of_the_format_before_is_taken_over_without_its_history(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteStore(path) as store:
        written = (await store.commit(Txn(ops=(Put(b"a/1", b"old"),)))).revision
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE events DROP COLUMN before")
        connection.execute("PRAGMA user_version = 1")
    for _ in range(2):
        async with SqliteStore(path) as store:
            assert [kv.value for kv in (await store.range(b"a/1")).kvs] == [b"old"]
            with pytest.raises(Compacted):
                await anext(store.watch(b"a/", written))
    async with SqliteStore(path) as store:
        await store.commit(Txn(ops=(Put(b"a/1", b"new"),)))
        batch = await anext(store.watch(b"a/", written + 1, before=True))
        assert [event.before for event in batch.events] == [b"old"]


async def test_only_its_user_can_read_the_file(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "new" / "store.db"):
        for file in (tmp_path / "new").iterdir():
            assert file.stat().st_mode & 0o077 == 0


async def test_a_store_that_could_not_be_opened_refuses(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    async with SqliteStore(tmp_path / "store.db"):
        with pytest.raises(StoreError):
            await store.open()
    with pytest.raises(StoreError):
        await store.range(b"k")


@pytest.mark.parametrize("seed", range(4))
async def test_every_acknowledged_commit_survives_a_kill_and_no_half_commit_does(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store.db"
    chance = random.Random(seed)
    acknowledged: dict[tuple[int, int], int] = {}
    first = 0
    for _ in range(3):
        with child(path, str(first)) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 400)):
                writer, seq, revision = map(int, process.stdout.readline().split())
                acknowledged[writer, seq] = revision
            process.kill()
            for line in process.stdout:  # what it could still say before it died
                if line.endswith("\n") and len(numbers := line.split()) == 3:
                    acknowledged[int(numbers[0]), int(numbers[1])] = int(numbers[2])
        async with SqliteStore(path) as store:
            journal = await store.range(keys.LOG, prefix_end(keys.LOG))
            found = {kv.key: kv.mod_revision for kv in journal.kvs}
            for (writer, seq), revision in acknowledged.items():
                assert found[keys.log(writer, seq)] == revision
            for writer in range(crash_child.WRITERS):
                seqs = [int(keys.parts(key)[2], 16) for key in found if key.startswith(keys.log_prefix(writer))]
                counters = (await store.range(crash_child.counter(writer))).kvs
                assert [int(kv.value) for kv in counters] == ([max(seqs)] if seqs else [])
            watched = await anext(store.watch(b"context/", 1))
            assert [event.kv.mod_revision for event in watched.events] == sorted(found.values())[: len(watched.events)]
            first = 1 + max((int(keys.parts(key)[2], 16) for key in found), default=-1)
