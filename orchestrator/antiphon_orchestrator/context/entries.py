"""One entry at a time: read, write, delete.

A write is one transaction: the entry, what its request id stands for, and compares for all it rests on. When a compare
fails, what is there says why, and the write is decided anew. An answer that was lost is found again by its request id,
which is written with the entry and remembered for an hour.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TypeVar

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import context_pb2, payload_pb2
from antiphon.v1 import context_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError, Violation, request_invalid
from ..api.payload_service import require_payload
from ..api.storing import settle
from ..blobs import Blobs
from ..store import keys
from ..store.port import CommitResult, Compare, Delete, KeyValue, Put, Store, Target, Txn
from .claims import Claims
from .gate import Gate
from .index import Index, Known, namespace_of
from .rules import Place, Quota, Standing, conflict, entry_message, label_keys, labelled, provenance, visible

REQUEST_KEPT = 3600 * 1_000_000
"""Microseconds a request id is remembered."""

ENTRY_BYTES = 256 * 1024
"""Largest entry as it is kept: an inline value with room for its labels and provenance. Pages and messages hold it."""

MOST_REST = 0.02
"""Seconds between two commits of entries at most, however slow the disk is."""

TRIES = 64
"""Times a write is decided anew because others were quicker, before its caller is told that it is too crowded."""

Request = TypeVar("Request", api.PutEntryRequest, api.DeleteEntryRequest)


class Entries:
    """`requests` indexes request ids. What has expired counts against the quota until it is collected."""

    def __init__(
        self,
        store: Store,
        gate: Gate,
        claims: Claims,
        index: Index,
        requests: Index,
        blobs: Blobs,
        quota: Quota,
        now: Callable[[], int],
    ) -> None:
        self._store = store
        self._gate = gate
        self._claims = claims
        self._index = index
        self._requests = requests
        self._blobs = blobs
        self._quota = quota
        self._now = now
        self._rest_until = 0.0

    async def get(self, who: Standing, request: api.GetEntryRequest) -> api.GetEntryResponse:
        """Raises ApiError: ENTRY_NOT_FOUND, POLICY_DENIED; the latter, too, when there is nothing to read."""
        scope = self._gate.scope(request.scope, who)
        place = Place(who.namespace, scope, request.key)
        kv, record = await self.read(place)
        labels = label_keys(record.value) if record is not None else frozenset[str]()
        self._gate.read(who, scope, request.key, labels)
        if kv is None or record is None:
            raise ApiError(ErrorReason.ERROR_REASON_ENTRY_NOT_FOUND, scope=scope.text, key=request.key)
        return api.GetEntryResponse(entry=entry_message(place, kv, record))

    async def value(self, who: Standing, scope: context_pb2.ContextScope, key: str) -> tuple[int, payload_pb2.Payload]:
        """Revision and value of an entry; 0 and an empty one when it is not there. Raises ApiError: POLICY_DENIED."""
        named = self._gate.scope(scope, who)
        kv, record = await self.read(Place(who.namespace, named, key))
        self._gate.read(who, named, key, label_keys(record.value) if record is not None else frozenset())
        return (kv.mod_revision, record.value) if kv is not None and record is not None else (0, payload_pb2.Payload())

    async def read(self, place: Place) -> tuple[KeyValue | None, records.EntryRecord | None]:
        """An entry that is there now."""
        kvs = (await self._store.range(place.store_key)).kvs
        if kvs:
            record = records.EntryRecord.FromString(kvs[0].value)
            if visible(record.expire_time, self._now()):
                return kvs[0], record
        return None, None

    async def put(self, who: Standing, request: api.PutEntryRequest) -> api.PutEntryResponse:
        """Raises ApiError: ENTRY_CONFLICT, CONTEXT_QUOTA_EXCEEDED, CLAIM_LOST, PAYLOAD_NOT_FOUND, REQUEST_ID_REUSED,
        POLICY_DENIED."""
        scope = self._gate.scope(request.scope, who)
        place = Place(who.namespace, scope, request.key)
        value = await self._value(who, request.value)
        decision_id = self._gate.write(who, scope, request.key, label_keys(value))
        record = records.EntryRecord(value=value, provenance=provenance(who, decision_id))
        expected = request.expected_revision if request.HasField("expected_revision") else None
        asked = _Asked(who, request)
        key = place.store_key
        stale = False  # whether what the index says of the entry is known to be out of date
        for _ in range(TRIES):
            now = self._now()
            known = await self._look(key) if stale else self._index.get(key)
            there = known is not None and visible(known.expire_time, now)
            if conflict(expected, known.revision if known and there else 0):
                if stale:
                    return await self._made_or(asked, place, expected, known.revision if known and there else 0)
                stale = True
                continue
            record.create_time = known.create_time if known and there else now
            record.update_time = now
            record.expire_time = now + request.ttl.ToMicroseconds() if request.HasField("ttl") else 0
            data = record.SerializeToString()
            compares = [Compare(asked.key, Target.VERSION, 0)]
            if expected is not None:
                compares.append(Compare(key, Target.MOD_REVISION, known.revision if known else 0))
            if request.HasField("claim"):
                compares.append(await self._guard(who, request, asked))
            size = len(key) + len(data)
            if size > ENTRY_BYTES:
                raise ApiError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, limit=ENTRY_BYTES)
            self._check_room(key, size)
            kept = asked.record(now, record.expire_time)
            with self._index.reserved(key, size):
                ops = (Put(key, data), Put(asked.key, kept.SerializeToString()))
                result = await self._commit(Txn(tuple(compares), ops, (asked.key,)))
            if result.succeeded:
                self._index.put(key, Known(result.revision, size, record.expire_time, record.create_time))
                self._requests.put(asked.key, Known(result.revision, 1, kept.expire_time))
                return _put_response(result.revision, record.expire_time)
            if (made := result.observed.get(asked.key)) is not None:
                return _put_response(*asked.answer(made))
            stale = True
        raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue=f"entry {request.key}, which others keep writing,")

    async def delete(self, who: Standing, request: api.DeleteEntryRequest) -> api.DeleteEntryResponse:
        """Raises ApiError: ENTRY_CONFLICT, CLAIM_LOST, REQUEST_ID_REUSED, POLICY_DENIED."""
        scope = self._gate.scope(request.scope, who)
        place = Place(who.namespace, scope, request.key)
        self._gate.write(who, scope, request.key)
        expected = request.expected_revision if request.HasField("expected_revision") else None
        asked = _Asked(who, request)
        key = place.store_key
        for _ in range(TRIES):
            now = self._now()
            known = await self._look(key)
            revision = known.revision if known and visible(known.expire_time, now) else 0
            if conflict(expected, revision):
                return api.DeleteEntryResponse(
                    revision=(await self._made_or(asked, place, expected, revision)).revision
                )
            compares = [
                Compare(asked.key, Target.VERSION, 0),
                Compare(key, Target.MOD_REVISION, known.revision if known else 0),
            ]
            if request.HasField("claim"):
                compares.append(await self._guard(who, request, asked))
            kept = asked.record(now, 0)
            kept.nothing = not revision
            remember = Put(asked.key, kept.SerializeToString())
            ops = (Delete(key), remember) if known else (remember,)
            result = await self._commit(Txn(tuple(compares), ops, (asked.key,)))
            if result.succeeded:
                self._index.delete(key, result.revision)
                self._requests.put(asked.key, Known(result.revision, 1, kept.expire_time))
                return api.DeleteEntryResponse(revision=result.revision if revision else 0)
            if (made := result.observed.get(asked.key)) is not None:
                return api.DeleteEntryResponse(revision=asked.answer(made)[0])
        raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue=f"entry {request.key}, which others keep writing,")

    async def _commit(self, txn: Txn) -> CommitResult:
        """Commits, after as long a rest as the last commit took: unary calls trickle in one by one, and what comes
        meanwhile shares the next commit. Nobody rests when the last commit is longer ago than that."""
        clock = asyncio.get_running_loop().time
        if (rest := self._rest_until - clock()) > 0:
            await asyncio.sleep(rest)
        begun = clock()
        result = await settle(self._store, txn)
        ended = clock()
        self._rest_until = ended + min(ended - begun, MOST_REST)
        return result

    async def _value(self, who: Standing, value: payload_pb2.Payload) -> payload_pb2.Payload:
        kept = labelled(value, who)
        if kept is None:
            raise request_invalid([Violation("value.labels", "with those of what was read there are more than 64")])
        if kept.HasField("blob"):
            await require_payload(self._blobs, who.namespace, kept.blob.digest)
        return kept

    async def _look(self, key: bytes) -> Known | None:
        """What the store says of an entry; the index is told."""
        found = await self._store.range(key)
        if not found.kvs:
            self._index.delete(key, found.revision)
            return None
        known = known_entry(found.kvs[0])
        self._index.put(key, known)
        return known

    async def _guard(self, who: Standing, request: Request, asked: _Asked) -> Compare:
        """The compare of the claim. One that is lost after the write was made must not hide that it was made."""
        try:
            return await self._claims.guard(who, request.claim)
        except ApiError:
            if (await self._store.range(asked.key)).kvs:
                return Compare(asked.key, Target.VERSION, 0)
            raise

    async def _made_or(self, asked: _Asked, place: Place, expected: int | None, revision: int) -> api.PutEntryResponse:
        """The answer of a write that was made before by this request id; else the conflict it is in."""
        if kvs := (await self._store.range(asked.key)).kvs:
            return _put_response(*asked.answer(kvs[0]))
        raise ApiError(
            ErrorReason.ERROR_REASON_ENTRY_CONFLICT,
            scope=place.scope.text,
            key=place.key,
            expected=expected or 0,
            revision=revision,
        )

    def _check_room(self, key: bytes, size: int) -> None:
        before = self._index.get(key)
        entries, used = self._index.usage(namespace_of(key))
        if before is None and entries >= self._quota.entries:
            what, limit = "entries", self._quota.entries
        elif used + size - (before.size if before else 0) > self._quota.bytes:
            what, limit = "bytes", self._quota.bytes
        else:
            return
        raise ApiError(ErrorReason.ERROR_REASON_CONTEXT_QUOTA_EXCEEDED, what=what, limit=limit)


class _Asked:
    """A request to write, and what is kept of it under its id."""

    def __init__(self, who: Standing, request: api.PutEntryRequest | api.DeleteEntryRequest) -> None:
        self.request_id = request.request_id
        self.key = keys.context_request(who.namespace, who.caller, request.request_id)
        data = request.DESCRIPTOR.name.encode() + request.SerializeToString(deterministic=True)
        self._digest = hashlib.sha256(data).digest()

    def record(self, now: int, entry_expire_time: int) -> records.ContextRequestRecord:
        return records.ContextRequestRecord(
            digest=self._digest, expire_time=now + REQUEST_KEPT, entry_expire_time=entry_expire_time
        )

    def answer(self, kv: KeyValue) -> tuple[int, int]:
        """Revision and expire time that were answered before. Raises ApiError (REQUEST_ID_REUSED)."""
        record = records.ContextRequestRecord.FromString(kv.value)
        if record.digest != self._digest:
            raise ApiError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, request_id=self.request_id)
        return 0 if record.nothing else kv.mod_revision, record.entry_expire_time


def known_entry(kv: KeyValue) -> Known:
    """What the index keeps of an entry."""
    record = records.EntryRecord.FromString(kv.value)
    return Known(kv.mod_revision, len(kv.key) + len(kv.value), record.expire_time, record.create_time)


def _put_response(revision: int, expire_time: int) -> api.PutEntryResponse:
    response = api.PutEntryResponse(revision=revision)
    if expire_time:
        response.expire_time.FromMicroseconds(expire_time)
    return response


def deletion(place: Place, revision: int) -> context_pb2.EntryDeletion:
    """An entry that is gone, as it travels."""
    return context_pb2.EntryDeletion(scope=place.scope.message(), key=place.key, revision=revision)
