"""The archive in PostgreSQL, which several orchestrators may share: SQLAlchemy Core over asyncpg.

It may be away, at the start as well: whoever asks meanwhile hears ArchiveUnavailable at the end of a deadline, and the
next call connects anew. Only what somebody must mend ends a start: a refused login, a server that cannot prove its
name, tables of a version that is not ours. Every statement has a deadline of the server's, and every call one of ours
at which its connection is cut, for a server that no longer answers at all. What goes wrong is told without the
statement and its values.

Writers have one connection of their own, readers a few. Rows are sent as arrays, one for each column: one prepared
statement for any number of rows. They are sorted by key, so that two replicas that write the same runs after a takeover
wait for each other in one order.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Column, ColumnElement, Connection, Table, cast, delete, literal, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from .. import telemetry
from . import queries, schema
from .model import (
    ArchivedRequest,
    ArchivedRun,
    ArchiveIncompatible,
    ArchiveRefused,
    ArchiveUnavailable,
    AuditPage,
    EventChunk,
    RunFilter,
)
from .place import proving, root_file, shown_url
from .tables import Row, audit_pages, encode_labels, newest, run_events, runs

T = TypeVar("T")
log = telemetry.logger("archive")

READERS = 4
_CONNECT = 5.0
"""Seconds in which a connection is made, TLS and login included."""
_CALL = 20.0
"""Seconds in which a call has its answer, or loses its connection."""
_SLOWEST = 1 << 20
"""Bytes a second that a write is given at least."""
_STATEMENT = "15s"
_MIGRATION = 600.0
_LOCK = 0x616E7469
"""Of PostgreSQL's advisory locks the one that a migration holds; the number is "anti"."""
_WRITE_BYTES = 4 << 20
"""Of one statement, so that it ends within its deadline on a slow line too; one larger row goes alone."""

