"""Audit records leave the store: pages are copied into the archive in order, and then deleted here.

The newest records of each chain stay, so that an orchestrator can look at the end of its chains without the archive.
What is deleted is in the archive by then; a step that is repeated, by another replica as well, finds its work done.
A deletion puts nothing, so that a full store takes it. While the archive is away nothing is deleted, and an alarm says
so. From the archive the oldest go by age, after the head of their chain says where it begins now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Protocol

from antiphon_certs import Clock

from .. import telemetry
from ..archive import Archive, ArchiveUnavailable, AuditPage
from ..shards.log import Fenced
from ..store import keys
from ..store.port import Store, StoreError
from . import reading

log = telemetry.logger("audit")

LEAST = 50
"""Records of a chain that are moved together, unless a page has more."""

PAGES = 16
"""Pages of one chain in a write to the archive; at most 768 KiB each, and mostly far less."""

BYTES = 4 << 20
"""Of a write, beyond which no further chain takes part."""

EVERY = timedelta(seconds=1)

AWAY = timedelta(seconds=5)
"""From one try to the next while the archive is away."""

RETENTION = timedelta(minutes=10)
"""From one look for what is too old to the next."""

BETWEEN = timedelta(seconds=0.2)
"""From one deletion of so many pages to the next."""

_ANY = (1 << 63) - 1


class MovableChain(Protocol):
    """The chain as its writer has it. Each method may raise Fenced: it is another's now."""

    name: str

    moved_seq: int
    """Up to this record the store has none, as far as is known here."""

    @property
    def movable_seq(self) -> int:
        """Up to this record they may leave the store."""

    async def drop(self, upto: int) -> None:
        """Deletes the pages up to a record from the store."""

    async def begin_after(self, seq: int, hash: bytes) -> None:
        """Says that the chain begins behind this record, which has this hash. Raises StoreFull."""


class AuditMover:
    """`chains` are those that are written here; `keep`: how long the archive has a record."""

    def __init__(
        self,
        store: Store,
        archive: Archive,
        chains: Callable[[], Sequence[MovableChain]],
        keep: timedelta,
        clock: Clock,
    ) -> None:
        self._store = store
        self._archive = archive
        self._chains = chains
        self._keep = keep
        self._clock = clock
        self._retention_due: datetime | None = None
        self.available = True
        """Whether the archive took what it was given last."""

    @property
    def waiting(self) -> int:
        """Records that the archive is to have and has not yet."""
        return sum(max(0, chain.movable_seq - chain.moved_seq) for chain in self._chains())

    async def run(self) -> None:
        """Looks again and again; cancel to stop."""
        while True:
            await self._clock.sleep(EVERY if self.available else AWAY)
            try:
                await self.look()
            except ArchiveUnavailable as error:
                self.available = False
                telemetry.tell_seldom(log.error, "audit_not_archived", cause=str(error), count=self.waiting)
            except StoreError as error:
                telemetry.tell_seldom(log.warning, "audit_not_moved", cause=str(error), count=self.waiting)

    async def look(self) -> None:
        """Moves what may leave the store, and now and then deletes what is too old in the archive.

        Raises ArchiveUnavailable and StoreError.
        """
        await self._move()
        now = self._clock.now()
        if self._retention_due is not None and now < self._retention_due:
            return
        for chain in self._chains():
            with contextlib.suppress(Fenced):
                await self._forget(chain, now - self._keep)
        self._retention_due = now + RETENTION

    async def _move(self) -> None:
        """All chains in one write to the archive, as often as it takes."""
        while taken := await self._taken():
            await self._archive.write_audit([page for _, pages in taken for page in pages])
            if not self.available:
                self.available = True
                log.info("audit_archived_again", count=self.waiting)
            for chain, pages in taken:
                try:
                    await chain.drop(pages[-1].last_seq)
                    chain.moved_seq = pages[-1].last_seq
                except Fenced:
                    chain.moved_seq = chain.movable_seq  # whoever has it now moves the rest

    async def _taken(self) -> list[tuple[MovableChain, list[AuditPage]]]:
        """The oldest pages of the chains that have many to move, as far as one write takes them."""
        taken: list[tuple[MovableChain, list[AuditPage]]] = []
        size = 0
        for chain in self._chains():
            upto = chain.movable_seq
            if upto - chain.moved_seq < LEAST or size >= BYTES:
                continue
            found = await self._store.range(keys.audit(chain.name, 0), keys.audit(chain.name, upto + 1), limit=PAGES)
            pages = [reading.archivable(kv, chain.name, self._clock.now()) for kv in found.kvs]
            if whole := [page for page in pages if page.last_seq <= upto]:
                taken.append((chain, whole))
                size += sum(len(page.data) for page in whole)
            else:
                chain.moved_seq = pages[0].first_seq - 1 if pages else upto
        return taken

    async def _forget(self, chain: MovableChain, before: datetime) -> None:
        """Page by page from the oldest, so that one with a wrong time takes no younger ones with it."""
        limit = 1
        while True:
            pages = await self._archive.audit_pages(chain.name, 0, _ANY, limit)
            old = list(takewhile(lambda page: page.last_time < before, pages))
            if not old:
                return
            last = old[-1]
            # After the pages: another replica says so in the head before it deletes.
            head = await reading.head(self._store, chain.name)
            trimmed_seq = head[0].trimmed_seq if head is not None else 0
            if old[0].first_seq > trimmed_seq + 1:
                log.error("audit_chain_broken", key=chain.name, seq=trimmed_seq + 1, cause="it is missing")
            if last.last_seq > trimmed_seq:
                await chain.begin_after(last.last_seq, reading.end_of(last))
                log.info("audit_trimmed", key=chain.name, seq=last.last_seq)
            while await self._archive.delete_audit(chain.name, last.last_seq, PAGES) == PAGES:
                await self._clock.sleep(BETWEEN)
            limit = PAGES
