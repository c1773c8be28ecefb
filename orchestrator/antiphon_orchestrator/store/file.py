"""The file of the embedded store: opened, locked for as long as it is open, with its tables in place."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .port import StoreLocked, StoreUnavailable
from .statements import FROM_FORMAT_1, SCHEMA

_FORMAT = 2
_LOCK_WAIT_SECONDS = 1.0
_PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = FAST",  # ON would write every trimmed journal page once more
    "PRAGMA cache_size = -8192",
    "PRAGMA wal_autocheckpoint = 2048",  # more often and shorter: nothing else happens meanwhile
    "PRAGMA journal_size_limit = 67108864",
)


@contextmanager
def opened(path: Path, connect: Callable[[Path], sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
    """The file, locked and with its tables in place. Raises StoreLocked, or StoreUnavailable with what is wrong."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the journal holds users' data; the WAL copies the mode
        connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    try:
        try:
            _prepare(connection, path)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                remedy = "stop that process, or give this one a folder of its own"
                raise StoreLocked(f"another process has the store {path} open: {remedy}") from error
            raise unusable(path, error) from error
        yield connection
    finally:
        connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection on which every transaction is begun by name."""
    return sqlite3.connect(path, timeout=_LOCK_WAIT_SECONDS, isolation_level=None, cached_statements=256)


def log_of(path: Path) -> Path:
    """The write-ahead log of a store, which is there as long as its file is open. SQLite follows links as well."""
    return Path(f"{path.resolve()}-wal")


def leave_syncing(connection: sqlite3.Connection) -> None:
    """From now on a commit is in the log, but durable only when somebody has made the log so. What SQLite needs in
    order not to damage the file, when it begins the log anew or writes from it to the file, it still waits for."""
    connection.execute("PRAGMA synchronous = NORMAL")


def check_file(path: Path) -> None:
    """Raises StoreUnavailable when it is no store. Takes no lock and writes nothing, since the store may be in use."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    _check_format(path, found)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma).fetchall()
    connection.execute("BEGIN IMMEDIATE")  # takes the lock now, not at the first write
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found in (0, 1):
        for statement in (SCHEMA if found == 0 else FROM_FORMAT_1).split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute("COMMIT")
    _check_format(path, found)


def _check_format(path: Path, found: int) -> None:
    if found not in (0, 1, _FORMAT):
        raise StoreUnavailable(f"the store {path} has format {found}, this version reads {_FORMAT}: upgrade antiphon")


def unusable(path: Path, error: Exception) -> StoreUnavailable:
    """What is said of a file that cannot be opened."""
    return StoreUnavailable(f"cannot open the store {path}: {cause(error)}")


def cause(error: Exception) -> str:
    """What a file failed with, and what helps when it is damaged."""
    damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    return f"{error}; restore a backup, as docs/operations.md says" if damaged else str(error)
