"""The tables of the embedded store and the rules of a transaction: synchronous, one connection, one thread.

A group of transactions is evaluated in order against rows held in memory and written as its net effect, under one
COMMIT. That keeps the number of SQL statements per group small and constant, which matters more than their cost: each
statement gives up the interpreter lock, which another thread may then keep for a switch interval (5 ms). So rows are
written by multi-row statements, not by executemany, and a failed transaction needs no savepoint.

Invariants: `_known` holds only what is committed, or will be with the current group; whoever rolls back empties it.
The row of the empty key, which no caller can name, carries the store's revision in `mod_revision`.
"""

from __future__ import annotations

import operator
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from .port import (
    UP_TO_LAST,
    CommitResult,
    Compacted,
    Compare,
    Delete,
    EventType,
    KeyValue,
    Operator,
    Put,
    RangeResult,
    StoreError,
    StoreFull,
    Target,
    Txn,
    WatchEvent,
    covers,
    prefix_end,
)
from .statements import DELETE, EVENT, LOAD, OLDEST_TO_FORGET, PUT, SMALL_VALUE, between, pieces

_Row = tuple[bytes, bytes | None, int, int, int, int]
"""key, value (None: too large to keep in memory, read it), create revision, mod revision, version, lease."""

_EventRow = tuple[int, int, bytes, bytes, int, int, int, bytes | None]

_REVISION_KEY = b""
_MAX_KNOWN = 32_768
_BATCH_EVENTS = 1000
_BATCH_BYTES = 1_048_576
_RESERVE_BYTES = 4_194_304
_OPERATORS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.GREATER: operator.gt,
    Operator.LESS: operator.lt,
}
_COLUMN = {Target.CREATE_REVISION: 2, Target.MOD_REVISION: 3, Target.VERSION: 4}


