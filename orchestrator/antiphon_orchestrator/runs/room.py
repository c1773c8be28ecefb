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
    """`full` is what was found a moment ago; `look` finds out, `run` keeps looking. `folder` lies on the store's disk."""

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._watermark = int(max_bytes * SHARE)
        self.full = False

    async def look(self) -> None:
        """Brings `full` up to date and logs when it changes. Raises StoreError."""
        size = await self._store.size()
        free = shutil.disk_usage(self._folder).free
        full = size >= self._watermark or free < DISK_RESERVE
        if full != self.full:
            self.full = full
            (log.error if full else log.info)("store_refuses_runs" if full else "store_takes_runs_again", bytes=size)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.look()
            except StoreError as error:
                log.warning("store_size_unknown", cause=str(error))
