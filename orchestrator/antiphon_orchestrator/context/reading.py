"""Many entries at once: pages, changes, lineage. What policy does not let the caller read is left out.

Between entries the loop is let go now and then: a decision about a key that is new costs 100 µs and more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeAlias, cast

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import context_pb2
from antiphon.v1 import context_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError
from ..api.paging import decode_token, encode_token
from ..store import keys
from ..store.port import Compacted, EventType, KeyValue, Store, WatchEvent, prefix_end
from .entries import Entries, deletion
from .gate import Gate
from .rules import Place, Scope, Standing, entry_message, label_keys, visible

Changes: TypeAlias = AsyncGenerator[api.WatchEntriesResponse, None]

PAGE = 50
MESSAGE_BYTES = 1 << 20
"""Size at which a page or a message is full, whatever its count; what is added last is at most some 100 KiB."""

_CHUNK = 64
_PAUSE_EVERY = 16
MOST_NODES = 256
_MOST_CHUNKS = 16
"""Chunks that one page reads at most; a scope that is full of what the caller may not see gives pages with nothing."""


class Reading:
    def __init__(self, store: Store, gate: Gate, entries: Entries, now: Callable[[], int]) -> None:
        self._store = store
        self._gate = gate
        self._entries = entries
        self._now = now

    async def list(self, who: Standing, request: api.ListEntriesRequest) -> api.ListEntriesResponse:
        """Raises ApiError (PAGE_TOKEN_INVALID)."""
        scope = self._gate.scope(request.scope, who)
        prefix = keys.context_range(who.namespace, scope.text, request.prefix)
        position = decode_token(request, str, int)
        start, revision, last = prefix, 0, ""
        if position is not None:
            start = keys.context(who.namespace, scope.text, str(position[0])) + b"\0"
            revision = cast(int, position[1])
        response = api.ListEntriesResponse()
        size, wanted = 0, request.page_size or PAGE
        for _ in range(_MOST_CHUNKS):
            found = await self._store.range(start, prefix_end(prefix), limit=min(_CHUNK, wanted + 1))
            revision = revision or found.revision
            response.revision = revision
            for kv in found.kvs:
                place = Place.read(kv.key)
                if len(response.entries) == wanted or size > MESSAGE_BYTES:
                    response.next_page_token = encode_token(request, (last, revision))
                    return response
                entry = await self._shown(who, place, kv)
                if entry is not None:
                    response.entries.append(entry)
                    size += len(kv.value)
                last = place.key
            if not found.more:
                return response
            start = found.kvs[-1].key + b"\0"
        response.next_page_token = encode_token(request, (last, revision))
        return response

    async def watch(self, who: Standing, request: api.WatchEntriesRequest) -> Changes:
        """The first message says from where, then changes follow; one without changes says how far there are none.

        Raises ApiError (HISTORY_COMPACTED).
        """
        scope = self._gate.scope(request.scope, who)
        prefix = keys.context_range(who.namespace, scope.text, request.prefix)
        first = request.from_revision
        if not first:
            first = (await self._store.range(prefix, prefix_end(prefix), limit=1)).revision + 1
        changes = self._store.watch(prefix, first, before=True)
        yield api.WatchEntriesResponse(revision=first - 1)
        try:
            async for batch in changes:
                response = api.WatchEntriesResponse()
                size = 0
                for event in batch.events:
                    if size > MESSAGE_BYTES and event.kv.mod_revision > response.revision:
                        yield response
                        response, size = api.WatchEntriesResponse(), 0
                    told = await self._told(who, event)
                    if told is not None:
                        response.events.append(told)
                        size += len(event.kv.value)
                    response.revision = event.kv.mod_revision
                response.revision = batch.revision
                yield response
        except Compacted as error:
            raise ApiError(ErrorReason.ERROR_REASON_HISTORY_COMPACTED, revision=error.revision) from error
        finally:
            await changes.aclose()

    async def next_changes(
        self, who: Standing, request: api.WatchEntriesRequest, patience: float
    ) -> api.WatchEntriesResponse:
        """The first changes from a revision on; without a revision, where to begin. After `patience` seconds how far
        nothing has changed, so that whoever asks on from there is not overtaken by compaction. Raises as `watch` does.
        """
        async with aclosing(self.watch(who, request)) as messages:
            answer = await anext(messages)
            if request.from_revision:
                try:
                    async with asyncio.timeout(patience):
                        while not answer.events:
                            answer = await anext(messages)
                except TimeoutError:
                    pass
            return answer

    async def lineage(self, who: Standing, request: api.GetLineageRequest) -> api.GetLineageResponse:
        """Breadth first. Raises ApiError: ENTRY_NOT_FOUND, POLICY_DENIED."""
        entry = (await self._entries.get(who, api.GetEntryRequest(scope=request.scope, key=request.key))).entry
        response = api.GetLineageResponse()
        node = response.nodes.add(provenance=entry.provenance)
        node.entry.CopyFrom(_reference(entry))
        waiting = deque((source, 1) for source in entry.provenance.sources)
        seen = {_identity(node.entry)}
        while waiting:
            source, distance = waiting.popleft()
            if _identity(source) in seen:
                continue
            if len(response.nodes) == MOST_NODES:
                response.cut = True
                break
            seen.add(_identity(source))
            node = response.nodes.add(entry=source, distance=distance)
            scope = Scope.named(source.scope)
            if scope is None:
                continue
            place = Place(who.namespace, scope, source.key)
            kv, record = await self._entries.read(place)
            if kv is None or record is None or kv.mod_revision != source.revision:
                continue
            if self._gate.may_read(who, place.scope, place.key, label_keys(record.value)):
                node.provenance.CopyFrom(record.provenance)
                waiting.extend((further, distance + 1) for further in record.provenance.sources)
        return response

    async def _shown(self, who: Standing, place: Place, kv: KeyValue) -> context_pb2.Entry | None:
        record = records.EntryRecord.FromString(kv.value)
        if not visible(record.expire_time, self._now()):
            return None
        if kv.mod_revision % _PAUSE_EVERY == 0:
            await asyncio.sleep(0)
        if not self._gate.may_read(who, place.scope, place.key, label_keys(record.value)):
            return None
        return entry_message(place, kv, record)

    async def _told(self, who: Standing, event: WatchEvent) -> context_pb2.EntryEvent | None:
        """An event as it travels. An entry that has expired meanwhile is told as gone, in its place, and so is one that
        may not be read any more, where it might be until then; of what might not, nobody hears the name.

        That is told from what the entry was, and not from what this watch has told before: who asks again and again is
        a new watch each time."""
        place, revision = Place.read(event.kv.key), event.kv.mod_revision
        if revision % _PAUSE_EVERY == 0:
            await asyncio.sleep(0)
        if event.type is EventType.PUT:
            record = records.EntryRecord.FromString(event.kv.value)
            if self._gate.may_read(who, place.scope, place.key, label_keys(record.value)):
                if visible(record.expire_time, self._now()):
                    return context_pb2.EntryEvent(put=entry_message(place, event.kv, record))
                return context_pb2.EntryEvent(deleted=deletion(place, revision))
        if event.before is not None:
            former = records.EntryRecord.FromString(event.before)
            if self._gate.may_read(who, place.scope, place.key, label_keys(former.value)):
                return context_pb2.EntryEvent(deleted=deletion(place, revision))
        return None


def _reference(entry: context_pb2.Entry) -> context_pb2.EntryReference:
    return context_pb2.EntryReference(scope=entry.scope, key=entry.key, revision=entry.revision)


def _identity(reference: context_pb2.EntryReference) -> bytes:
    return reference.SerializeToString(deterministic=True)
