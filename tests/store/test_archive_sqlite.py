"""The archive in an SQLite file: what only a file has."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from antiphon_orchestrator.archive import ArchiveUnavailable, EventChunk
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from test_archive import run


def at(folder: Path) -> SqliteArchive:
    return SqliteArchive(f"sqlite:///{folder / 'archive.db'}")


async def test_only_its_user_can_read_the_archive(tmp_path: Path) -> None:
    async with at(tmp_path) as archive:
        await archive.write([run()], [])
        for file in os.scandir(tmp_path):
            assert file.stat().st_mode & 0o077 == 0


async def test_a_busy_database_is_unavailable_and_the_same_write_works_later(tmp_path: Path) -> None:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}?timeout=0") as archive:
        other = sqlite3.connect(tmp_path / "archive.db")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArchiveUnavailable):
            await archive.write([run()], [EventChunk("run-001", 1, 2, b"")])
        assert await archive.get_run("run-001") is None
        other.close()
        await archive.write([run()], [EventChunk("run-001", 1, 2, b"")])
        assert await archive.get_run("run-001") == run()


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "archive.db").mkdir()
    with pytest.raises(ArchiveUnavailable):
        async with at(tmp_path):
            pass
