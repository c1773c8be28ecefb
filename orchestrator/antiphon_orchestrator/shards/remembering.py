"""Request ids of a day, read back from the archive by whoever takes a shard.

The store keeps the newest of them only, which are those that somebody repeats after a crash: it must not grow with what
has ended. All are in the archive, beside their runs; they are read in the background, so that no shard waits for them.
Until that is done, and for as long as the archive is away, an older id is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Protocol

from antiphon_certs import Clock

from .. import telemetry
from ..archive import Archive, ArchiveUnavailable
from .recovery import keep_newest
from .turn import REQUEST_KEPT

log = telemetry.logger("shards")

PAGE = 1000
EVERY = timedelta(seconds=1)
AWAY = timedelta(seconds=5)
"""From one try to the next while the archive is away."""

Kept = dict[bytes, tuple[str, bytes, int]]
"""By key of a request: run, digest of the submission, microseconds since 1970 at which it may be forgotten."""


class Shards(Protocol):
    """Those of this replica."""

    requests_kept: int
    """Most ids that each of them remembers."""

    def forgetful(self) -> Collection[int]:
        """Shards that know the newest ids only."""

    def shard_of_run(self, run_id: str) -> int | None:
        """The shard of a run."""

    def remember(self, shard: int, older: Kept) -> None:
        """Adds ids, the oldest first; they are the shard's from then on."""


class Remembering:
    """Reads once for all shards that have come since it last looked."""

    def __init__(self, archive: Archive, shards: Shards, clock: Clock) -> None:
        self._archive = archive
        self._shards = shards
        self._clock = clock

    async def run(self) -> None:
        """Looks again and again; cancel to stop."""
        pause = EVERY
        while True:
            await self._clock.sleep(pause)
            try:
                await self.look()
                pause = EVERY
            except ArchiveUnavailable as error:
                log.warning("requests_not_remembered", cause=str(error))
                pause = AWAY

    async def look(self) -> None:
        """Reads for the shards that need it, if there are any. Raises ArchiveUnavailable."""
        found: dict[int, Kept] = {shard: {} for shard in self._shards.forgetful()}
        if not found:
            return
        after = (self._clock.now() - timedelta(microseconds=REQUEST_KEPT), "")
        while True:
            page = await self._archive.requests(after, PAGE)
            for one in page:
                shard = self._shards.shard_of_run(one.run_id)
                if shard in found:
                    expire_time = int(one.end_time.timestamp() * 1_000_000) + REQUEST_KEPT
                    found[shard][one.request_key] = (one.run_id, one.request_digest, expire_time)
            for older in found.values():
                keep_newest(older, self._shards.requests_kept)
            if len(page) < PAGE:
                break
            after = (page[-1].end_time, page[-1].run_id)
        for shard, older in found.items():
            count = len(older)
            self._shards.remember(shard, older)
            if count:
                log.info("requests_remembered", shard=shard, count=count)
            await asyncio.sleep(0)
