"""The audit chain of a shard in the store: from the log, where each turn leaves its records, to pages of their own.

A turn's records are durable with its log segment, in the same value, which costs nearly nothing; pages of their own for
every turn would cost more than the turn's own commit does. So pages are written in batches: a second after, when many
wait, when somebody wants to read, and before the log is trimmed. After a crash the records that have no page yet are
found in the log. Older pages leave for the archive (`audit/moving.py`).
"""

from __future__ import annotations

import asyncio
import random

from antiphon.store.v1 import journal_pb2 as journal

from .. import telemetry
from ..audit import reading
from ..audit.chain import HASH, START, Chain, follow, page
from ..audit.log import dropping, look_at
from ..store import keys
from ..store.port import Put, Store, StoreFull
from .log import ShardLog

log = telemetry.logger("audit")

DELAY = 1_000_000
"""Microseconds after which a page is written, however few wait."""

BATCH = 500
"""Records at which a page is written at once, and the most that one has."""

PAGE_BYTES = 768 * 1024
"""Bytes at which a page is full."""


STAYING = 50
"""Newest records that stay in the store."""


class AuditPages:
    """One shard's. `load`, then `recover` for each segment of its log in order; then `committed` after each turn."""

    def __init__(self, store: Store, shard_log: ShardLog, name: str, writer: str) -> None:
        self._store = store
        self._log = shard_log
        self._writer = writer
        self.name = name
        self.moved_seq = 0
        # Where the pages end; the shard's own chain is ahead by what waits here and by the present turn.
        self._written = Chain(name)
        self._revision = 0  # of the head
        self._waiting: list[bytes] = []
        self._turn = asyncio.Lock()
        self.due: int | None = None
        """When a page is to be written; None when nothing waits."""

    async def load(self, chain: Chain) -> None:
        """Finds the end of the pages, for the shard's chain as well, and looks whether it is whole."""
        found = await reading.head(self._store, chain.name)
        if found is not None:
            self._written.load(found[0])
            self._revision = found[1]
            chain.load(found[0])
        await look_at(self._store, chain)

    def recover(self, chain: Chain, segment: journal.LogSegment) -> None:
        """Takes what a log segment holds beyond the pages, and moves the shard's chain on."""
        for seq, raw in enumerate(segment.audit, segment.audit_first_seq):
            if seq <= chain.last_seq:
                continue
            if seq != chain.last_seq + 1 or follow(chain.last_hash or START, raw[HASH:]) != raw[:HASH]:
                log.error("audit_chain_broken", key=chain.name, seq=seq, cause="it does not follow in the log")
            chain.last_seq, chain.last_hash = seq, raw[:HASH]
            self._waiting.append(raw)
            self.due = 0

    def committed(self, raw: list[bytes], moment: int) -> None:
        """The records of a turn are in the log."""
        self._waiting += raw
        if len(self._waiting) >= BATCH:
            self.due = moment
        elif self.due is None:
            self.due = moment + DELAY

    async def write(self, *, wait_for_space: bool = True) -> None:
        """Returns when all that is in the log has its page. Raises Fenced; StoreFull unless told to wait for space."""
        wait = 0.01
        while True:
            try:
                async with self._turn:
                    await self._write()
                return
            except StoreFull as error:
                if not wait_for_space:
                    raise
                if wait >= 1.0:
                    telemetry.tell_seldom(log.error, "store_takes_no_writes", cause=str(error))
            # Readers and the mover have their turns meanwhile, and what the mover deletes may make the space.
            await asyncio.sleep(wait * (0.5 + random.random()))
            wait = min(wait * 2, 1.0)

    async def write_due(self, moment: int) -> None:
        """Writes what is due, or in a full store makes it due again later. Raises Fenced."""
        try:
            await self.write(wait_for_space=False)
        except StoreFull:
            self.due = moment + DELAY

    async def _write(self) -> None:
        while self._waiting:
            count, size = 0, 0
            while count < min(BATCH, len(self._waiting)) and size < PAGE_BYTES:
                size += len(self._waiting[count])
                count += 1
            raw = self._waiting[:count]
            chain = self._written
            put = Put(keys.audit(chain.name, chain.last_seq + 1), page(raw))
            after = Chain(chain.name)
            after.load(chain.head(self._writer))
            after.last_seq, after.last_hash = chain.last_seq + count, raw[-1][:HASH]
            self._revision = await self._log.replace(self._head(after), self._revision, put)
            self._written = after
            del self._waiting[:count]
        self.due = None

    @property
    def movable_seq(self) -> int:
        """See `MovableChain.movable_seq`."""
        return self._written.last_seq - STAYING

    async def drop(self, upto: int) -> None:
        """See `MovableChain.drop`. Raises Fenced."""
        await self._log.delete(dropping(self.name, upto))

    async def begin_after(self, seq: int, hash: bytes) -> None:
        """See `MovableChain.begin_after`. Raises Fenced and StoreFull."""
        async with self._turn:
            after = Chain(self.name)
            after.load(self._written.head(self._writer))
            after.trimmed_seq, after.trimmed_hash = seq, hash
            self._revision = await self._log.replace(self._head(after), self._revision, dropping(self.name, seq))
            self._written = after

    def _head(self, chain: Chain) -> Put:
        return Put(keys.audit_head(chain.name), chain.head(self._writer).SerializeToString())
