"""The archive: finished runs, their events, and the search over them. Knows nothing of the journal or the wire."""

from .model import (
    ArchivedRequest,
    ArchivedRun,
    ArchiveError,
    ArchiveIncompatible,
    ArchiveRefused,
    ArchiveUnavailable,
    AuditPage,
    EventChunk,
    InvalidPageToken,
    RunFilter,
)
from .place import archive_at, check_url, shown_url
from .port import Archive

__all__ = [
    "Archive",
    "ArchiveError",
    "ArchiveIncompatible",
    "ArchiveRefused",
    "ArchiveUnavailable",
    "ArchivedRequest",
    "ArchivedRun",
    "AuditPage",
    "EventChunk",
    "InvalidPageToken",
    "RunFilter",
    "archive_at",
    "check_url",
    "shown_url",
]