_SETTINGS = {
    "application_name": "antiphon",
    "statement_timeout": _STATEMENT,
    "lock_timeout": _STATEMENT,
    "idle_in_transaction_session_timeout": "60s",
}
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All that the driver raises of its own."""


class PostgresArchive:
    """An `Archive` in the database of a URL (`place.py`). The password comes from the file, else from the URL, else
    from where libpq looks for it (PGPASSWORD, PGPASSFILE); the file is read for every connection."""

    def __init__(self, url: str, password_file: Path | None = None, *, call: float = _CALL) -> None:
        self._url = proving(url)
        self._shown = shown_url(url)
        self._password_file = password_file
        self._roots = root_file(self._url)
        self._call = call
        self._writing = self._engine(1)
        self._reading = self._engine(READERS)
        self._migrated = False
        self._migration = asyncio.Lock()

    async def __aenter__(self) -> PostgresArchive:
        """Makes or migrates the tables, now or as soon as the database is there.

        Raises ArchiveRefused and ArchiveIncompatible.
        """
        try:
            await self._migrate()
        except (ArchiveRefused, ArchiveIncompatible):
            await self.__aexit__()
            raise
        except ArchiveUnavailable as error:
            log.error("archive_unavailable", cause=str(error))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writing.dispose()
        await self._reading.dispose()

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        """See `Archive.write`."""

        async def work(connection: AsyncConnection) -> None:
            for upsert, rows in ((_RUNS, map(_run_row, runs)), (_CHUNKS, map(queries.chunk_row, chunks))):
                for statement in upsert.batches(list(rows)):
                    await connection.exec_driver_sql(upsert.statement, statement)

        await self._do(self._writing, work, sum(len(chunk.data) for chunk in chunks) / _SLOWEST)

    async def get_run(self, run_id: str) -> ArchivedRun | None:
        """See `Archive.get_run`."""
        query = queries.select_run(_storable(run_id))

        async def work(connection: AsyncConnection) -> ArchivedRun | None:
            row = (await connection.execute(query)).one_or_none()
            return queries.run_of(row) if row else None

        return await self._do(self._reading, work)

    async def events(self, run_id: str, after_seq: int = 0, limit: int = 64) -> list[EventChunk]:
        """See `Archive.events`."""

        async def work(connection: AsyncConnection) -> list[EventChunk]:
            found = await connection.execute(queries.select_events(run_id, after_seq, limit))
            return queries.chunks_of(found.all(), after_seq)

        return await self._do(self._reading, work)

    async def list_runs(self, filter: RunFilter, page_size: int, page_token: str = "") -> tuple[list[ArchivedRun], str]:
        """See `Archive.list_runs`."""
        query = queries.select_page(filter, page_size, page_token, _has_label)

        async def work(connection: AsyncConnection) -> tuple[list[ArchivedRun], str]:
            return queries.page_of((await connection.execute(query)).all(), filter, page_size)

        return await self._do(self._reading, work)

    async def scan(self, after: tuple[str, int], limit: int) -> list[EventChunk]:
        """See `Archive.scan`."""

        async def work(connection: AsyncConnection) -> list[EventChunk]:
            found = await connection.execute(queries.select_behind(after, limit))
            return [queries.chunk_of(row) for row in found.all()]

        return await self._do(self._reading, work)

    async def delete_before(self, time: datetime, limit: int) -> int:
        """See `Archive.delete_before`. Rows that another replica deletes meanwhile are left to it."""
        ended = queries.select_ended(time, limit).with_for_update(skip_locked=True)

        async def work(connection: AsyncConnection) -> int:
            run_ids = (await connection.scalars(ended)).all()
            await connection.execute(delete(run_events).where(run_events.c.run_id.in_(run_ids)))
            await connection.execute(delete(runs).where(runs.c.run_id.in_(run_ids)))
            return len(run_ids)

        return await self._do(self._reading, work)

    async def requests(self, after: tuple[datetime, str], limit: int) -> list[ArchivedRequest]:
        """See `Archive.requests`."""
        query = queries.select_requests(after, limit)

        async def work(connection: AsyncConnection) -> list[ArchivedRequest]:
            return [queries.request_of(row) for row in (await connection.execute(query)).all()]

        return await self._do(self._reading, work)

    async def write_audit(self, pages: Sequence[AuditPage]) -> None:
        """See `Archive.write_audit`."""

        async def work(connection: AsyncConnection) -> None:
            for rows in _AUDIT.batches([queries.audit_row(page) for page in pages]):
                await connection.exec_driver_sql(_AUDIT.statement, rows)

        await self._do(self._writing, work, sum(len(page.data) for page in pages) / _SLOWEST)

    async def audit_pages(self, chain: str, first: int, last: int, limit: int) -> list[AuditPage]:
        """See `Archive.audit_pages`."""
        query = queries.select_audit(chain, first, last, limit)

        async def work(connection: AsyncConnection) -> list[AuditPage]:
            return [queries.audit_page_of(row) for row in (await connection.execute(query)).all()]

        return await self._do(self._reading, work)

    async def delete_audit(self, chain: str, last: int, limit: int) -> int:
        """See `Archive.delete_audit`."""

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(queries.delete_audit(chain, last, limit))).rowcount

        return await self._do(self._reading, work)

    async def identity(self) -> str:
        """See `Archive.identity`."""
        return await self._attempt(self._reading, _identity, self._call)

    async def state(self) -> str:
        """See `Archive.state`; it need not have been entered."""
        try:
            return schema.described(self._shown, await self._attempt(self._reading, _revision, self._call))
        finally:
            await self._reading.dispose()

    async def _do(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]], more: float = 0) -> T:
        """Does the work in one transaction; on a connection that turns out to be broken, once more on another.

        `more`: seconds beyond the deadline of every call.
        """
        if not self._migrated:
            try:
                await self._migrate()
            except ArchiveIncompatible as error:  # it was away at the start; runs go on all the same
                raise ArchiveUnavailable(str(error)) from error
        try:
            return await self._attempt(engine, work, self._call + more)
        except _Broken:
            return await self._attempt(engine, work, self._call + more)

    async def _attempt(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]], limit: float) -> T:
        try:
            async with engine.connect() as connection:
                driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
                # Not a timeout around it: what a cancelled statement leaves behind is settled with the server, which
                # may be what does not answer.
                cut = asyncio.get_running_loop().call_later(limit, driver.terminate)
                try:
                    done = await work(connection)
                    await connection.commit()
                    return done
                finally:
                    cut.cancel()
        except DBAPIError as error:
            if isinstance(error.orig and error.orig.__cause__, _REFUSALS):
                raise ArchiveRefused(self._refusal(error.orig)) from error
            kind = _Broken if error.connection_invalidated else ArchiveUnavailable
            raise kind(f"the archive at {self._shown} cannot be used: {_cause(error.orig)}") from error
        except _DRIVER as error:
            # SQLAlchemy sets up a new connection past its own translation of errors.
            raise _Broken(f"the archive at {self._shown} cannot be used: {_cause(error)}") from error
        except (SQLAlchemyError, OSError) as error:
            raise ArchiveUnavailable(f"the archive at {self._shown} cannot be used: {_cause(error)}") from error

    async def _migrate(self) -> None:
        async with self._migration:
            if self._migrated:
                return
            if await self._attempt(self._writing, _revision, self._call) != schema.NEWEST:
                before = await self._attempt(self._writing, _migrated, _MIGRATION)
                log.info("archive_migrated", source=before or "empty", version=schema.NEWEST)
            self._migrated = True

    def _engine(self, connections: int) -> AsyncEngine:
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._call,
            pool_recycle=1800,
        )

    async def _connect(self) -> asyncpg.Connection:
        try:
            password = None
            if self._password_file is not None:
                password = self._password_file.read_text().strip()
            if self._roots is not None:
                self._roots.read_bytes()  # asyncpg's error would look like that of a socket that is not there
        except OSError as error:
            raise ArchiveRefused(f"the archive cannot be used: {error.filename}: {error.strerror}") from error
        try:
            connection = await asyncpg.connect(
                self._url, password=password, timeout=min(_CONNECT, self._call), server_settings=_SETTINGS
            )
            try:
                await connection.execute(_DURABLE, timeout=_CONNECT)
            except BaseException:
                connection.terminate()
                raise
            return connection
        except (*_REFUSALS, asyncpg.ClientConfigurationError, ssl.SSLError) as error:
            raise ArchiveRefused(self._refusal(error)) from error
        except ConnectionError as error:
            if "SSL" in str(error):  # asyncpg has no kind of its own for a server without TLS
                raise ArchiveRefused(self._refusal(error)) from error
            raise self._away(error) from error
        except (*_DRIVER, OSError) as error:
            raise self._away(error) from error

    def _away(self, error: BaseException) -> ArchiveUnavailable:
        return ArchiveUnavailable(f"the archive at {self._shown} cannot be reached: {_cause(error)}")

    def _refusal(self, error: BaseException | None) -> str:
        return (
            f"the archive at {self._shown} cannot be used: {_cause(error)}; check user, password, database and their"
            " rights, and that sslrootcert holds the authority of the server's certificate"
        )


class _Broken(ArchiveUnavailable):
    """The connection had ended before it was used; nothing was done on it that lasts."""


class _Upsert:
    """Inserts or replaces rows by primary key, unless the stored row is newer by the column `newer_by`.

    `final`: a stored row is never replaced.
    """

    def __init__(self, table: Table, newer_by: str, *, final: bool = False) -> None:
        self._columns: list[Column[Any]] = list(table.columns)
        self._keys = [column.name for column in table.primary_key.columns]
        self._newer_by = newer_by
        names = [column.name for column in self._columns]
        arrays = ", ".join(f"${n}::{_kind(column)}[]" for n, column in enumerate(self._columns, 1))
        replace = ", ".join(f"{name} = excluded.{name}" for name in names if name not in self._keys)
        update = f"UPDATE SET {replace} WHERE excluded.{newer_by} >= {table.name}.{newer_by}"
        self.statement = (
            f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays})"
            f" ON CONFLICT ({', '.join(self._keys)}) DO {'NOTHING' if final else update}"
        )

    def batches(self, rows: list[Row]) -> list[tuple[list[Any], ...]]:
        """The arguments of as many statements as it takes; of several rows with one key the newest counts."""
        waiting = sorted(newest(rows, self._keys, self._newer_by), key=lambda row: [row[key] for key in self._keys])
        made: list[list[Row]] = []
        room = 0
        for row in waiting:
            size = sum(len(value) for value in row.values() if isinstance(value, str | bytes))
            if not made or size > room:
                made.append([])
                room = _WRITE_BYTES
            made[-1].append(row)
            room -= size
        return [tuple([row[column.name] for row in part] for column in self._columns) for part in made]


def _kind(column: Column[Any]) -> str:
    return {str: "text", int: "int8", bytes: "bytea"}[column.type.python_type]


_RUNS = _Upsert(runs, newer_by="last_event_seq")
_CHUNKS = _Upsert(run_events, newer_by="last_seq")
_AUDIT = _Upsert(audit_pages, newer_by="last_seq", final=True)


def _run_row(run: ArchivedRun) -> Row:
    row = queries.run_row(run)
    row["labels"] = encode_labels({_storable(key): _storable(value) for key, value in run.labels.items()})
    return {name: _storable(value) if isinstance(value, str) else value for name, value in row.items()}


def _storable(text: str) -> str:
    """PostgreSQL's texts, and its JSON, hold every character but one, which an agent's message may well contain."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _has_label(key: str, value: str) -> ColumnElement[bool]:
    return cast(runs.c.labels, JSONB).contains(cast(literal(encode_labels({_storable(key): _storable(value)})), JSONB))


async def _revision(connection: AsyncConnection) -> str | None:
    return await connection.run_sync(schema.revision)


async def _identity(connection: AsyncConnection) -> str:
    return await connection.run_sync(schema.identity)


async def _migrated(connection: AsyncConnection) -> str | None:
    return await connection.run_sync(_migrate_alone)


def _migrate_alone(connection: Connection) -> str | None:
    """One migrates, the others wait for it and find it done."""
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise ArchiveIncompatible(f"the archive's database is in {encoding}: give it one that is in UTF8")
    for setting in ("statement_timeout", "lock_timeout"):
        connection.execute(text(f"SET LOCAL {setting} = '{_MIGRATION:g}s'"))
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    return schema.migrate(connection)


def _cause(error: BaseException | None) -> str:
    """One line: the first of what the driver said; the rest may quote values."""
    while isinstance(error, SQLAlchemyError) and error.__cause__ is not None:
        error = error.__cause__
    if error is not None and isinstance(error.__cause__, _DRIVER):
        error = error.__cause__
    said = str(error).partition("\n")[0]
    return said or type(error).__name__
