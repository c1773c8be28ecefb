"""Batches ended (and very long) runs into the archive.

When the archive is away runs go on, nothing is trimmed and an alarm says so; writes are idempotent, so a batch is
simply sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from .. import telemetry
from ..archive import Archive, ArchivedRun, ArchiveUnavailable, EventChunk
from ..engine.run import Run
from . import codec
from .inputs import Archived

log = telemetry.logger("archive")

BATCH = 64
"""Most runs in one write: one statement of the archive."""

GATHER = 0.05
"""Seconds in which a write gathers runs when fewer wait: a transaction costs more than they do, and nobody waits."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(micros: int) -> datetime:
    """Microseconds since 1970 as an aware datetime, exactly."""
    return _EPOCH + timedelta(microseconds=micros)


class Archiver:
    """`answer(shard, Archived)` tells a shard what is safe; set it before `run`."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._pending: list[tuple[int, ArchivedRun, EventChunk]] = []
        self._wake = asyncio.Event()
        self.available = True
        """Whether the last write succeeded."""
        self.answer: Callable[[int, Archived], None] = lambda shard, item: None

    def put(self, shard: int, run: Run, key: bytes, first_seq: int, records: Sequence[bytes]) -> None:
        submitted = run.submitted
        summary = ArchivedRun(
            run_id=run.run_id,
            namespace=submitted.namespace,
            graph_name=submitted.graph_name,
            graph_version=submitted.graph_version,
            state=run.state.name,
            principal=submitted.principal,
            request_key=key,
            request_digest=submitted.request_digest,
            create_time=moment(run.create_time),
            end_time=moment(run.end_time) if run.end_time else None,
            last_event_seq=run.event_seq,
            parent=submitted.parent_attempt_id,
            labels=submitted.labels,
            failure_text=run.failure.message if run.failure else "",
        )
        chunk = EventChunk(run.run_id, first_seq, first_seq + len(records) - 1, codec.frame(records))
        self._pending.append((shard, summary, chunk))
        self._wake.set()

    @property
    def lag(self) -> int:
        """Runs that wait for the archive."""
        return len(self._pending)

    async def run(self) -> None:
        wait = 0.05
        while True:
            await self._wake.wait()
            if len(self._pending) < BATCH:
                await asyncio.sleep(GATHER)
            batch = self._pending[:BATCH]
            try:
                await self._archive.write([run for _, run, _ in batch], [chunk for _, _, chunk in batch])
            except ArchiveUnavailable as error:
                self.available = False
                log.error("archive_unavailable", cause=str(error), count=len(self._pending))
                await asyncio.sleep(wait * (1 + random.random()))
                wait = min(wait * 2, 5.0)
                continue
            if not self.available:
                self.available = True
                log.info("archive_available", count=len(self._pending))
            wait = 0.05
            del self._pending[: len(batch)]
            if not self._pending:
                self._wake.clear()
            done: dict[int, dict[str, int]] = {}
            for shard, run, chunk in batch:
                done.setdefault(shard, {})[run.run_id] = chunk.last_seq
            for shard, upto in done.items():
                self.answer(shard, Archived(upto))
            await asyncio.sleep(0)  # others first: the archive may lag, they may not
