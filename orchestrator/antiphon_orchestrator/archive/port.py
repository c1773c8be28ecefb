"""What every archive offers, wherever it keeps its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from .model import ArchivedRequest, ArchivedRun, AuditPage, EventChunk, RunFilter


class Archive(Protocol):
    """Use: `async with` it. Every method may raise ArchiveUnavailable, and every write may be repeated.

    An older version of a record never replaces a newer one, whoever writes late.
    """

    async def __aenter__(self) -> Archive:
        """Opens it and makes or migrates its tables. Raises ArchiveIncompatible."""

    async def __aexit__(self, *_: object) -> None:
        """Ends what is under way and lets go of everything."""

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        """Upserts runs and chunks in one transaction; durable when it returns.

        A chunk replaces the one with the same `first_seq`, if it reaches at least as far.
        """

    async def get_run(self, run_id: str) -> ArchivedRun | None:
        """The run, or None."""

    async def events(self, run_id: str, after_seq: int = 0, limit: int = 64) -> list[EventChunk]:
        """Up to `limit` chunks that hold events later than `after_seq`, in order; none: there are no more.

        The first may begin earlier, and chunks may overlap after a takeover: whoever decodes them skips what it has.
        """

    async def list_runs(self, filter: RunFilter, page_size: int, page_token: str = "") -> tuple[list[ArchivedRun], str]:
        """A page, newest first, and the next page's token ("" after the last). Raises InvalidPageToken.

        Paging is by position, so runs archived meanwhile neither repeat nor hide others.
        """

    async def scan(self, after: tuple[str, int], limit: int) -> list[EventChunk]:
        """Up to `limit` chunks of all runs, in the order of (run_id, first_seq), behind a position; ("", 0) begins."""

    async def delete_before(self, time: datetime, limit: int) -> int:
        """Deletes up to `limit` runs that ended before `time`, oldest first, with their events. Returns how many."""

    async def requests(self, after: tuple[datetime, str], limit: int) -> list[ArchivedRequest]:
        """Up to `limit` requests of ended runs, in the order of (end_time, run_id), behind a position."""

    async def write_audit(self, pages: Sequence[AuditPage]) -> None:
        """Adds pages of audit chains in one transaction; durable when it returns.

        A page that is there stays as it is, whatever comes under its first number later: records never change.
        """

    async def audit_pages(self, chain: str, first: int, last: int, limit: int) -> list[AuditPage]:
        """Up to `limit` pages that hold any of the records `first` to `last` of a chain, in order."""

    async def delete_audit(self, chain: str, last: int, limit: int) -> int:
        """Deletes up to `limit` pages, oldest first, that hold no record after `last`. Returns how many."""

    async def identity(self) -> str:
        """The archive's id, the same for whoever uses it, for all its life; "": it has none yet, as its tables are made
        or migrated later. It need not have been entered, and changes nothing."""

    async def state(self) -> str:
        """Where it is and at which migration, for people; changes nothing. Raises ArchiveIncompatible as well."""
