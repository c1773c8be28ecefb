"""The archive over SQLAlchemy Core: finished runs with their events, and the search over them.

The journal is trimmed once a write here has returned, so a write is durable by then. Writes are idempotent upserts in
one transaction each, and an older version of a record never replaces a newer one, whoever writes late.

Writes have a thread of their own, and so has everything else, a slow listing above all. Under load a thread has to win
the interpreter lock back for each statement, so a write is made of few and large ones: nearly all of its time is the
database's, without the lock, beside a busy event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Engine, Row, create_engine, delete, event, inspect, literal, select, tuple_
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from .model import (
    ArchivedRun,
    ArchiveIncompatible,
    ArchiveUnavailable,
    EventChunk,
    RunFilter,
    from_micros,
    make_page_token,
    read_page_token,
    to_micros,
)
from .tables import (
    VERSION,
    Upsert,
    contains_text,
    encode_labels,
    has_label,
    metadata,
    run_events,
    runs,
    schema_version,
)

T = TypeVar("T")

_MAX_WAITING = 64


class SqlArchive:
    """An archive in the database of an SQLAlchemy URL, e.g. `sqlite:////var/lib/antiphon/archive.db`.

    Use: `async with SqlArchive(url) as archive`. Every method may raise ArchiveUnavailable.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _make_durable)
        self._upsert_runs = Upsert(runs, newer_by="last_event_seq")
        self._upsert_chunks = Upsert(run_events, newer_by="last_seq")
        self._lane = _Lane("archive")
        self._writing = _Lane("archive-writer")

    async def __aenter__(self) -> SqlArchive:
        """Makes the tables if there are none. Raises ArchiveIncompatible."""
        try:
            await self._lane.do(_create_tables, self._engine)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writing.close()
        await self._lane.close()
        self._engine.dispose()

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        """Upserts runs and chunks in one transaction; durable when it returns.

        A chunk replaces the one with the same `first_seq`, if it reaches at least as far.
        """
        await self._writing.do(self._write, runs, chunks)

    async def get_run(self, run_id: str) -> ArchivedRun | None:
        """The run, or None."""
        return await self._lane.do(self._get_run, run_id)

    async def events(self, run_id: str, after_seq: int = 0) -> list[EventChunk]:
        """The chunks that hold events later than `after_seq`, in order.

        The first may begin earlier, and chunks may overlap after a takeover: whoever decodes them skips what it has.
        """
        return await self._lane.do(self._events, run_id, after_seq)

    async def list_runs(self, filter: RunFilter, page_size: int, page_token: str = "") -> tuple[list[ArchivedRun], str]:
        """A page, newest first, and the next page's token ("" after the last). Raises InvalidPageToken.

        Paging is by position, so runs archived meanwhile neither repeat nor hide others.
        """
        return await self._lane.do(self._list_runs, filter, page_size, page_token)

    async def delete_before(self, time: datetime, limit: int) -> int:
        """Deletes up to `limit` runs that ended before `time`, oldest first, with their events. Returns how many."""
        return await self._lane.do(self._delete_before, time, limit)

    def _write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        with self._engine.begin() as connection:
            self._upsert_runs.execute(connection, map(_to_row, runs))
            self._upsert_chunks.execute(connection, map(_chunk_row, chunks))

    def _get_run(self, run_id: str) -> ArchivedRun | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(runs).where(runs.c.run_id == run_id)).one_or_none()
        return _from_row(row) if row else None

    def _events(self, run_id: str, after_seq: int) -> list[EventChunk]:
        later = select(run_events).where(run_events.c.run_id == run_id, run_events.c.last_seq > after_seq)
        with self._engine.connect() as connection:
            rows = connection.execute(later.order_by(run_events.c.first_seq)).all()
        chunks: list[EventChunk] = []
        for row in rows:
            if row.last_seq > after_seq:  # else an earlier chunk holds all of it
                chunks.append(EventChunk(row.run_id, row.first_seq, row.last_seq, row.data))
                after_seq = row.last_seq
        return chunks

    def _list_runs(self, filter: RunFilter, page_size: int, page_token: str) -> tuple[list[ArchivedRun], str]:
        if page_size <= 0:
            raise ValueError(f"a page holds at least one run, not {page_size}")
        query = select(runs).where(*_conditions(filter))
        if page_token:
            position = tuple_(*(literal(part) for part in read_page_token(filter, page_token)))
            query = query.where(tuple_(runs.c.create_time, runs.c.run_id) < position)
        query = query.order_by(runs.c.create_time.desc(), runs.c.run_id.desc()).limit(page_size + 1)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        page = rows[:page_size]
        more = len(rows) > page_size
        token = make_page_token(filter, page[-1].create_time, page[-1].run_id) if more else ""
        return [_from_row(row) for row in page], token

    def _delete_before(self, time: datetime, limit: int) -> int:
        ended = select(runs.c.run_id).where(runs.c.end_time < to_micros(time)).order_by(runs.c.end_time).limit(limit)
        with self._engine.begin() as connection:
            run_ids = connection.scalars(ended).all()
            connection.execute(delete(run_events).where(run_events.c.run_id.in_(run_ids)))
            connection.execute(delete(runs).where(runs.c.run_id.in_(run_ids)))
        return len(run_ids)


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
    except (DBAPIError, OSError) as error:
        raise ArchiveUnavailable(f"the archive cannot be used: {error}") from error


