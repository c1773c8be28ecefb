"""Archived runs, rebuilt from their events."""

from __future__ import annotations

from antiphon.store.v1 import journal_pb2 as journal

from ..archive import ArchivedRun, SqlArchive
from ..engine.run import Run, apply, start
from ..shards import codec
from .catalog import Catalog


class ArchivedRuns:
    def __init__(self, archive: SqlArchive, catalog: Catalog) -> None:
        self._archive = archive
        self._catalog = catalog

    async def find(self, run_id: str, namespace: str) -> ArchivedRun | None:
        """The summary of a run in a namespace."""
        found = await self._archive.get_run(run_id)
        return found if found is not None and found.namespace == namespace else None

    async def load(self, run_id: str, namespace: str) -> Run | None:
        """The run as it ended, by its events applied again; None when it is not in the archive."""
        if await self.find(run_id, namespace) is None:
            return None
        run: Run | None = None
        for raw in await self.records(run_id, 0):
            record = journal.Record.FromString(raw)
            event = codec.decode(record)
            if run is None:
                submitted = codec.get_submitted(record.run_submitted)
                run = start(run_id, await self._catalog.plan_of(submitted), submitted, record.time)
            else:
                apply(run, event, record.time)
        return run

    async def records(self, run_id: str, after: int) -> list[bytes]:
        """The serialised events after a sequence number, in order."""
        result: list[bytes] = []
        for chunk in await self._archive.events(run_id, after):
            for number, raw in enumerate(journal.LogSegment.FromString(chunk.data).records, chunk.first_seq):
                if number > after:
                    result.append(raw)
                    after = number
        return result
