"""The archive: finished runs, their events, and the search over them. Knows nothing of the journal or the wire."""

from .model import (
    ArchivedRun,
    ArchiveError,
    ArchiveIncompatible,
    ArchiveUnavailable,
    EventChunk,
    InvalidPageToken,
    RunFilter,
)
from .sql import SqlArchive

__all__ = [
    "ArchiveError",
    "ArchiveIncompatible",
    "ArchiveUnavailable",
    "ArchivedRun",
    "EventChunk",
    "InvalidPageToken",
    "RunFilter",
    "SqlArchive",
]
