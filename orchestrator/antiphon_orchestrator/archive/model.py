"""What the archive holds and how it is asked: plain values and errors, no database.

ArchiveError
├── ArchiveUnavailable   the database cannot be used now; nothing of the call was written
│   └── ArchiveRefused   it answers, and does not let us in
├── ArchiveIncompatible  the database was made by another version
└── InvalidPageToken     the page token was not made by this listing
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGEST_BYTES = 8
_TIME_BYTES = 8


class ArchiveError(Exception):
    """Root of everything an archive raises."""


class ArchiveUnavailable(ArchiveError):
    """The database cannot be used now. Every write is idempotent: repeat it."""


class ArchiveRefused(ArchiveUnavailable):
    """The database does not let us in, or is not who it should be: somebody must act. The text says what to do."""


class ArchiveIncompatible(ArchiveError):
    """The database has another version's tables. The text says what to do."""


class InvalidPageToken(ArchiveError):
    """The page token is malformed, or belongs to a listing with another filter."""


@dataclass(frozen=True, slots=True)
class ArchivedRun:
    """The summary of a run, ended or (end_time None) long-lived. Times are aware; `last_event_seq` orders versions.

    `failure_kind`: a number of antiphon.v1.FailureKind; 0 where there is no failure, and of runs archived before
    migration 0006.
    """

    run_id: str
    namespace: str
    graph_name: str
    graph_version: str
    state: str
    principal: str
    request_key: bytes
    request_digest: bytes
    create_time: datetime
    last_event_seq: int
    end_time: datetime | None = None
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    failure_text: str = ""
    failure_kind: int = 0
    failure_code: str = ""


@dataclass(frozen=True, slots=True)
class ArchivedRequest:
    """The request that a run came of; `end_time`: when that run ended."""

    run_id: str
    request_key: bytes
    request_digest: bytes
    end_time: datetime


@dataclass(frozen=True, slots=True)
class EventChunk:
    """Events `first_seq` to `last_seq` of a run, both included. `data`: length-delimited records, opaque here."""

    run_id: str
    first_seq: int
    last_seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Records `first_seq` to `last_seq` of an audit chain, both included, the newest of `last_time`. `data`: as in the
    store, opaque here."""

    chain: str
    first_seq: int
    last_seq: int
    last_time: datetime
    data: bytes


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs of a namespace to list; what is left out does not restrict.

    `created_after` is included, `created_before` is not. `parent`: the run, or the attempt, that called for it.
    `labels`: all of these (key, value) pairs. `failure`: a part of its failure's text; ASCII letters match in either
    case.
    """

    namespace: str
    graph_name: str | None = None
    graph_version: str = ""
    states: tuple[str, ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    parent: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    failure: str = ""


def to_micros(time: datetime) -> int:
    """Microseconds since 1970, exact; `time` must be aware."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The inverse of `to_micros`, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def make_page_token(filter: RunFilter, create_micros: int, run_id: str) -> str:
    """The position after a run in the listing of a filter.

    The digest catches damage and a changed filter. It is no secret: a forged token only moves within what the filter
    shows anyway.
    """
    position = create_micros.to_bytes(_TIME_BYTES, "big", signed=True) + run_id.encode()
    return base64.urlsafe_b64encode(_digest(filter, position) + position).decode().rstrip("=")


def read_page_token(filter: RunFilter, token: str) -> tuple[int, str]:
    """The position in a token: creation in microseconds, run id. Raises InvalidPageToken."""
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, position = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if len(position) < _TIME_BYTES or digest != _digest(filter, position):
            raise InvalidPageToken("the page token does not belong to this listing: start again without it")
        return int.from_bytes(position[:_TIME_BYTES], "big", signed=True), position[_TIME_BYTES:].decode()
    except (ValueError, binascii.Error) as error:
        raise InvalidPageToken("the page token is malformed: start again without it") from error


def _digest(filter: RunFilter, position: bytes) -> bytes:
    return hashlib.blake2b(repr(filter).encode() + b"\0" + position, digest_size=_DIGEST_BYTES).digest()
