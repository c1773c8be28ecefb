"""Reads chains back: pages, records, heads; and looks at the end of a chain. Nothing read here is trusted.

The newest pages are in the store, all before them in the archive (`moving.py`). A page's key is the number of its first
record. A page that cannot be read is as good as one that is not there, and a record whose content is not what a writer
writes is shown as a hidden one: its hash will not fit, and the verifier says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import audit_pb2
from google.protobuf.message import DecodeError

from ..archive import Archive, AuditPage
from ..store import keys
from ..store.port import KeyValue, Store, prefix_end
from .chain import HASH, START, follow

PAGES = 16
"""Pages read at once."""

LARGEST = 4096
"""More records than a page can have: a turn has fewer bytes."""

TAIL = 1000
"""Records at the end of a chain that are looked at when its writer starts."""


async def heads(store: Store) -> dict[str, records.AuditHead]:
    """Every chain and its head, of one moment."""
    found = await store.range(keys.AUDIT_HEADS, prefix_end(keys.AUDIT_HEADS))
    return {keys.parts(kv.key)[1]: _head(kv) for kv in found.kvs}


async def head(store: Store, chain: str) -> tuple[records.AuditHead, int] | None:
    """The head of one chain and the revision it was written at."""
    found = (await store.range(keys.audit_head(chain))).kvs
    return (_head(found[0]), found[0].mod_revision) if found else None


def _head(kv: KeyValue) -> records.AuditHead:
    try:
        return records.AuditHead.FromString(kv.value)
    except DecodeError:
        return records.AuditHead()


async def pages(
    store: Store, archive: Archive, chain: str, first: int, last: int
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """The records from number `first` to `last` with their numbers, some at a time, in order, wherever they are.

    The store is asked first: what has left it by then is in the archive. Raises ArchiveUnavailable.
    """
    start, end = await _page_of(store, chain, first), keys.audit(chain, last + 1)
    while True:
        found = await store.range(start, end, limit=PAGES)
        for kv in found.kvs:
            async for rows in _archived(archive, chain, first, min(_first(kv) - 1, last)):
                first = rows[-1][0] + 1
                yield rows
            if rows := [(seq, raw) for seq, raw in numbered(kv) if first <= seq <= last]:
                first = rows[-1][0] + 1
                yield rows
        if not found.more:
            break
        start = found.kvs[-1].key + b"\0"
    async for rows in _archived(archive, chain, first, last):
        yield rows


async def _archived(archive: Archive, chain: str, first: int, last: int) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Those of the records from number `first` to `last` that are in the archive."""
    while first <= last:
        found = await archive.audit_pages(chain, first, last, PAGES)
        for page in found:
            if rows := [(seq, raw) for seq, raw in _records(page.first_seq, page.data) if first <= seq <= last]:
                yield rows
            first = max(first, page.last_seq + 1)
        if len(found) < PAGES:
            return


async def stored(store: Store, chain: str, first: int, last: int) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Those of the records from number `first` to `last` that are in the store, some at a time, in order."""
    start, end = await _page_of(store, chain, first), keys.audit(chain, last + 1)
    while True:
        found = await store.range(start, end, limit=PAGES)
        for kv in found.kvs:
            yield [(seq, raw) for seq, raw in numbered(kv) if first <= seq <= last]
        if not found.more:
            return
        start = found.kvs[-1].key + b"\0"


async def _page_of(store: Store, chain: str, seq: int) -> bytes:
    """The key of the page that holds a record, or where to begin when there is none: looks further and further back."""
    for back in (0, 15, 255, LARGEST):
        kvs = (await store.range(keys.audit(chain, max(0, seq - back)), keys.audit(chain, seq + 1))).kvs
        for kv in reversed(kvs):
            found = numbered(kv)
            if found and found[-1][0] >= seq:
                return kv.key
    return keys.audit(chain, seq)


def numbered(kv: KeyValue) -> list[tuple[int, bytes]]:
    """The records of a page with their numbers."""
    return _records(_first(kv), kv.value)


def archivable(kv: KeyValue, chain: str, now: datetime) -> AuditPage:
    """A page as the archive takes it; `now` stands for a time that cannot be read."""
    rows = numbered(kv)
    last, raw = rows[-1] if rows else (_first(kv), b"")
    shown = record(chain, last, raw)
    time = now if shown.hidden else shown.time.ToDatetime(UTC)
    return AuditPage(chain, _first(kv), last, time, kv.value)


def end_of(page: AuditPage) -> bytes:
    """The hash of the last record of an archived page; empty when it cannot be read."""
    rows = _records(page.first_seq, page.data)
    return rows[-1][1][:HASH] if rows else b""


def _first(kv: KeyValue) -> int:
    return int(keys.parts(kv.key)[-1], 16)


def _records(first: int, data: bytes) -> list[tuple[int, bytes]]:
    try:
        return list(enumerate(records.AuditPage.FromString(data).records, first))
    except DecodeError:
        return []


def hidden(chain: str, seq: int, raw: bytes) -> audit_pb2.AuditRecord:
    """What everybody may see of a record."""
    return audit_pb2.AuditRecord(
        chain=chain, seq=seq, digest=hashlib.sha256(raw[HASH:]).hexdigest(), hash=raw[:HASH].hex(), hidden=True
    )


def record(chain: str, seq: int, raw: bytes) -> audit_pb2.AuditRecord:
    """The record as it is shown: with the number and chain that it says are its own."""
    content = raw[HASH:]
    try:
        said = json.loads(content)
        result = audit_pb2.AuditRecord(
            chain=said["chain"],
            seq=said["seq"],
            namespace=said["namespace"],
            principal=said["principal"],
            action=said["action"],
            resource=said["resource"],
            outcome=audit_pb2.AuditOutcome.Value("AUDIT_OUTCOME_" + said["outcome"]),
            decision_id=said["decision_id"],
            policy_epoch=said["policy_epoch"],
            reason=said["reason"],
            details=said["details"],
            digest=hashlib.sha256(content).hexdigest(),
            hash=raw[:HASH].hex(),
        )
        result.time.FromMicroseconds(said["time"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return hidden(chain, seq, raw)
    return result


async def broken_at(store: Store, chain: str, head: records.AuditHead) -> tuple[int, str] | None:
    """The first of the last records in the store that is not what it was, and what is wrong with it.

    The archive is not asked, since a start must not wait for it. The newest records never leave the store.
    """
    first = max(head.trimmed_seq + 1, head.last_seq - TAIL + 1)
    expected = 0
    prev: bytes | None = None
    async for rows in stored(store, chain, first, head.last_seq):
        for seq, raw in rows:
            if expected == 0:
                expected = seq
                prev = head.trimmed_hash or START if seq == head.trimmed_seq + 1 else None
            if seq != expected:
                return expected, "it is missing"
            if prev is not None and follow(prev, raw[HASH:]) != raw[:HASH]:
                return seq, "its hash does not follow from the record before"
            prev, expected = raw[:HASH], seq + 1
    expected = expected or first
    if expected != head.last_seq + 1:
        return expected, "it is missing"
    if head.last_seq > head.trimmed_seq and prev != head.last_hash:
        return head.last_seq, "its hash is not that of the head"
    return None
