"""The SQL texts of the embedded store, each constant so that it is prepared once.

A statement over many rows exists for each power of two up to 256; any number of rows takes a few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from .port import UP_TO_LAST

T = TypeVar("T")

SMALL_VALUE = 512
"""Bytes of a value that is read along with its key's revisions."""

SCHEMA = """
CREATE TABLE kv (
    key BLOB NOT NULL UNIQUE, value BLOB, create_revision INTEGER, mod_revision INTEGER, version INTEGER, lease INTEGER
);
CREATE INDEX kv_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE events (
    revision INTEGER, place INTEGER, key BLOB, value BLOB, create_revision INTEGER, version INTEGER, lease INTEGER,
    before BLOB, PRIMARY KEY (revision, place)
) WITHOUT ROWID;
CREATE TABLE history (first_revision INTEGER NOT NULL);
INSERT INTO history VALUES (1);
INSERT INTO kv VALUES (x'', x'', 1, 1, 1, 0);
"""

FROM_FORMAT_1 = """
ALTER TABLE events ADD COLUMN before BLOB;
DELETE FROM events;
UPDATE history SET first_revision = (SELECT mod_revision FROM kv WHERE key = x'') + 1
"""
"""Its history does not say what was there before: whoever would go on in it lists again."""

_SIZES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


def _by_size(head: str, item: str, tail: str = "") -> dict[int, str]:
    return {size: head + ",".join([item] * size) + tail for size in _SIZES}


LOAD = _by_size(
    f"SELECT key, CASE WHEN length(value) <= {SMALL_VALUE} THEN value END,"
    " create_revision, mod_revision, version, lease FROM kv WHERE key IN (",
    "?",
    ")",
)
PUT = _by_size(
    "INSERT INTO kv VALUES ",
    "(?,?,?,?,?,?)",
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, create_revision = excluded.create_revision,"
    " mod_revision = excluded.mod_revision, version = excluded.version, lease = excluded.lease",
)
DELETE = _by_size("DELETE FROM kv WHERE key IN (", "?", ")")
EVENT = _by_size("INSERT INTO events VALUES ", "(?,?,?,?,?,?,?,?)")
OLDEST_TO_FORGET = """
SELECT max(revision) FROM (
    SELECT revision, dense_rank() OVER (ORDER BY revision DESC) AS age,
           sum(length(value) + ifnull(length(before), 0)) OVER (ORDER BY revision DESC) AS size FROM events
) WHERE age > ?1 OR (size > ?2 AND age > 1)
"""


def pieces(texts: dict[int, str], items: Sequence[T]) -> Iterator[tuple[str, Sequence[T]]]:
    """Splits items over the prepared statements, largest first."""
    done = 0
    for size, text in texts.items():
        while len(items) - done >= size:
            yield text, items[done : done + size]
            done += size


def between(start: bytes, end: bytes) -> tuple[str, tuple[bytes, ...]]:
    """The condition for an etcd range. Two texts, because an index serves `key < ?` but not `? IS NULL OR …`."""
    if end == UP_TO_LAST:
        return "key >= ?", (start or UP_TO_LAST,)
    return "key >= ? AND key < ?", (start or UP_TO_LAST, end or start + b"\0")
