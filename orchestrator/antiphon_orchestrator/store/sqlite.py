"""The embedded backend of the store: one SQLite file, one thread that owns it, group commit.

Callers on the event loop put requests into a bounded queue. The thread takes whatever waits, commits it as one group
with one fsync, and hands all answers back with one wake-up of the loop. There is no timer: when idle, a commit starts
at once; under load, requests gather while the previous group is being written.

The file is locked for as long as it is open; opening it ends the leases of the process that had it before. A watcher
holds no queue: it reads history, is woken when a group changed something under its prefix, and reads on.

Any failure of the file other than a lack of space stops the store for good: what an unsynced page holds after an I/O
error is unknown, and only opening the file again tells. `run` raises then, so that the process ends and is restarted.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from . import keys
from .leases import Leases
from .port import (
    CommitResult,
    RangeResult,
    StoreError,
    StoreUnavailable,
    Txn,
    UnwatchedPrefix,
    WatchBatch,
    WatchEvent,
    check,
    prefix_end,
)
from .tables import Tables
from .writer import Call, Commit, Outcome, Writer, connect, opened

T = TypeVar("T")
_Reply = asyncio.Future[object]

_PATIENCE_SECONDS = 0.002
_GIVE_WAY_SECONDS = 0.001


class SqliteStore:
    """A `Store` in one file. Use: `async with SqliteStore(path) as store`, and `store.run()` in the task group.

    `unwatched`: prefixes without history, which cannot be watched. `max_bytes`: size limit of the file (None: the
    disk's). History keeps `history_revisions` revisions and about `history_bytes` of values. `queue_limit`: requests
    under way; further callers wait for their turn. `clock`: monotonic seconds. `open_file`: opens the database.
    """

    def __init__(
        self,
        path: Path,
        *,
        unwatched: tuple[bytes, ...] = (keys.LOG,),
        max_bytes: int | None = None,
        history_revisions: int = 10_000,
        history_bytes: int = 67_108_864,
        queue_limit: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        open_file: Callable[[Path], sqlite3.Connection] = connect,
    ) -> None:
        self._path = path
        self._unwatched = unwatched
        self._max_bytes = max_bytes
        self._history_revisions = history_revisions
        self._history_bytes = history_bytes
        self._clock = clock
        self._open_file = open_file
        self._requests: queue.SimpleQueue[Commit | Call | None] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(queue_limit)
        self._replies: set[_Reply] = set()
        self._watchers: set[_Watcher] = set()
        self._revision = 0
        self._refusal: str | None = "the store is not open"
        self._failure: Exception | None = None
        self._stopped = asyncio.Event()
        self._idle = threading.Event()
        self._watching_over = False

    async def open(self) -> None:
        """Opens the file, creating it if needed; once per object. Raises StoreLocked or StoreUnavailable."""
        self._refusal = None
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(loop,), name="store", daemon=True).start()
        await self._call(lambda _: None)

    async def close(self) -> None:
        """See `Store.close`."""
        if self._refusal is None:
            self._refusal = "the store is closed"
            self._requests.put(None)
            await self._stopped.wait()

    async def __aenter__(self) -> SqliteStore:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self) -> None:
        """Returns when the store is closed; raises StoreUnavailable as soon as its file has failed."""
        await self._stopped.wait()
        if self._failure is not None:
            raise self._unavailable()

    async def commit(self, txn: Txn) -> CommitResult:
        """See `Store.commit`."""
        size = check(txn)
        return cast(CommitResult, await self._ask(lambda reply: Commit(txn, size, reply)))

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        """See `Store.range`."""
        return await self._call(lambda writer: writer.tables.range(start, end, limit))

    def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchBatch]:
        """See `Store.watch`."""
        for unwatched in self._unwatched:
            if prefix.startswith(unwatched) or unwatched.startswith(prefix):
                raise UnwatchedPrefix(f"no history is kept under {unwatched!r}, so {prefix!r} cannot be watched")
        return self._watch(_Watcher(prefix, from_revision or self._revision + 1))

    async def grant(self, ttl_seconds: int) -> int:
        """See `Store.grant`."""
        return await self._call(lambda writer: writer.leases.grant(ttl_seconds))

    async def keep_alive(self, lease: int) -> None:
        """See `Store.keep_alive`."""
        await self._call(lambda writer: writer.leases.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""

        def revoke(writer: Writer) -> None:
            writer.leases.require(lease)
            writer.end_lease(lease)

        await self._call(revoke)

    async def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        await self._call(lambda writer: writer.tables.compact(revision))

    async def size(self) -> int:
        """See `Store.size`."""
        return await self._call(lambda writer: writer.tables.size())

    async def _call(self, run: Callable[[Writer], T]) -> T:
        return cast(T, await self._ask(lambda reply: Call(run, reply)))

    async def _ask(self, request: Callable[[_Reply], Commit | Call]) -> object:
        await self._slots.acquire()
        if self._refusal is not None:
            self._slots.release()
            raise self._unavailable()
        reply: _Reply = asyncio.get_running_loop().create_future()
        self._replies.add(reply)
        self._idle.clear()
        self._requests.put(request(reply))
        if not self._watching_over:
            self._watching_over = True
            reply.get_loop().call_later(_PATIENCE_SECONDS, self._give_way)
        return await reply

    def _give_way(self) -> None:
        """Lets the thread have the interpreter while requests wait for longer than a commit should take.

        A saturated event loop releases the interpreter lock only in polls that do not wait. Each of them wakes the
        thread too late to get the lock and starts its waiting time anew, so it may starve for seconds (13 s for one
        commit were measured), whatever the switch interval.
        """
        self._watching_over = bool(self._replies)
        if self._replies:
            self._idle.wait(_GIVE_WAY_SECONDS)
            asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._give_way)

    async def _watch(self, watcher: _Watcher) -> AsyncIterator[WatchBatch]:
        start, end = watcher.prefix, prefix_end(watcher.prefix)
        self._watchers.add(watcher)
        try:
            while True:
                watcher.changed.clear()  # before the read: a change that the read misses sets it again
                read = partial(_events, start, end, watcher.next_revision)
                events, complete = await self._call(read)
                watcher.next_revision = max(watcher.next_revision, complete + 1)
                if events:
                    yield WatchBatch(events, events[-1].kv.mod_revision)
                else:
                    await watcher.wait()
        finally:
            self._watchers.discard(watcher)

    def _answer(self, outcomes: list[Outcome], changed: list[bytes], revision: int) -> None:
        for reply, outcome in outcomes:
            self._replies.discard(reply)
            self._slots.release()
            if reply.done():
                continue  # its caller was cancelled, and has to take the outcome as unclear
            if isinstance(outcome, Exception):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)
        if revision > self._revision:
            self._revision = revision
            for watcher in self._watchers:
                watcher.notice(changed, revision)

    def _stop(self, failure: Exception | None) -> None:
        if failure is not None:
            self._failure = failure
            self._refusal = f"the store {self._path} has failed and must be opened again: {failure}"
        replies, self._replies = self._replies, set()
        for reply in replies:
            self._slots.release()
            if not reply.done():
                reply.set_exception(failure if isinstance(failure, StoreError) else self._unavailable())
        for watcher in self._watchers:
            watcher.changed.set()
        self._stopped.set()

    def _unavailable(self) -> StoreUnavailable:
        error = StoreUnavailable(self._refusal)
        error.__cause__ = self._failure
        return error

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread. What it has to tell reaches the event loop in order, through call_soon_threadsafe only."""

        def answer(outcomes: list[Outcome], changed: list[bytes], revision: int) -> None:
            loop.call_soon_threadsafe(self._answer, outcomes, changed, revision)

        failure: Exception | None = None
        try:
            with opened(self._path, self._open_file) as connection:
                tables = Tables(
                    connection,
                    unwatched=self._unwatched,
                    history_revisions=self._history_revisions,
                    history_bytes=self._history_bytes,
                    max_bytes=self._max_bytes,
                )
                Writer(tables, Leases(self._clock), self._requests, answer, self._idle).run()
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._stop, failure)


def _events(start: bytes, end: bytes, from_revision: int, writer: Writer) -> tuple[tuple[WatchEvent, ...], int]:
    return writer.tables.events(start, end, from_revision)


class _Watcher:
    """Where one watch stands. While it waits and nothing under its prefix changes, it moves on with the store, so
    that compaction does not overtake a watch that has missed nothing."""

    def __init__(self, prefix: bytes, next_revision: int) -> None:
        self.prefix = prefix
        self.next_revision = next_revision
        self.changed = asyncio.Event()
        self._waiting = False

    def notice(self, changed: list[bytes], revision: int) -> None:
        if any(key.startswith(self.prefix) for key in changed):
            self.changed.set()
        elif self._waiting and not self.changed.is_set():
            self.next_revision = max(self.next_revision, revision + 1)

    async def wait(self) -> None:
        self._waiting = True
        await self.changed.wait()
        self._waiting = False
