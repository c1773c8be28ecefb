"""Reads chains back: pages, records, heads; and looks at the end of a chain. Nothing read here is trusted.

A page's key is the number of its first record. A page that cannot be read is as good as one that is not there, and a
record whose content is not what a writer writes is shown as a hidden one: its hash will not fit, and the verifier says
so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import audit_pb2
from google.protobuf.message import DecodeError

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


async def pages(store: Store, chain: str, first: int, last: int) -> AsyncIterator[list[tuple[int, bytes]]]:
    """The stored records from number `first` to `last` with their numbers, some at a time, in order."""
    start = await _page_of(store, chain, first)
    end = keys.audit(chain, last + 1)
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
    first = int(keys.parts(kv.key)[-1], 16)
    try:
        return list(enumerate(records.AuditPage.FromString(kv.value).records, first))
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
    """The first of the last records that is not what it was, and what is wrong with it."""
    first = max(head.trimmed_seq + 1, head.last_seq - TAIL + 1)
    prev = head.trimmed_hash or START if first == head.trimmed_seq + 1 else None
    expected = first
    async for rows in pages(store, chain, first, head.last_seq):
        for seq, raw in rows:
            if seq != expected:
                return expected, "it is missing"
            if prev is not None and follow(prev, raw[HASH:]) != raw[:HASH]:
                return seq, "its hash does not follow from the record before"
            prev, expected = raw[:HASH], seq + 1
    if expected != head.last_seq + 1:
        return expected, "it is missing"
    if head.last_seq > head.trimmed_seq and prev != head.last_hash:
        return head.last_seq, "its hash is not that of the head"
    return None


async def oldest(store: Store, chain: str, trimmed_seq: int, keep_from: int) -> tuple[int, bytes] | None:
    """Number and hash of the last record that can go so that `keep_from` and later ones stay; None when none can."""
    found = await store.range(keys.audit(chain, trimmed_seq + 1), keys.audit(chain, keep_from), limit=4 * PAGES)
    result = None
    for kv in found.kvs:
        rows = numbered(kv)
        if not rows or rows[-1][0] >= keep_from:
            break
        result = rows[-1][0], rows[-1][1][:HASH]
    return result