class Tables:
    """State of the store in one open connection, whose transactions it begins and ends.

    `unwatched`: prefixes without history. History keeps the last `history_revisions` revisions that hold events, and
    no more than about `history_bytes` of their values, nor than an eighth of `max_bytes`. `max_bytes`: size limit of
    what is in use; only transactions that just delete may exceed it, by a small reserve, and those that say so by half
    of that.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        unwatched: tuple[bytes, ...],
        history_revisions: int,
        history_bytes: int,
        max_bytes: int | None,
    ) -> None:
        self._sql = connection
        self._unwatched = unwatched
        self._history_revisions = history_revisions
        # What is deleted is in history for a while: a store that is full would not have room for it.
        self._history_bytes = history_bytes if max_bytes is None else min(history_bytes, max_bytes // 8)
        (self._page_size,) = connection.execute("PRAGMA page_size").fetchone()
        self._max_pages = max_bytes // self._page_size if max_bytes is not None else None
        self._limit_pages(0)
        self._reserving = False
        self.written = 0
        """How often something was written."""
        (self.revision,) = connection.execute("SELECT mod_revision FROM kv WHERE key = x''").fetchone()
        (self._first_revision,) = connection.execute("SELECT first_revision FROM history").fetchone()
        self._known: dict[bytes, _Row | None] = {}
        self._fleeting: set[bytes] = set()
        self._writes: dict[bytes, _Row | None] = {}
        self._events: list[_EventRow] = []
        # What history gained since its bounds were last looked at; full at first, because the last process may have
        # stopped just before it would have looked.
        self._new_events = history_revisions
        self._new_bytes = 0

    def commit(
        self, txns: Sequence[Txn], require_lease: Callable[[int], None]
    ) -> tuple[list[CommitResult | StoreError], list[bytes]]:
        """Evaluates transactions in order and commits what they change, at once. When it is durable, the store knows.

        Returns one outcome each (StoreFull and LeaseNotFound are outcomes) and the watched keys that changed. When
        the group does not fit, each transaction is tried alone, so that the deletes among them go through.
        """
        try:
            return self._commit(txns, require_lease)
        except StoreFull:
            outcomes: list[CommitResult | StoreError] = []
            changed: list[bytes] = []
            for txn in txns:
                try:
                    results, keys = self._commit_alone(txn, require_lease)
                    outcomes += results
                    changed += keys
                except StoreFull as full:
                    outcomes.append(full)
            return outcomes, changed

    def range(self, start: bytes, end: bytes, limit: int) -> RangeResult:
        """See `Store.range`."""
        where, bounds = between(start, end)
        rows = self._sql.execute(
            "SELECT key, value, create_revision, mod_revision, version, lease FROM kv"
            f" WHERE {where} ORDER BY key LIMIT ?",
            (*bounds, limit + 1 if limit else -1),
        ).fetchall()
        more = bool(limit) and len(rows) > limit
        return RangeResult(tuple(KeyValue(*row) for row in rows[: limit or None]), self.revision, more)

    def events(self, start: bytes, end: bytes, from_revision: int, before: bool) -> tuple[tuple[WatchEvent, ...], int]:
        """The next events of the keys in [start, end), whole revisions only, and the revision they are complete to;
        with what was there `before`, if that is asked for."""
        if from_revision < self._first_revision:
            raise Compacted(self._first_revision)
        where, bounds = between(start, end)
        cursor = self._sql.execute(
            f"SELECT revision, key, value, create_revision, version, lease, {'before' if before else 'NULL'}"
            f" FROM events WHERE revision >= ? AND {where} ORDER BY revision, place",
            (from_revision, *bounds),
        )
        events: list[WatchEvent] = []
        size, complete = 0, self.revision
        for revision, key, value, create_revision, version, lease, former in cursor:
            last = events[-1].kv.mod_revision if events else revision
            if revision != last and (len(events) >= _BATCH_EVENTS or size >= _BATCH_BYTES):
                complete = last
                break
            kind = EventType.PUT if version else EventType.DELETE
            events.append(WatchEvent(kind, KeyValue(key, value, create_revision, revision, version, lease), former))
            size += len(value) + len(former or b"")
        cursor.close()
        return tuple(events), complete

    def leased(self, lease: int | None) -> Txn:
        """The transaction that deletes the keys of a lease, or of all leases (None)."""
        where, values = ("lease != 0", ()) if lease is None else ("lease != 0 AND lease = ?", (lease,))
        return Txn(ops=tuple(Delete(key) for (key,) in self._sql.execute(f"SELECT key FROM kv WHERE {where}", values)))

    def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        if revision > self.revision:
            raise ValueError(f"revision {revision} is in the future; the store is at {self.revision}")
        if revision > self._first_revision:
            with self._transaction():
                self._begin()
                self._forget_before(revision)

    def size(self) -> int:
        """Bytes of the pages in use."""
        (pages,) = self._sql.execute("PRAGMA page_count").fetchone()
        (free,) = self._sql.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * int(self._page_size)

    def _commit_alone(
        self, txn: Txn, require_lease: Callable[[int], None]
    ) -> tuple[list[CommitResult | StoreError], list[bytes]]:
        if all(isinstance(op, Delete) for op in txn.ops):
            reserve = _RESERVE_BYTES
        elif txn.spare:
            reserve = _RESERVE_BYTES // 2
        else:
            return self._commit((txn,), require_lease)
        self._reserving = True
        try:
            self._limit_pages(reserve)
            return self._commit((txn,), require_lease)
        finally:
            self._reserving = False
            self._limit_pages(0)

    def _commit(
        self, txns: Sequence[Txn], require_lease: Callable[[int], None]
    ) -> tuple[list[CommitResult | StoreError], list[bytes]]:
        before = self.revision
        with self._transaction():
            self._load(txns)
            outcomes = [self._evaluate(txn, require_lease) for txn in txns]
            changed = [event[2] for event in self._events]
            if self.revision != before:
                self._writes[_REVISION_KEY] = (_REVISION_KEY, b"", 1, self.revision, 1, 0)
                self._flush()
                self._bound_history()
                self._leave_reserve()
        for key in self._fleeting:
            self._known.pop(key, None)
        self._fleeting.clear()
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        return outcomes, changed

    def _load(self, txns: Iterable[Txn]) -> None:
        """Makes every key that the transactions name known, with one read for the group."""
        named = {
            key
            for txn in txns
            for key in chain((c.key for c in txn.compares), (op.key for op in txn.ops), txn.otherwise_get)
        }
        unknown = [key for key in named if key not in self._known]
        self._known.update(dict.fromkeys(unknown))
        # Journal keys come once and go: they are forgotten after the group, and so are large values.
        self._fleeting.update(key for key in unknown if key.startswith(self._unwatched))
        for text, keys in pieces(LOAD, unknown):
            for row in self._sql.execute(text, keys):
                self._known[row[0]] = row

    def _evaluate(self, txn: Txn, require_lease: Callable[[int], None]) -> CommitResult | StoreError:
        for compare in txn.compares:
            if not self._holds(compare):
                observed = {key: self._key_value(key) for key in txn.otherwise_get}
                return CommitResult(False, self.revision, observed)
        try:
            for lease in {op.lease for op in txn.ops if isinstance(op, Put) and op.lease}:
                require_lease(lease)
        except StoreError as error:
            return error
        revision, touched = self.revision + 1, False
        for op in txn.ops:
            if isinstance(op, Put):
                self._put(op, revision)
                touched = True
            elif op.range_end:
                touched |= self._delete_range(op, revision)
            else:
                touched |= self._delete(op.key, revision)
        if touched:
            self.revision = revision
        return CommitResult(True, self.revision, {})

    def _holds(self, compare: Compare) -> bool:
        if compare.target is Target.VALUE:
            present = self._key_value(compare.key)
            return present is not None and _OPERATORS[compare.op](present.value, compare.value)
        row = self._known[compare.key]
        return _OPERATORS[compare.op](row[_COLUMN[compare.target]] if row else 0, compare.value)

    def _key_value(self, key: bytes) -> KeyValue | None:
        row = self._known[key]
        if row is None:
            return None
        value = row[1]
        if value is None:
            (value,) = self._sql.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return KeyValue(key, value, *row[2:])

    def _put(self, put: Put, revision: int) -> None:
        key, old = put.key, self._known[put.key]
        if not key.startswith(self._unwatched):
            version, created = (old[4] + 1, old[2]) if old else (1, revision)
            self._note(key, revision, put.value, created, version, put.lease)
        row = (key, put.value, old[2] if old else revision, revision, old[4] + 1 if old else 1, put.lease)
        self._known[key] = self._writes[key] = row
        if len(put.value) > SMALL_VALUE:
            self._fleeting.add(key)

    def _delete(self, key: bytes, revision: int) -> bool:
        if self._known[key] is None:
            return False
        if not key.startswith(self._unwatched):
            self._note(key, revision, b"", 0, 0, 0)
        self._known[key] = self._writes[key] = None
        return True

    def _note(self, key: bytes, revision: int, value: bytes, created: int, version: int, lease: int) -> None:
        """What is about to happen to a key, for those who watch, with what it has until then."""
        present = self._key_value(key)
        before = present.value if present is not None else None
        self._events.append((revision, len(self._events), key, value, created, version, lease, before))

    def _delete_range(self, delete: Delete, revision: int) -> bool:
        start, end = delete.key, delete.range_end
        if start >= end != UP_TO_LAST:
            return False
        self._flush()  # the statements below must see what the group did so far
        where, bounds = between(start, end)
        if any(_inside(start, end, prefix) for prefix in self._unwatched):
            # A journal trim needs no list of keys: nobody is told of them, and none is remembered past the group.
            for key in self._fleeting:
                if covers(delete, key):
                    self._known[key] = None
            return self._sql.execute(f"DELETE FROM kv WHERE {where}", bounds).rowcount > 0
        keys = [key for (key,) in self._sql.execute(f"SELECT key FROM kv WHERE {where} ORDER BY key", bounds)]
        self._known.update({key: (key, None, 0, 0, 0, 0) for key in keys})
        self._fleeting.update(keys)
        return any([self._delete(key, revision) for key in keys])

    def _flush(self) -> None:
        self._begin()
        puts = [row for row in self._writes.values() if row is not None]
        for text, rows in pieces(PUT, puts):
            self._sql.execute(text, tuple(chain.from_iterable(rows)))
        for text, keys in pieces(DELETE, [key for key, row in self._writes.items() if row is None]):
            self._sql.execute(text, keys)
        self._writes.clear()

    def _bound_history(self) -> None:
        for text, events in pieces(EVENT, self._events):
            self._sql.execute(text, tuple(chain.from_iterable(events)))
        self._new_events += len(self._events)
        self._new_bytes += sum(len(event[3]) + len(event[7] or b"") for event in self._events)
        self._events.clear()
        # Looking costs a scan of history, so only after it grew by an eighth.
        if self._new_events * 8 > self._history_revisions or self._new_bytes * 8 > self._history_bytes:
            bounds = (self._history_revisions, self._history_bytes)
            (forget,) = self._sql.execute(OLDEST_TO_FORGET, bounds).fetchone()
            if forget is not None:
                self._forget_before(forget + 1)
            self._new_events = self._new_bytes = 0

    def _forget_before(self, revision: int) -> None:
        self._sql.execute("DELETE FROM events WHERE revision < ?", (revision,))
        self._sql.execute("UPDATE history SET first_revision = ?", (revision,))
        self._first_revision = revision

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commits what was begun inside. When that fails, nothing of it is left, on disk or here."""
        before = self.revision, self._first_revision
        try:
            yield
            if self._sql.in_transaction:
                self._sql.execute("COMMIT")
                self.written += 1
        except (sqlite3.OperationalError, StoreFull) as error:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            self.revision, self._first_revision = before
            self._known.clear()
            self._fleeting.clear()
            self._writes.clear()
            self._events.clear()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise self._no_space() from error
            raise

    def _begin(self) -> None:
        if not self._sql.in_transaction:
            self._sql.execute("BEGIN IMMEDIATE")

    def _limit_pages(self, reserve_bytes: int) -> None:
        """Bounds the file's pages. `_limited`: what SQLite made of it, which is no less than there are."""
        if self._max_pages is not None:
            pages = self._max_pages + reserve_bytes // self._page_size
            (self._limited,) = self._sql.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    def _leave_reserve(self) -> None:
        """Keeps what may not use the reserve off the pages that a use of it has added to the file. Raises StoreFull."""
        if self._max_pages is None or self._reserving or self._limited <= self._max_pages:
            return
        if self.size() > self._max_pages * self._page_size:
            raise self._no_space()

    def _no_space(self) -> StoreFull:
        """SQLite has one code for a file at its limit and for a disk that is full: what has less left is it."""
        _, _, path = self._sql.execute("PRAGMA database_list").fetchone()
        free = shutil.disk_usage(Path(path).parent).free
        if self._max_pages is not None and self._limited * self._page_size - self.size() <= free:
            return StoreFull("the store has no space left within its limit; let runs end, or raise its limit")
        return StoreFull(f"the disk of the store has {free} bytes free; free some there")


def _inside(start: bytes, end: bytes, prefix: bytes) -> bool:
    limit = prefix_end(prefix)
    return start.startswith(prefix) and (limit == UP_TO_LAST or UP_TO_LAST != end <= limit)
