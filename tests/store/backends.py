"""The backends that the store suite runs against, a clock that only the test moves, a disk that fails on command."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from antiphon_orchestrator.store import SqliteStore, Store
from antiphon_orchestrator.store.etcd import EtcdStore

from tests.harness.etcd import Etcd


class ManualClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Backend(Protocol):
    """One place where a store keeps its data. Opening it again finds what was there."""

    revision: int
    """Where it stands at the beginning."""
    first: int
    """Its history begins at this revision, or earlier."""

    def open(self, **options: Any) -> AbstractAsyncContextManager[Store]: ...

    def let_pass(self, seconds: float) -> None:
        """Lets time pass for leases; where it is real it passes by itself."""


class SqliteBackend:
    """The embedded store in a file."""

    revision = 1
    first = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()

    def let_pass(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def open(self, **options: Any) -> SqliteStore:
        return SqliteStore(self.path, **{"clock": self.clock, **options})


class EtcdBackend:
    """A prefix of its own in a cluster that many tests use, one after the other."""

    def __init__(self, etcd: Etcd) -> None:
        self._address = etcd.address(token_hex(4))
        self.revision = etcd.revision()
        self.first = self.revision + 1

    def let_pass(self, seconds: float) -> None:
        pass

    def open(self, **options: Any) -> EtcdStore:
        return EtcdStore(self._address, **options)


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
