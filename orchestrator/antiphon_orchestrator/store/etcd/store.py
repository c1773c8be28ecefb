"""The etcd backend of the store.

etcd groups transactions itself: each is sent as it comes, within a bound, and raft and its fsync carry what arrives
together; only what nobody watches is joined before, under load (`grouping.py`). A commit is sent once; whether one
without an answer took place is the caller's to find out, by sending it again. What changes nothing is tried again here,
at one endpoint after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable

from antiphon.etcd.v3 import rpc_pb2

from ... import telemetry
from .. import keys
from ..port import (
    CommitResult,
    Compacted,
    Delete,
    InvalidTxn,
    KeyValue,
    LeaseNotFound,
    RangeResult,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    Txn,
    UnwatchedPrefix,
    WatchBatch,
    check,
)
from .address import EtcdAddress
from .codec import Keyspace
from .grouping import Groups, lies_under
from .health import Member, keeps_deletes, look, require_usable
from .history import History
from .room import make_room
from .watching import Watch
from .wire import AnswerTooLarge, Line, credentials

log = telemetry.logger("store")

PERIOD = 5.0
"""Seconds between two looks at history and room, more or less."""

_LONGEST_WAIT = 600.0
"""Seconds between two attempts to make room where there is none."""

_KEEP_ALIVE_SECONDS = 0.5
"""In which a member has to renew a lease, or else the next is asked: no caller can wait for a call's whole deadline."""

_FIRST_PAGE = 64
_LARGEST_PAGE = 4096
_PAGE_BYTES = 4 * 1024 * 1024
_CLOSING_SECONDS = 2.0
_UNSEEN = (*keys.UNWATCHED, keys.STORE_MARK)
"""Where a deletion is nobody's to watch."""


