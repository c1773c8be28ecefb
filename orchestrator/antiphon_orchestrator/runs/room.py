"""Whether the store has room for new runs, and what is done before it has not.

What is full can neither end what it has accepted nor forget what has ended: both are written first. So new runs are
refused at the last watermark, and what lies above it belongs to those that are there, to the archive's progress and to
trims. At the watermarks below it the store is kept smaller than it needs to be, and operators are told.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from .. import telemetry
from ..store.port import Store, StoreError

log = telemetry.logger("store")


class Level(IntEnum):
    """How full the store is; the number is what the metric says."""

    ROOMY = 0
    FILLING = 1
    TIGHT = 2
    FULL = 3


WATERMARKS = {Level.FILLING: 0.6, Level.TIGHT: 0.7, Level.FULL: 0.8}
"""Share of the store's limit at which each level begins."""

SLACK = 0.02
"""Share below its watermark at which a level ends: what goes up and down at a mark is told once."""

DISK_RESERVE = 64 * 1024 * 1024
"""Bytes that must be free on the store's disk, whatever its own limit."""

PAGE = 4096
"""Bytes in which a store takes its room."""

_PERIOD = 0.25


class StoreRoom:
    """`admit` is asked for every new run; `look` finds out how much there is, `run` keeps looking.

    `folder` lies on the store's disk, or holds what an orchestrator keeps beside its etcd. Between two looks the runs
    that were admitted are counted instead. `relieve` is told whether the log is to be kept short, at the cost of more
    snapshots: from the first watermark on. `promised`: bytes that runs which were admitted will still write; they are
    not there for new ones.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        max_bytes: int,
        metrics: telemetry.Metrics,
        relieve: Callable[[bool], None],
        promised: Callable[[], int],
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._relieve = relieve
        self._promised = promised
        self._left = int(max_bytes * WATERMARKS[Level.FULL])
        self.level = Level.ROOMY
        self.cause = ""
        """Which of the two limits is the nearer one, and how to move it: why runs are refused, once they are."""

    def admit(self, size: int) -> bool:
        """Whether a run with a submission of so many bytes may be taken; if so, its room is gone.

        It takes more than its bytes: its first task gets the input again, and records begin and end within pages (42 kB
        of a store for 20 kB, by measurement). Whoever submits quickly could else fill the store to its last page before
        the next look.
        """
        if size > self._left:
            return False
        self._left -= 2 * size + PAGE
        return True

    async def look(self) -> None:
        """Brings the picture up to date, and logs and counts each change of level. Raises StoreError."""
        size = await self._store.size()
        free = shutil.disk_usage(self._folder).free
        within_limit, on_disk = int(self._max_bytes * WATERMARKS[Level.FULL]) - size, free - DISK_RESERVE
        left = min(within_limit, on_disk)
        promised = self._promised()
        self._left = left - promised
        self.cause = (
            f"{size + promised} of {self._max_bytes} bytes are in use, or needed by runs that go on, and new ones are"
            f" taken up to {WATERMARKS[Level.FULL] * 100:.0f} %; let runs end, or raise its limit"
            if within_limit <= on_disk
            else f"the disk of the data folder has {free} bytes free, and {DISK_RESERVE} are kept back; free some there"
        )
        self._metrics.store_bytes.set(size)
        self._metrics.store_limit_bytes.set(self._max_bytes)
        level = Level.FULL if left <= 0 else level_of(size / self._max_bytes, self.level)
        if level is not self.level:
            sizes = {"bytes": size, "limit": self._max_bytes, "free": free}
            if level is Level.FULL:
                log.error("store_level", state=level.name, cause=self.cause, **sizes)
            else:
                tell = log.info if level < self.level else log.warning
                tell("store_level", state=level.name, **sizes)
            self.level = level
            self._relieve(level is not Level.ROOMY)
        self._metrics.store_level.set(level)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.look()
            except StoreError as error:
                telemetry.tell_seldom(log.warning, "store_size_unknown", cause=str(error))


def level_of(share: float, before: Level) -> Level:
    """The level at a share of the limit, after another level. Pure."""
    level = Level.ROOMY
    for next_level, mark in WATERMARKS.items():
        if share >= mark - (SLACK if before >= next_level else 0):
            level = next_level
    return level
