"""Archived runs, rebuilt from their events.

An ended run never changes, so the last ones that were read are kept as rebuilt: a run with thousands of tasks is read
by hundreds of calls, each of which would rebuild it whole. Whether a run is still in the archive is asked every time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

from antiphon.store.v1 import journal_pb2 as journal

from ..archive import Archive, ArchivedRun
from ..engine.run import Run, apply, start
from ..shards import codec
from .catalog import Catalog

KEPT_RECORDS = 32_000
"""Events of all kept runs together, some 1.5 kB each once applied."""

KEPT_BYTES = 16 << 20
"""The same in bytes as archived, since payloads make some events large."""

LARGE_KEPT = 60.0
"""Seconds that a run beyond these bounds is kept; of such only the last one is."""

_AT_ONCE = 500  # events applied before others get their turn of the event loop
_CHUNKS_AT_ONCE = 8  # of a mebibyte each, as a rule


class ArchivedRuns:
    def __init__(self, archive: Archive, catalog: Catalog) -> None:
        self._archive = archive
        self._catalog = catalog
        self._kept = _Kept()
        self._rebuilding = asyncio.Lock()

    async def find(self, run_id: str, namespace: str) -> ArchivedRun | None:
        """The summary of a run in a namespace."""
        found = await self.summary(run_id)
        return found if found is not None and found.namespace == namespace else None

    async def summary(self, run_id: str) -> ArchivedRun | None:
        """The summary of a run of any namespace: whoever asks has to see to it who may."""
        return await self._archive.get_run(run_id)

    async def load(self, run_id: str, namespace: str) -> Run | None:
        """The run as it ended, by its events applied again; None when it is not in the archive.

        It is shared with other callers: read it only.
        """
        summary = await self.find(run_id, namespace)
        if summary is None:
            return None
        # One at a time: rebuilding is the event loop's own work, and who waits for the same run finds it here.
        async with self._rebuilding:
            run = self._kept.get(summary)
            if run is None:
                run, records, size = await self._rebuild(run_id)
                if run is not None and summary.end_time is not None:
                    self._kept.put(run, records, size)
        return run

    async def _rebuild(self, run_id: str) -> tuple[Run | None, int, int]:
        """The run with the number of its events and their bytes."""
        run: Run | None = None
        number = size = 0
        async for records in self.records(run_id, 0):
            for raw in records:
                record = journal.Record.FromString(raw)
                event = codec.decode(record)
                if run is None:
                    submitted = codec.get_submitted(record.run_submitted)
                    run = start(run_id, await self._catalog.plan_of(submitted), submitted, record.time)
                else:
                    apply(run, event, record.time)
                number += 1
                size += len(raw)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        return run, number, size

    async def records(self, run_id: str, after: int) -> AsyncIterator[list[bytes]]:
        """The serialised events after a sequence number, in order, some at a time."""
        while chunks := await self._archive.events(run_id, after, _CHUNKS_AT_ONCE):
            for chunk in chunks:
                records = journal.LogSegment.FromString(chunk.data).records
                yield list(records[max(0, after + 1 - chunk.first_seq) :])
                after = chunk.last_seq


class _Kept:
    """Rebuilt runs, the last used at the end, within the two bounds."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, tuple[Run, int, int]] = OrderedDict()
        self._records = 0
        self._bytes = 0
        self._large: Run | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def get(self, summary: ArchivedRun) -> Run | None:
        """The run, unless the archive has learnt more of it since."""
        large = self._large
        if large is not None and large.run_id == summary.run_id and large.event_seq >= summary.last_event_seq:
            self._keep_large(large)
            return large
        found = self._runs.get(summary.run_id)
        if found is None or found[0].event_seq < summary.last_event_seq:
            return None
        self._runs.move_to_end(summary.run_id)
        return found[0]

    def put(self, run: Run, records: int, size: int) -> None:
        """Keep it, in place of those that were not used for longest; for a while only if it is larger than all may be:
        whoever pages through its tasks would have it rebuilt for every page."""
        self._forget(run.run_id)
        if records > KEPT_RECORDS or size > KEPT_BYTES:
            self._keep_large(run)
            return
        self._runs[run.run_id] = (run, records, size)
        self._records += records
        self._bytes += size
        while self._records > KEPT_RECORDS or self._bytes > KEPT_BYTES:
            self._forget(next(iter(self._runs)))

    def _keep_large(self, run: Run | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._large, self._expiry = run, None
        if run is not None:
            self._expiry = asyncio.get_running_loop().call_later(LARGE_KEPT, self._keep_large, None)

    def _forget(self, run_id: str) -> None:
        _, records, size = self._runs.pop(run_id, (None, 0, 0))
        self._records -= records
        self._bytes -= size
