"""Reads back what a shard has in the store. Apart from its log because compiled code has no asynchronous generators."""

from __future__ import annotations

from collections.abc import AsyncIterator

from antiphon.store.v1 import journal_pb2 as journal

from ..store import keys
from ..store.port import KeyValue, Store

PAGE = 32
"""Segments read at once; at most 1 MiB each."""


async def segments(store: Store, shard: int) -> AsyncIterator[tuple[int, journal.LogSegment]]:
    """Every segment of the shard's log with its number, in order."""
    async for kv in _pages(store, keys.log_prefix(shard)):
        yield int(keys.parts(kv.key)[-1], 16), journal.LogSegment.FromString(kv.value)


async def retained(store: Store, shard: int) -> AsyncIterator[tuple[int, journal.RequestsRetained]]:
    """Request ids of archived runs, oldest first."""
    async for kv in _pages(store, keys.requests_prefix(shard)):
        yield int(keys.parts(kv.key)[-1], 16), journal.RequestsRetained.FromString(kv.value)


async def _pages(store: Store, prefix: bytes) -> AsyncIterator[KeyValue]:
    start, end = prefix, prefix[:-1] + bytes([prefix[-1] + 1])
    while True:
        page = await store.range(start, end, limit=PAGE)
        for kv in page.kvs:
            yield kv
        if not page.more:
            return
        start = page.kvs[-1].key + b"\0"
