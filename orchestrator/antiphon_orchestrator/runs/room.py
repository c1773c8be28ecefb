"""Whether the store has room for new runs.

What is full can neither end what it has accepted nor forget what has ended: both are written first. So new runs are
refused at a watermark, and what lies above it belongs to those that are there, to the archive's progress and to trims.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from .. import telemetry
from ..store.port import Store, StoreError

log = telemetry.logger("store")

SHARE = 0.8
"""Of the store's limit that runs may fill before no more are taken."""

DISK_RESERVE = 64 * 1024 * 1024
"""Bytes that must be free on the store's disk, whatever its own limit."""

_PERIOD = 0.25


class StoreRoom:
    """`admit` is asked for every new run; `look` finds out how much there is, `run` keeps looking.

    `folder` lies on the store's disk. Between two looks the runs that were admitted are counted instead.
    """

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._watermark = int(max_bytes * SHARE)
        self._left = self._watermark
        self._full = False

    def admit(self, size: int) -> bool:
        """Whether a run with a submission of so many bytes may be taken; if so, its room is gone."""
        if size > self._left:
            return False
        self._left -= size
        return True

    async def look(self) -> None:
        """Brings the picture up to date and logs when runs are refused or taken again. Raises StoreError."""
        size = await self._store.size()
        free = shutil.disk_usage(self._folder).free - DISK_RESERVE
        self._left = min(self._watermark - size, free)
        full = self._left <= 0
        if full != self._full:
            self._full = full
            (log.error if full else log.info)("store_refuses_runs" if full else "store_takes_runs_again", bytes=size)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.look()
            except StoreError as error:
                log.warning("store_size_unknown", cause=str(error))
