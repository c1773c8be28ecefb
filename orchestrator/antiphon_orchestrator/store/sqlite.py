"""The embedded backend of the store: one SQLite file, group commit, no thread.

Callers put requests into a bounded queue; the event loop serves it once an iteration: what reads, then all waiting
transactions as one group with one fsync. There is no timer: when idle a commit starts at once; under load everything
that came while the last one was made durable shares the next fsync.

The statements run on the loop. A thread would let it run on meanwhile, but under load the loop holds the interpreter
lock, and the thread has to win it back for every statement and for its answer: commits of 0.3 ms took 10 ms and more,
and could starve for seconds. The kernel makes them durable while the loop goes on (`datasync`), and until it has,
nothing that came after them is looked at: nobody sees what a power failure could still undo.

The file is locked for as long as it is open; opening it ends the leases of the process that had it before. A watcher
holds no queue: it reads history, is woken when a group changed something under its prefix, and reads on.

Any failure of the file other than a lack of space stops the store for good: what an unsynced page holds after an I/O
error is unknown, and only opening the file again tells. `run` raises then, so that the process ends and is restarted.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from .. import telemetry
from . import keys
from .file import cause, connect, leave_syncing, log_of, opened, unusable
from .leases import Leases
from .port import (
    PROGRESS,
    CommitResult,
    RangeResult,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Txn,
    UnwatchedPrefix,
    WatchBatch,
    check,
    prefix_end,
)
from .tables import Tables

log = telemetry.logger("store")

T = TypeVar("T")
_Reply = asyncio.Future[Any]

_CLOSED = "the store is closed"
_GROUP_TXNS = 512
_GROUP_BYTES = 16_777_216


@dataclass(slots=True)
class _Commit:
    """A transaction that waits for the next group."""

    txn: Txn
    size: int
    reply: _Reply


@dataclass(slots=True)
class _Call:
    """Anything else to be done between groups."""

    run: Callable[[], object]
    reply: _Reply


class Sync(Protocol):
    """See `datasync.DataSync`."""

    def begin(self, done: Callable[[OSError | None], None]) -> None: ...

    def close(self) -> None: ...


def _by_kernel(log: Path) -> Sync:
    from .datasync import DataSync  # a store in a cluster needs none of it

    return DataSync(log)


class SqliteStore:
    """A `Store` in one file. Use: `async with SqliteStore(path) as store`, and `store.run()` in the task group.

    `unwatched`: prefixes without history, which cannot be watched. `max_bytes`: size limit of the file (None: the
    disk's). History keeps `history_revisions` revisions and about `history_bytes` of values. `queue_limit`: requests
    under way; further callers wait for their turn. `clock`: monotonic seconds. `open_file`: opens the database.
    `sync`: makes its log durable; where that raises OSError, the loop waits for the disk.
    """

    shared = False

    def __init__(
        self,
        path: Path,
        *,
        unwatched: tuple[bytes, ...] = keys.UNWATCHED,
        max_bytes: int | None = None,
        history_revisions: int = 10_000,
        history_bytes: int = 67_108_864,
        queue_limit: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        open_file: Callable[[Path], sqlite3.Connection] = connect,
        sync: Callable[[Path], Sync] = _by_kernel,
    ) -> None:
        self._path = path
        self._unwatched = unwatched
        self.max_bytes = max_bytes
        self._history_revisions = history_revisions
        self._history_bytes = history_bytes
        self._clock = clock
        self._open_file = open_file
        self._make_sync = sync
        self._sync: Sync | None = None
        self._durable = asyncio.Event()
        self._durable.set()
        self._unanswered: list[tuple[_Reply, object]] = []
        """Answers that wait until what was written is durable; so do those who watch."""
        self._changed: list[bytes] = []
        self._requests: deque[_Commit | _Call] = deque()
        self._turn_due = False
        self._file = ExitStack()
        self._expiry: asyncio.TimerHandle | None = None
        self._slots = asyncio.Semaphore(queue_limit)
        self._watchers: set[_Watcher] = set()
        self._revision = 0
        self._refusal: str | None = "the store is not open"
        self._failure: Exception | None = None
        self._stopped = asyncio.Event()

    async def open(self) -> None:
        """Opens the file, creating it if needed; once per object. Raises StoreLocked or StoreUnavailable."""
        connection = self._file.enter_context(opened(self._path, self._open_file))
        try:
            self._tables = Tables(
                connection,
                unwatched=self._unwatched,
                history_revisions=self._history_revisions,
                history_bytes=self._history_bytes,
                max_bytes=self.max_bytes,
            )
            self._leases = Leases(self._clock)
            self._revision = self._tables.revision
            self._delete_leased(None)
            self._notice()
            self._sync = self._overlapped(connection)
        except Exception as error:
            self._file.close()
            if isinstance(error, sqlite3.Error):
                raise unusable(self._path, error) from error
            raise
        self._refusal = None

    async def close(self) -> None:
        """See `Store.close`."""
        if self._refusal is not None:
            if self._refusal is _CLOSED:
                await self._stopped.wait()
            return
        self._refusal = _CLOSED
        try:
            await self._durable.wait()
            while self._requests:
                self._turn()
                await self._durable.wait()
        finally:
            if not self._stopped.is_set():  # else its file has failed meanwhile, as `run` says
                self._stop(_CLOSED, None)

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
        return cast(CommitResult, await self._ask(lambda reply: _Commit(txn, size, reply)))

    def under_way(self) -> None:
        """See `Store.under_way`."""

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        """See `Store.range`."""
        return await self._call(lambda: self._tables.range(start, end, limit))

    def watch(self, prefix: bytes, from_revision: int = 0, *, before: bool = False) -> AsyncGenerator[WatchBatch, None]:
        """See `Store.watch`."""
        for unwatched in self._unwatched:
            if prefix.startswith(unwatched) or unwatched.startswith(prefix):
                raise UnwatchedPrefix(f"no history is kept under {unwatched!r}, so {prefix!r} cannot be watched")
        return self._watch(_Watcher(prefix, from_revision or self._revision + 1), before)

    async def grant(self, ttl_seconds: int) -> int:
        """See `Store.grant`."""
        return await self._call(lambda: self._leases.grant(ttl_seconds))

    async def keep_alive(self, lease: int) -> None:
        """See `Store.keep_alive`."""
        await self._call(lambda: self._leases.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""

        def revoke() -> None:
            self._leases.require(lease)
            self._end_lease(lease)

        await self._call(revoke)

    async def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        await self._call(lambda: self._tables.compact(revision))

    async def size(self) -> int:
        """See `Store.size`."""
        return await self._call(self._tables.size)

    async def _call(self, run: Callable[[], T]) -> T:
        return cast(T, await self._ask(lambda reply: _Call(run, reply)))

    async def _ask(self, request: Callable[[_Reply], _Commit | _Call]) -> object:
        await self._slots.acquire()
        if self._refusal is not None:
            self._slots.release()
            raise self._unavailable()
        reply: _Reply = asyncio.get_running_loop().create_future()
        self._requests.append(request(reply))
        self._schedule()
        return await reply

    def _overlapped(self, connection: sqlite3.Connection) -> Sync | None:
        try:
            sync = self._make_sync(log_of(self._path))
        except (OSError, ImportError) as error:
            log.info("store_waits_for_disk", cause=str(error))
            return None
        self._file.callback(sync.close)
        leave_syncing(connection)
        return sync

    def _schedule(self) -> None:
        if not self._turn_due and self._durable.is_set():
            self._turn_due = True
            # After all that is ready to run now: their transactions belong to the same group.
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Serves what waits, up to one group: reads first, which see what was answered before them, then commits."""
        self._turn_due = False
        if self._stopped.is_set() or not self._durable.is_set():
            return
        calls: list[_Call] = []
        commits: list[_Commit] = []
        size = 0
        while self._requests and size < _GROUP_BYTES and len(calls) + len(commits) < _GROUP_TXNS:
            request = self._requests.popleft()
            if isinstance(request, _Call):
                calls.append(request)
            else:
                commits.append(request)
                size += request.size
        answered: list[tuple[_Reply, object]] = []
        before = self._tables.written
        try:
            self._expire()
            for call in calls:
                answered.append((call.reply, _outcome(call.run)))
            if commits:
                outcomes, changed = self._tables.commit([commit.txn for commit in commits], self._leases.require)
                answered += zip((commit.reply for commit in commits), outcomes, strict=True)
                self._changed += changed
        except Exception as error:
            self._unanswered = answered
            replies = {reply for reply, _ in answered}
            unserved: list[_Commit | _Call] = [*calls, *commits]
            self._requests.extend(request for request in unserved if request.reply not in replies)
            self._fail(error)
            return
        if self._sync is None or self._tables.written == before:
            self._go_on(answered)
            return
        self._unanswered = answered
        self._durable.clear()
        try:
            self._sync.begin(self._synced)
        except OSError as error:
            self._synced(error)

    def _synced(self, failure: OSError | None) -> None:
        """What the last turn has written is durable, or cannot be made so."""
        if failure is not None:
            self._fail(failure)
            return
        self._durable.set()
        answered, self._unanswered = self._unanswered, []
        self._go_on(answered)

    def _go_on(self, answered: list[tuple[_Reply, object]]) -> None:
        self._notice()
        self._answer(answered)
        self._set_expiry()
        if self._requests:
            self._schedule()

    def _fail(self, error: Exception) -> None:
        self._stop(f"the store {self._path} has failed and must be opened again: {cause(error)}", error)

    def _answer(self, outcomes: list[tuple[_Reply, object]]) -> None:
        for reply, outcome in outcomes:
            self._slots.release()
            if reply.done():
                continue  # its caller was cancelled, and has to take the outcome as unclear
            if isinstance(outcome, Exception):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)

    def _notice(self) -> None:
        """Tells those who watch how far the store is, and what has changed."""
        changed, self._changed = self._changed, []
        if self._revision == self._tables.revision:
            return
        self._revision = self._tables.revision
        for watcher in self._watchers:
            watcher.notice(changed, self._revision)

    def _set_expiry(self) -> None:
        """Wakes the store when the next lease ends, unless something else does before."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        seconds = self._leases.until_next()
        if seconds is not None:
            self._expiry = asyncio.get_running_loop().call_later(seconds, self._schedule)

    def _expire(self) -> None:
        for lease in self._leases.expired():
            try:
                self._end_lease(lease)
            except StoreFull:
                return  # they stay expired, so nothing can be put under them, and are ended when there is space

    def _end_lease(self, lease: int) -> None:
        """Deletes the keys of a lease, then the lease. Raises StoreFull, and the lease stays to be ended later."""
        self._delete_leased(lease)
        self._leases.forget(lease)

    def _delete_leased(self, lease: int | None) -> None:
        outcomes, changed = self._tables.commit([self._tables.leased(lease)], self._leases.require)
        for outcome in outcomes:
            if not isinstance(outcome, CommitResult):
                raise outcome
        self._changed += changed

    async def _watch(self, watcher: _Watcher, before: bool) -> AsyncGenerator[WatchBatch, None]:
        start, end = watcher.prefix, prefix_end(watcher.prefix)
        told = watcher.next_revision
        self._watchers.add(watcher)
        try:
            while True:
                watcher.changed.clear()  # before the read: a change that the read misses sets it again
                read = partial(self._tables.events, start, end, watcher.next_revision, before)
                events, complete = await self._call(read)
                watcher.next_revision = max(watcher.next_revision, complete + 1)
                if events:
                    told = events[-1].kv.mod_revision + 1
                    yield WatchBatch(events, told - 1)
                    continue
                while not await watcher.wait():
                    if watcher.next_revision > told:
                        told = watcher.next_revision
                        yield WatchBatch((), told - 1)
        finally:
            self._watchers.discard(watcher)

    def _stop(self, refusal: str, failure: Exception | None) -> None:
        """The end, for whatever reason: nobody is left waiting."""
        self._refusal, self._failure = refusal, failure
        if self._expiry is not None:
            self._expiry.cancel()
        unclear = [*(reply for reply, _ in self._unanswered), *(request.reply for request in self._requests)]
        self._requests.clear()
        self._unanswered = []
        self._durable.set()
        for reply in unclear:
            self._answer([(reply, failure if isinstance(failure, StoreError) else self._unavailable())])
        try:
            self._file.close()
        finally:
            for watcher in self._watchers:
                watcher.changed.set()
            self._stopped.set()

    def _unavailable(self) -> StoreUnavailable:
        error = StoreUnavailable(self._refusal)
        error.__cause__ = self._failure
        return error


def _outcome(run: Callable[[], object]) -> object:
    try:
        return run()
    except (StoreError, ValueError) as error:
        return error


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

    async def wait(self) -> bool:
        """Whether something changed under the prefix, within the time after which progress is told."""
        self._waiting = True
        try:
            async with asyncio.timeout(PROGRESS):
                await self.changed.wait()
        except TimeoutError:
            return False  # it moves on while that is told
        self._waiting = False
        return True