def _conditions(filter: RunFilter) -> Iterator[ColumnElement[bool]]:
    yield runs.c.namespace == filter.namespace
    if filter.graph_name is not None:
        yield runs.c.graph_name == filter.graph_name
    if filter.states:
        yield runs.c.state.in_(filter.states)
    if filter.created_after is not None:
        yield runs.c.create_time >= to_micros(filter.created_after)
    if filter.created_before is not None:
        yield runs.c.create_time < to_micros(filter.created_before)
    if filter.parent is not None:
        yield runs.c.parent == filter.parent
    for key, value in filter.labels:
        yield has_label(key, value)
    if filter.text is not None:
        yield contains_text(filter.text)


def _chunk_row(chunk: EventChunk) -> dict[str, Any]:
    return {
        "run_id": chunk.run_id,
        "first_seq": chunk.first_seq,
        "last_seq": chunk.last_seq,
        "data": chunk.data,
    }


def _to_row(run: ArchivedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "namespace": run.namespace,
        "graph_name": run.graph_name,
        "graph_version": run.graph_version,
        "state": run.state,
        "principal": run.principal,
        "request_key": run.request_key,
        "request_digest": run.request_digest,
        "parent": run.parent,
        "labels": encode_labels(run.labels),
        "failure_text": run.failure_text,
        "create_time": to_micros(run.create_time),
        "end_time": None if run.end_time is None else to_micros(run.end_time),
        "last_event_seq": run.last_event_seq,
    }


def _from_row(row: Row[Any]) -> ArchivedRun:
    values = dict(row._mapping)
    values["labels"] = json.loads(row.labels)
    values["create_time"] = from_micros(row.create_time)
    values["end_time"] = None if row.end_time is None else from_micros(row.end_time)
    return ArchivedRun(**values)


def _create_tables(engine: Engine) -> None:
    if engine.dialect.name == "sqlite" and engine.url.database:
        path = Path(engine.url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds users' data; SQLite's side files follow it
    with engine.begin() as connection:
        if not inspect(connection).has_table(schema_version.name):
            metadata.create_all(connection)
            connection.execute(schema_version.insert().values(version=VERSION))
        found = connection.scalar(select(schema_version.c.version))
    if found != VERSION:
        raise ArchiveIncompatible(f"the archive has tables of version {found}, not {VERSION}: use a matching antiphon")


def _make_durable(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4096"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
