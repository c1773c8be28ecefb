"""Deletes archived runs that ended long enough ago, a few at a time, so that the archive's writers hardly notice."""

from __future__ import annotations

from datetime import timedelta

from antiphon_certs import Clock

from .. import telemetry
from ..archive import Archive, ArchiveUnavailable

BATCH = 200
"""Runs in one transaction."""
BETWEEN = timedelta(seconds=0.2)
"""From one batch to the next."""
EVERY = timedelta(minutes=10)
"""From one look to the next. Several replicas may look at once: a run is deleted by one of them."""

log = telemetry.logger("archive")


class Retention:
    """`keep`: how long an ended run stays."""

    def __init__(self, archive: Archive, keep: timedelta, clock: Clock) -> None:
        self._archive = archive
        self._keep = keep
        self._clock = clock

    async def run(self) -> None:
        """Looks again and again; cancel to stop."""
        while True:
            try:
                count = await self._look()
                if count:
                    log.info("archive_retention", count=count)
            except ArchiveUnavailable as error:
                log.warning("archive_retention_waits", cause=str(error))
            await self._clock.sleep(EVERY)

    async def _look(self) -> int:
        before, count = self._clock.now() - self._keep, 0
        while deleted := await self._archive.delete_before(before, BATCH):
            count += deleted
            await self._clock.sleep(BETWEEN)
        return count
