"""The backends that the store suite runs against, a clock that only the test moves, a disk that fails on command."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from antiphon_orchestrator.store import SqliteStore, Store


class ManualClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Backend(Protocol):
    """One place where a store keeps its data. Opening it again finds what was there; `clock` drives its leases."""

    clock: ManualClock

    def open(self, **options: Any) -> AbstractAsyncContextManager[Store]: ...


class SqliteBackend:
    """The embedded store in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()

    def open(self, **options: Any) -> SqliteStore:
        return SqliteStore(self.path, **{"clock": self.clock, **options})


class FailingFile(sqlite3.Connection):
    """A file whose next commits fail with the error codes in `faults`, as SQLite reports a full or broken disk."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.faults: list[int] = []

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.faults:
            error = sqlite3.OperationalError("the disk failed")
            error.sqlite_errorcode = self.faults.pop(0)
            raise error
        return super().execute(sql, *parameters)


class FailingFiles:
    """Opens files for a store and keeps the last, so that a test can set its faults."""

    file: FailingFile

    def __call__(self, path: Path) -> FailingFile:
        self.file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=FailingFile)
        return self.file
