"""Batches ended (and very long) runs into the archive.

When the archive is away runs go on, nothing is trimmed and an alarm says so; writes are idempotent, so a batch is
simply sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from .. import telemetry
from ..archive import Archive, ArchivedRun, ArchiveUnavailable, EventChunk
from ..engine.run import Run
from ..wake import Wake
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


CHUNK_BYTES = 1 << 20
"""Bytes of events in one chunk; a history of up to FEW events is one, whatever its size."""

FEW = 64

WRITE_BYTES = 8 << 20
"""Bytes of events in one write: a large run has several before the one it comes with."""


class _Pending(NamedTuple):
    shard: int
    run: ArchivedRun
    first_seq: int
    records: Sequence[bytes]


class Archiver:
    """`answer(shard, Archived)` tells a shard what is safe; set it before `run`."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._pending: list[_Pending] = []
        self._wake = Wake()
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
            failure_kind=run.failure.kind.value if run.failure else 0,
            failure_code=run.failure.code if run.failure else "",
        )
        self._pending.append(_Pending(shard, summary, first_seq, records))
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
            away: str | None = None
            try:
                await self._write(batch)
            except ArchiveUnavailable as error:
                away = str(error)
            if away is not None:
                self.available = False
                log.error("archive_unavailable", cause=away, count=len(self._pending))
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
            for one in batch:
                done.setdefault(one.shard, {})[one.run.run_id] = one.first_seq + len(one.records) - 1
            for shard, upto in done.items():
                self.answer(shard, Archived(upto))
            await asyncio.sleep(0)  # others first: the archive may lag, they may not

    async def _write(self, batch: Sequence[_Pending]) -> None:
        """Writes runs with their events; a run is there only with the last of them."""
        chunks: list[EventChunk] = []
        size = 0
        for one in batch:
            for chunk in cut(one.run.run_id, one.first_seq, one.records):
                if size >= WRITE_BYTES:
                    await self._archive.write((), chunks)
                    chunks, size = [], 0
                chunks.append(chunk)
                size += len(chunk.data)
        await self._archive.write([one.run for one in batch], chunks)


def cut(run_id: str, first_seq: int, records: Sequence[bytes]) -> Iterator[EventChunk]:
    """The events of a run in chunks; where one ends does not depend on what comes later, so that those of a longer
    history replace those of a shorter one."""
    start, size = 0, 0
    if len(records) > FEW:
        for place, raw in enumerate(records):
            if size and size + len(raw) > CHUNK_BYTES:
                yield EventChunk(run_id, first_seq + start, first_seq + place - 1, codec.frame(records[start:place]))
                start, size = place, 0
            size += len(raw)
    yield EventChunk(run_id, first_seq + start, first_seq + len(records) - 1, codec.frame(records[start:]))
