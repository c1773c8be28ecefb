"""The thread that owns the embedded store's file: opens it, serves the queue, and never touches the event loop.

One turn: wait for requests (or for a lease to end), end expired leases, run what only reads, then commit all waiting
transactions as one group. A read sees every commit that was answered before the read was asked for.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .leases import Leases
from .port import CommitResult, StoreError, StoreFull, StoreLocked, StoreUnavailable, Txn
from .statements import SCHEMA
from .tables import Tables

_FORMAT = 1
_GROUP_TXNS = 512
_GROUP_BYTES = 16_777_216
_LOCK_WAIT_SECONDS = 1.0
_PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = FAST",  # ON would write every trimmed journal page once more
    "PRAGMA cache_size = -8192",
    "PRAGMA wal_autocheckpoint = 4096",
    "PRAGMA journal_size_limit = 67108864",
)


@dataclass(slots=True)
class Commit:
    """A transaction that waits for the next group. `reply` is whatever `answer` needs to find the caller again."""

    txn: Txn
    size: int
    reply: Any


@dataclass(slots=True)
class Call:
    """Anything else to be done on the thread."""

    run: Callable[[Writer], object]
    reply: Any


Outcome = tuple[Any, object]
"""A reply and what it gets: a result, or the exception to raise."""

Answer = Callable[[list[Outcome], list[bytes], int], None]
"""Told after each step: outcomes, the watched keys that changed, and the store's revision."""


class Writer:
    """Serves `requests` (None: finish) until told to stop. Lives on one thread, as does everything it holds.

    `idle` is set while nothing waits to be served; whoever puts a request clears it first.
    """

    def __init__(
        self,
        tables: Tables,
        leases: Leases,
        requests: queue.SimpleQueue[Commit | Call | None],
        answer: Answer,
        idle: threading.Event,
    ) -> None:
        self.tables = tables
        self.leases = leases
        self._requests = requests
        self._answer = answer
        self._idle = idle

    def run(self) -> None:
        """Ends the leases that the last process left, then serves. Raises what makes the file unusable."""
        self._delete_leased(None)
        more = True
        while more:
            calls, commits, more = self._take()
            self._expire()
            if calls:
                self._answer([(call.reply, self._outcome(call)) for call in calls], [], self.tables.revision)
            if commits:
                outcomes, changed = self.tables.commit([commit.txn for commit in commits], self.leases.require)
                replies = [commit.reply for commit in commits]
                self._answer(list(zip(replies, outcomes, strict=True)), changed, self.tables.revision)

    def end_lease(self, lease: int) -> None:
        """Deletes the keys of a lease, then the lease. Raises StoreFull, and the lease stays to be ended later."""
        self._delete_leased(lease)
        self.leases.forget(lease)

    def _take(self) -> tuple[list[Call], list[Commit], bool]:
        """Waits for a request, then takes what else waits, up to one group."""
        calls: list[Call] = []
        commits: list[Commit] = []
        size = 0
        self._idle.set()
        if not self._requests.empty():
            self._idle.clear()  # in this order, so that a request put in between is not overlooked
        try:
            request = self._requests.get(timeout=self.leases.until_next())
            while request is not None:
                if isinstance(request, Call):
                    calls.append(request)
                else:
                    commits.append(request)
                    size += request.size
                if size >= _GROUP_BYTES or len(commits) + len(calls) >= _GROUP_TXNS:
                    return calls, commits, True
                request = self._requests.get_nowait()
        except queue.Empty:
            return calls, commits, True
        return calls, commits, False

    def _outcome(self, call: Call) -> object:
        try:
            return call.run(self)
        except (StoreError, ValueError) as error:
            return error

    def _expire(self) -> None:
        for lease in self.leases.expired():
            try:
                self.end_lease(lease)
            except StoreFull:
                return  # they stay expired, so nothing can be put under them, and are ended when there is space

    def _delete_leased(self, lease: int | None) -> None:
        outcomes, changed = self.tables.commit([self.tables.leased(lease)], self.leases.require)
        for outcome in outcomes:
            if not isinstance(outcome, CommitResult):
                raise outcome
        if changed:
            self._answer([], changed, self.tables.revision)


@contextmanager
def opened(path: Path, connect: Callable[[Path], sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
    """The file, locked and with its tables in place. Raises StoreLocked, or StoreUnavailable with what is wrong."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the journal holds users' data; the WAL copies the mode
        connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(f"cannot open the store {path}: {error}") from error
    try:
        try:
            _prepare(connection, path)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                remedy = "stop that process, or give this one a folder of its own"
                raise StoreLocked(f"another process has the store {path} open: {remedy}") from error
            raise StoreUnavailable(f"cannot open the store {path}: {error}") from error
        yield connection
    finally:
        connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection on which every transaction is begun by name."""
    return sqlite3.connect(path, timeout=_LOCK_WAIT_SECONDS, isolation_level=None, cached_statements=256)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma).fetchall()
    connection.execute("BEGIN IMMEDIATE")  # takes the lock now, not at the first write
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == 0:
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute("COMMIT")
    if found not in (0, _FORMAT):
        raise StoreUnavailable(f"the store {path} has format {found}, this version reads {_FORMAT}: upgrade antiphon")
