"""The archive as a model: what the port promises, in two dictionaries, and times when it cannot be had."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime

from antiphon_orchestrator.archive import ArchivedRequest, ArchivedRun, ArchiveUnavailable, EventChunk


class ArchiveModel:
    """What replicas read and write of an `Archive`."""

    def __init__(self, rng: random.Random) -> None:
        self.away = False
        self.runs: dict[str, ArchivedRun] = {}
        self.chunks: dict[str, dict[int, EventChunk]] = {}
        self._rng = rng

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        await self._pass()
        for run in runs:
            known = self.runs.get(run.run_id)
            if known is None or known.last_event_seq <= run.last_event_seq:
                self.runs[run.run_id] = run
        for chunk in chunks:
            there = self.chunks.setdefault(chunk.run_id, {})
            former = there.get(chunk.first_seq)
            if former is None or former.last_seq <= chunk.last_seq:
                there[chunk.first_seq] = chunk
        if self._rng.random() < 0.05:
            raise ArchiveUnavailable("the answer was lost")

    async def get_run(self, run_id: str) -> ArchivedRun | None:
        await self._pass()
        return self.runs.get(run_id)

    async def events(self, run_id: str, after_seq: int = 0, limit: int = 64) -> list[EventChunk]:
        await self._pass()
        chunks = sorted(self.chunks.get(run_id, {}).values(), key=lambda chunk: chunk.first_seq)
        return [chunk for chunk in chunks if chunk.last_seq > after_seq][:limit]

    async def requests(self, after: tuple[datetime, str], limit: int) -> list[ArchivedRequest]:
        await self._pass()
        ended = [
            ArchivedRequest(run.run_id, run.request_key, run.request_digest, run.end_time)
            for run in self.runs.values()
            if run.end_time is not None and (run.end_time, run.run_id) > after
        ]
        return sorted(ended, key=lambda request: (request.end_time, request.run_id))[:limit]

    async def _pass(self) -> None:
        await asyncio.sleep(0.01 * self._rng.random())
        if self.away:
            raise ArchiveUnavailable("it is away")