class EtcdStore:
    """A `Store` in an etcd cluster. Use: `async with EtcdStore(address) as store`, and `store.run()` in the task group.

    `unwatched`: prefixes that cannot be watched, as in the embedded store. `max_bytes`: of the cluster's quota, no more
    than this is used. `queue_limit`: transactions under way; further callers wait for their turn. Leases that were
    granted here end when it is closed.
    """

    shared = True

    def __init__(
        self,
        address: EtcdAddress,
        *,
        unwatched: tuple[bytes, ...] = keys.UNWATCHED,
        max_bytes: int | None = None,
        queue_limit: int = 1024,
    ) -> None:
        self.max_bytes = max_bytes
        self._address = address
        self._keyspace = Keyspace(address.prefix)
        self._unwatched = unwatched
        self._queue_limit = queue_limit
        self._slots = asyncio.Semaphore(queue_limit)
        self._groups = Groups(self._commit, keys.UNWATCHED)
        self._revision = 0
        self._leases: set[int] = set()
        self._stopped = asyncio.Event()
        self._open = False
        self._full = asyncio.Event()  # the quota was reached
        # The newest revision known here that deleted something, and nothing but what nobody watches.
        self._trimmed = 0

    async def open(self) -> None:
        """Dials the cluster; once per object. Raises StoreRefused or StoreUnavailable, each with a remedy."""
        secret = credentials(self._address)
        self._commits, self._watches, self._others = (Line(self._address, secret) for _ in range(3))
        self._open = True
        try:
            members = await look(self._others.endpoints, self._address)
            self._quota = require_usable(members)
            self.max_bytes = min(self._quota, self.max_bytes or self._quota)
            try:
                await self._newest()
            except StoreUnavailable as error:
                raise StoreUnavailable(
                    f"etcd decides nothing without most of its members: start them ({error})"
                ) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See `Store.close`. Leases that were granted here are revoked, so that nobody waits for their end."""
        if not self._open:
            return
        self._open = False
        # What is under way may be unclear, and leases end by themselves; neither is waited for for long.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                for _ in range(self._queue_limit):
                    await self._slots.acquire()
                await asyncio.gather(*map(self._revoke, self._leases), return_exceptions=True)
        await asyncio.gather(self._commits.close(), self._watches.close(), self._others.close())
        self._stopped.set()

    async def __aenter__(self) -> EtcdStore:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self) -> None:
        """See `Store.run`: bounds the history of the cluster, and makes room when its quota is reached."""
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self._keep())
            await self._stopped.wait()
            keeping.cancel()

    async def commit(self, txn: Txn) -> CommitResult:
        """See `Store.commit`."""
        check(txn)
        self._require_open()
        async with self._slots:
            return await self._groups.commit(txn)

    def under_way(self) -> Awaitable[object] | None:
        """See `Store.under_way`."""
        return self._groups.under_way()

    async def _commit(self, txn: Txn) -> CommitResult:
        request = self._keyspace.txn(txn)
        try:
            response = await self._commits.once("KV/Txn", request, rpc_pb2.TxnResponse)
        except StoreFull:
            self._full.set()
            raise
        self._seen(response.header)
        unseen = all(isinstance(op, Delete) and lies_under(op, _UNSEEN) for op in txn.ops)
        if unseen and any(answer.response_delete_range.deleted for answer in response.responses):
            self._trimmed = max(self._trimmed, response.header.revision)
        return self._keyspace.result(txn, response)

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        """See `Store.range`. Read in pages, all at the revision of the first; the size of a page follows that of its
        values, so that no answer is too large."""
        self._require_open()
        while True:
            try:
                return await self._range(start, end, limit)
            except Compacted:
                continue  # between two pages; what is newest now can be read

    def watch(self, prefix: bytes, from_revision: int = 0, *, before: bool = False) -> AsyncGenerator[WatchBatch, None]:
        """See `Store.watch`. From now on: after the newest revision that this process knows of."""
        for unwatched in self._unwatched:
            if prefix.startswith(unwatched) or unwatched.startswith(prefix):
                raise UnwatchedPrefix(f"no history is kept under {unwatched!r}, so {prefix!r} cannot be watched")
        self._require_open()
        return Watch(self._watches, self._keyspace, prefix, from_revision or self._revision + 1, before).batches()

    async def grant(self, ttl_seconds: int) -> int:
        """See `Store.grant`. etcd lengthens a lease that is shorter than its elections take."""
        if ttl_seconds <= 0:
            raise ValueError(f"a lease needs a positive time, not {ttl_seconds} s")
        self._require_open()
        # Our own id: asking twice for it makes one lease.
        lease = secrets.randbits(62) + 1
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_seconds, ID=lease)

        async def attempt() -> None:
            try:
                await self._others.once("Lease/LeaseGrant", request, rpc_pb2.LeaseGrantResponse)
            except StoreFull:
                self._full.set()
                raise
            except InvalidTxn as error:
                if "already exists" not in str(error):
                    raise

        await self._others.again(attempt)
        self._leases.add(lease)
        return lease

    async def keep_alive(self, lease: int) -> None:
        """See `Store.keep_alive`."""
        self._require_open()

        async def attempt() -> int:
            endpoint = self._others.current()
            try:
                async with endpoint.stream("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveResponse) as stream:
                    await stream.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease), _KEEP_ALIVE_SECONDS)
                    return (await stream.read(_KEEP_ALIVE_SECONDS)).TTL
            except StoreUnavailable:
                self._others.leave(endpoint)
                raise

        if not await self._others.again(attempt):
            self._leases.discard(lease)
            raise LeaseNotFound(f"lease {lease} does not exist or has expired")

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        self._require_open()
        await self._revoke(lease)
        self._leases.discard(lease)

    async def compact(self, revision: int) -> None:
        """See `Store.compact`. It is the whole cluster's history, also of what is not ours."""
        self._require_open()
        if revision > (newest := await self._newest()):
            raise ValueError(f"revision {revision} is in the future; the store is at {newest}")
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        try:
            await self._others.again(lambda: self._others.once("KV/Compact", request, rpc_pb2.CompactionResponse))
        except Compacted:
            return  # by whomever
        except StoreRefused as refused:
            raise StoreRefused(
                "etcd lets nobody but root compact: give our user the role root, or start etcd with "
                "--auto-compaction-mode=periodic --auto-compaction-retention=10m"
            ) from refused

    async def size(self) -> int:
        """See `Store.size`: of the member that is asked."""
        self._require_open()
        request = rpc_pb2.StatusRequest()
        status = await self._others.again(
            lambda: self._others.once("Maintenance/Status", request, rpc_pb2.StatusResponse)
        )
        return status.dbSizeInUse

    async def members(self) -> list[Member]:
        """How every endpoint is."""
        self._require_open()
        return await look(self._others.endpoints, self._address)

    async def _keep(self) -> None:
        """Never ends by itself. What goes wrong is logged once, and tried again."""
        history = History(self, self._quota)
        in_trouble = False
        wait = PERIOD
        while True:
            try:
                if self._full.is_set():
                    await self._forget()
                    if await make_room(self._others, self._address):
                        self._full.clear()
                        wait = PERIOD
                await history.look()
                in_trouble = False
            except StoreError as error:
                if not in_trouble:
                    log.warning("store_not_kept", cause=str(error))
                in_trouble = True
            if self._full.is_set():
                await asyncio.sleep(wait * random.uniform(0.5, 1))
                wait = min(wait * 2, _LONGEST_WAIT)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD * random.uniform(0.8, 1.2)):
                        await self._full.wait()

    async def _forget(self) -> None:
        """Forgets history while marks cannot be set: before the deletion of one, or a trim, which nobody watches.

        In a new process there may be neither: then before any revision, if no member loses what happened just there
        (see `history.py`).
        """
        await self.commit(Txn(ops=(Delete(keys.STORE_MARK),)))
        if self._trimmed:
            await self.compact(self._trimmed)
        elif all(keeps_deletes(member.version) for member in await self.members()):
            await self.compact(await self._newest())

    async def _range(self, start: bytes, end: bytes, limit: int) -> RangeResult:
        request = rpc_pb2.RangeRequest(key=self._keyspace.key(start), range_end=self._keyspace.end(end))
        found: list[KeyValue] = []
        revision, page = 0, _FIRST_PAGE
        while True:
            request.limit = min(page, limit - len(found)) if limit else page
            try:
                response = await self._read(request)
            except AnswerTooLarge:
                page = max(1, request.limit // 4)
                continue
            self._seen(response.header)
            revision = revision or response.header.revision
            found += map(self._keyspace.key_value, response.kvs)
            if not response.more or len(found) == limit:
                return RangeResult(tuple(found), revision, response.more)
            mean = max(1, response.ByteSize() // len(response.kvs))
            page = max(1, min(_PAGE_BYTES // mean, 8 * page, _LARGEST_PAGE))
            request.key = response.kvs[-1].key + b"\0"
            request.revision = revision

    async def _read(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        return await self._commits.again(lambda: self._commits.once("KV/Range", request, rpc_pb2.RangeResponse))

    async def _newest(self) -> int:
        """Where the cluster stands; it takes a quorum to know."""
        response = await self._read(rpc_pb2.RangeRequest(key=self._address.prefix, count_only=True))
        self._seen(response.header)
        return response.header.revision

    async def _revoke(self, lease: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)
        unclear = False

        async def attempt() -> None:
            nonlocal unclear
            try:
                await self._others.once("Lease/LeaseRevoke", request, rpc_pb2.LeaseRevokeResponse)
            except StoreUnavailable:
                unclear = True
                raise
            except LeaseNotFound:
                if not unclear:  # else it was the attempt before that ended it
                    raise

        await self._others.again(attempt)

    def _seen(self, header: rpc_pb2.ResponseHeader) -> None:
        self._revision = max(self._revision, header.revision)

    def _require_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is not open")
