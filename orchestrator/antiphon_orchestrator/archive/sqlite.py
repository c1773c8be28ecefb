"""The archive in an SQLite file: finished runs with their events, and the search over them.

The journal is trimmed once a write here has returned, so a write is durable by then.

Writes have a thread of their own, and so has everything else, a slow listing above all. Under load a thread has to win
the interpreter lock back for each statement, so a write is made of few and large ones: nearly all of its time is the
database's, without the lock, beside a busy event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine, create_engine, delete, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from . import queries, schema
from .model import ArchivedRequest, ArchivedRun, ArchiveUnavailable, AuditPage, EventChunk, RunFilter
from .tables import Upsert, audit_pages, run_events, runs

T = TypeVar("T")

_MAX_WAITING = 64


class SqliteArchive:
    """An `Archive` in the file of an SQLAlchemy URL, e.g. `sqlite:////var/lib/antiphon/archive.db`."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, hide_parameters=True)
        event.listen(self._engine, "connect", _make_durable)
        self._upsert_runs = Upsert(runs, newer_by="last_event_seq")
        self._upsert_chunks = Upsert(run_events, newer_by="last_seq")
        self._add_audit = Upsert(audit_pages, newer_by="last_seq", final=True)
        self._lane = _Lane("archive")
        self._writing = _Lane("archive-writer")

    async def __aenter__(self) -> SqliteArchive:
        """Makes or migrates the tables. Raises ArchiveIncompatible."""
        try:
            await self._lane.do(_migrate, self._engine)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writing.close()
        await self._lane.close()
        self._engine.dispose()

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        """See `Archive.write`."""
        await self._writing.do(self._write, runs, chunks)

    async def get_run(self, run_id: str) -> ArchivedRun | None:
        """See `Archive.get_run`."""
        return await self._lane.do(self._get_run, run_id)

    async def events(self, run_id: str, after_seq: int = 0, limit: int = 64) -> list[EventChunk]:
        """See `Archive.events`."""
        return await self._lane.do(self._events, run_id, after_seq, limit)

    async def list_runs(self, filter: RunFilter, page_size: int, page_token: str = "") -> tuple[list[ArchivedRun], str]:
        """See `Archive.list_runs`."""
        return await self._lane.do(self._list_runs, filter, page_size, page_token)

    async def scan(self, after: tuple[str, int], limit: int) -> list[EventChunk]:
        """See `Archive.scan`."""
        return await self._lane.do(self._scan, after, limit)

    async def delete_before(self, time: datetime, limit: int) -> int:
        """See `Archive.delete_before`."""
        return await self._lane.do(self._delete_before, time, limit)

    async def requests(self, after: tuple[datetime, str], limit: int) -> list[ArchivedRequest]:
        """See `Archive.requests`."""
        return await self._lane.do(self._requests, after, limit)

    async def write_audit(self, pages: Sequence[AuditPage]) -> None:
        """See `Archive.write_audit`."""
        await self._writing.do(self._write_audit, pages)

    async def audit_pages(self, chain: str, first: int, last: int, limit: int) -> list[AuditPage]:
        """See `Archive.audit_pages`."""
        return await self._lane.do(self._audit_pages, chain, first, last, limit)

    async def delete_audit(self, chain: str, last: int, limit: int) -> int:
        """See `Archive.delete_audit`."""
        return await self._lane.do(self._delete_audit, chain, last, limit)

    async def identity(self) -> str:
        """See `Archive.identity`."""
        return await self._lane.do(self._identity)

    async def state(self) -> str:
        """See `Archive.state`; it need not have been entered."""
        try:
            return await self._lane.do(self._state)
        finally:
            self._engine.dispose()

    def _write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        with self._engine.begin() as connection:
            self._upsert_runs.execute(connection, map(queries.run_row, runs))
            self._upsert_chunks.execute(connection, map(queries.chunk_row, chunks))

    def _get_run(self, run_id: str) -> ArchivedRun | None:
        with self._engine.connect() as connection:
            row = connection.execute(queries.select_run(run_id)).one_or_none()
        return queries.run_of(row) if row else None

    def _events(self, run_id: str, after_seq: int, limit: int) -> list[EventChunk]:
        with self._engine.connect() as connection:
            rows = connection.execute(queries.select_events(run_id, after_seq, limit)).all()
        return queries.chunks_of(rows, after_seq)

    def _list_runs(self, filter: RunFilter, page_size: int, page_token: str) -> tuple[list[ArchivedRun], str]:
        query = queries.select_page(filter, page_size, page_token, None)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return queries.page_of(rows, filter, page_size)

    def _scan(self, after: tuple[str, int], limit: int) -> list[EventChunk]:
        with self._engine.connect() as connection:
            return [queries.chunk_of(row) for row in connection.execute(queries.select_behind(after, limit))]

    def _delete_before(self, time: datetime, limit: int) -> int:
        with self._engine.begin() as connection:
            run_ids = connection.scalars(queries.select_ended(time, limit)).all()
            connection.execute(delete(run_events).where(run_events.c.run_id.in_(run_ids)))
            connection.execute(delete(runs).where(runs.c.run_id.in_(run_ids)))
        return len(run_ids)

    def _requests(self, after: tuple[datetime, str], limit: int) -> list[ArchivedRequest]:
        with self._engine.connect() as connection:
            return [queries.request_of(row) for row in connection.execute(queries.select_requests(after, limit))]

    def _write_audit(self, pages: Sequence[AuditPage]) -> None:
        with self._engine.begin() as connection:
            self._add_audit.execute(connection, map(queries.audit_row, pages))

    def _audit_pages(self, chain: str, first: int, last: int, limit: int) -> list[AuditPage]:
        with self._engine.connect() as connection:
            rows = connection.execute(queries.select_audit(chain, first, last, limit)).all()
        return [queries.audit_page_of(row) for row in rows]

    def _delete_audit(self, chain: str, last: int, limit: int) -> int:
        with self._engine.begin() as connection:
            return connection.execute(queries.delete_audit(chain, last, limit)).rowcount

    def _identity(self) -> str:
        if not self._exists():
            return ""
        with self._engine.connect() as connection:
            return schema.identity(connection)

    def _state(self) -> str:
        if not self._exists():
            return schema.described(str(self._engine.url), None)
        with self._engine.connect() as connection:
            return schema.described(str(self._engine.url), schema.revision(connection))

    def _exists(self) -> bool:
        path = self._engine.url.database
        return not path or Path(path).exists()


class _Lane:
    """One thread for blocking calls, with a bound on those that wait."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._slots = asyncio.Semaphore(_MAX_WAITING)

    async def do(self, function: Callable[..., T], *args: object) -> T:
        async with self._slots:
            with _mapped():
                return await asyncio.wrap_future(self._thread.submit(function, *args))

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)


@contextmanager
def _mapped() -> Iterator[None]:
    """Turns what the database raises into ArchiveUnavailable."""
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError):
        raise  # a bug here, not the state of the database
    except DBAPIError as error:
        raise ArchiveUnavailable(f"the archive cannot be used: {error.orig}") from error
    except OSError as error:
        raise ArchiveUnavailable(f"the archive cannot be used: {error}") from error


def _migrate(engine: Engine) -> None:
    """One transaction that excludes other writers from its beginning, which SQLite's driver does not do by itself."""
    if engine.url.database:
        path = Path(engine.url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds users' data; SQLite's side files follow it
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        schema.migrate(connection)
        connection.commit()


def _make_durable(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4096"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
