"""Collects payloads that nothing refers to: mark and sweep, a few times a day, slowly.

A payload may go when it was neither put nor used for the grace period and its digest stands nowhere: not in the store
(journal, shared context, graphs and all else), not in the history of an archived run. A digest is looked for as text in
the very bytes that are kept, so that a reference inside of a JSON value counts, and so does whatever looks like one.

What is looked at in which order is what makes it safe. A reference moves from shared context to the journal and from
there to the archive, and it is always written there before it goes here; the store is read in the order of its keys,
context before log, and the archive after it. Any other way to refer to a payload goes through `Blobs.use`, which renews
its time. Whoever cannot read something to its end deletes nothing.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from datetime import timedelta

from antiphon_certs import Clock

from .. import telemetry
from ..archive import Archive, ArchiveUnavailable
from ..blobs import BlobInfo, Blobs, BlobsUnavailable
from ..store import Store, StoreError
from ..store.port import UP_TO_LAST

FIRST = timedelta(minutes=10)
EVERY = timedelta(hours=6)
"""From one sweep to the next, within a fifth, so that replicas do not meet."""
MOST = 100_000
"""Payloads that one sweep decides about, chosen by chance if there are more; and references it remembers."""
_KEYS = 4
_CHUNKS = 16
_PIECE = 1 << 18
_BREATH = 0.002
"""Seconds in which others have the event loop, after each piece."""
_DIGEST = re.compile(rb"(?=([0-9a-f]{64}))")

log = telemetry.logger("payloads")

Candidate = tuple[str, BlobInfo]
"""Namespace and payload."""


class PayloadCollector:
    """`grace`: how long an unused payload stays."""

    def __init__(
        self,
        store: Store,
        archive: Archive,
        blobs: Blobs,
        grace: timedelta,
        clock: Clock,
        metrics: telemetry.Metrics,
    ) -> None:
        self._store = store
        self._archive = archive
        self._blobs = blobs
        self._grace = grace
        self._clock = clock
        self._metrics = metrics
        self._holders: dict[str, str] = {}

    async def run(self) -> None:
        """Sweeps again and again; cancel to stop."""
        await self._clock.sleep(FIRST)
        while True:
            try:
                await self.sweep()
            except (StoreError, ArchiveUnavailable, BlobsUnavailable) as error:
                log.warning("payload_collection_waits", cause=str(error))
            await self._clock.sleep(EVERY * random.uniform(0.8, 1.2))

    async def sweep(self) -> int:
        """Returns how many payloads went. Raises what store, archive and blobs raise."""
        before = self._clock.now() - self._grace
        await self._blobs.recover()
        chosen: list[Candidate] = []
        seen = 0
        async for namespace, blob in self._blobs.all():
            if blob.modify_time >= before or await self._held(blob.digest):
                continue
            seen += 1
            if len(chosen) < MOST:
                chosen.append((namespace, blob))
            elif (place := random.randrange(seen)) < MOST:
                chosen[place] = namespace, blob
        unmarked = {blob.digest.encode() for _, blob in chosen}
        await self._mark_store(unmarked)
        await self._mark_archive(unmarked)
        count = 0
        for namespace, blob in chosen:
            if blob.digest.encode() not in unmarked:
                continue
            if await self._blobs.remove_unused(namespace, blob.digest, before):
                count += 1
                self._metrics.payloads_collected.inc()
                self._metrics.payload_bytes_collected.inc(blob.size)
                log.info("payload_collected", namespace=namespace, key=blob.digest, bytes=blob.size)
        return count

    async def _held(self, digest: str) -> bool:
        """Whether the run that was found to refer to it is still archived: most old payloads have one."""
        holder = self._holders.get(digest)
        if holder is None:
            return False
        if await self._archive.get_run(holder) is not None:
            return True
        del self._holders[digest]
        return False

    async def _mark_store(self, unmarked: set[bytes]) -> None:
        start = b"\0"
        while unmarked:
            found = await self._store.range(start, UP_TO_LAST, limit=_KEYS)
            for kv in found.kvs:
                async for digest in _digests(kv.value):
                    unmarked.discard(digest)
            if not found.more:
                return
            start = found.kvs[-1].key + b"\0"

    async def _mark_archive(self, unmarked: set[bytes]) -> None:
        after = ("", 0)
        while unmarked:
            chunks = await self._archive.scan(after, _CHUNKS)
            for chunk in chunks:
                async for digest in _digests(chunk.data):
                    if digest in unmarked:
                        unmarked.discard(digest)
                        if len(self._holders) < MOST:
                            self._holders[digest.decode()] = chunk.run_id
            if len(chunks) < _CHUNKS:
                return
            after = chunks[-1].run_id, chunks[-1].first_seq


async def _digests(data: bytes) -> AsyncIterator[bytes]:
    """Whatever looks like a digest, in pieces that overlap by one less than its length."""
    for start in range(0, len(data), _PIECE):
        for match in _DIGEST.finditer(data, start, start + _PIECE + 63):
            yield match[1]
        await asyncio.sleep(_BREATH)
