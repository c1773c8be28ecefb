"""Claims: one holder at a time, for a while, with a fence that grows.

A claim is one key of the store. Whoever puts it, renews it or takes it over compares its revision, so of two that try
at once one is told that the other holds it. Its time is this replica's clock; its safety is the fence: a write that
names a claim compares the very revision that was looked at.

A holder that has lost its claim is told by the replica that ends it, whichever owns its run: the record says which
sidecar the attempt is out to, and sidecars are attached to all replicas. The others see the end in the store, and tell
it too when the claim's time was over: one that ended it may be gone before it told anybody. Whoever is told twice knows
it by the fence.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import context_pb2, context_request_pb2
from antiphon.v1 import context_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf.duration_pb2 import Duration

from ..api.errors import ApiError
from ..api.storing import settle
from ..store import keys
from ..store.port import Compare, Delete, EventType, KeyValue, Put, Store, Target, Txn, WatchEvent
from .gate import Gate
from .index import Index, Known, namespace_of
from .rules import Quota, Scope, Standing, claim_message, fence_of, holds

DEFAULT_TTL = timedelta(seconds=30) // timedelta(microseconds=1)

Lost = Callable[[str, context_request_pb2.ClaimLoss], None]
"""Takes the incarnation of a sidecar, and what an attempt that is out to it has lost."""


class Claims:
    """`lost` is told of each claim that an attempt had and has no more, without having released it."""

    def __init__(self, store: Store, gate: Gate, index: Index, quota: Quota, now: Callable[[], int]) -> None:
        self._store = store
        self._gate = gate
        self._index = index
        self._quota = quota
        self._now = now
        self.lost: Lost = lambda incarnation, loss: None

    async def acquire(self, who: Standing, request: api.AcquireClaimRequest) -> api.AcquireClaimResponse:
        """Raises ApiError: CLAIM_HELD, CONTEXT_QUOTA_EXCEEDED, POLICY_DENIED."""
        scope, name = self._gate.scope(request.scope, who), request.name
        self._gate.write(who, scope, name)
        key = keys.claim(who.namespace, scope.text, name)
        while True:
            now = self._now()
            kv, held = await self._read(key)
            if held is not None and now < held.expire_time:
                if not holds(who, held, now) or held.request_id != request.request_id:
                    raise ApiError(
                        ErrorReason.ERROR_REASON_CLAIM_HELD,
                        claim=name,
                        holder=held.attempt_id or held.principal,
                        expire_time=_spelled(held.expire_time),
                    )
                assert kv is not None
                record = records.ClaimRecord()
                record.CopyFrom(held)
                record.fence = fence_of(kv, held)
            else:
                count, _ = self._index.usage(namespace_of(key))
                if kv is None and count >= self._quota.claims:
                    limit = self._quota.claims
                    raise ApiError(ErrorReason.ERROR_REASON_CONTEXT_QUOTA_EXCEEDED, what="claims", limit=limit)
                record = records.ClaimRecord(
                    principal=who.principal,
                    attempt_id=who.attempt_id,
                    incarnation=who.incarnation,
                    request_id=request.request_id,
                    acquire_time=now,
                )
            record.expire_time = now + _ttl(request.HasField("ttl"), request.ttl)
            revision = await self._put(key, kv, record)
            if revision:
                if kv is not None and not record.fence:
                    self.tell_lost(key, known_claim(kv))
                fence = record.fence or revision
                return api.AcquireClaimResponse(claim=claim_message(scope, name, fence, record))

    async def renew(self, who: Standing, request: api.RenewClaimRequest) -> api.RenewClaimResponse:
        """Raises ApiError: CLAIM_LOST, POLICY_DENIED."""
        scope = self._gate.scope(request.claim.scope, who, "claim.scope")
        name, fence = request.claim.name, request.claim.fence
        self._gate.write(who, scope, name)
        key = keys.claim(who.namespace, scope.text, name)
        while True:
            kv, record = await self._held(who, key, request.claim)
            record.fence = fence
            record.expire_time = self._now() + _ttl(request.HasField("ttl"), request.ttl)
            if await self._put(key, kv, record):
                return api.RenewClaimResponse(claim=claim_message(scope, name, fence, record))

    async def release(self, who: Standing, request: api.ReleaseClaimRequest) -> api.ReleaseClaimResponse:
        """Raises ApiError: POLICY_DENIED. A claim that is another's by now stays his."""
        scope = self._gate.scope(request.claim.scope, who, "claim.scope")
        self._gate.write(who, scope, request.claim.name)
        key = keys.claim(who.namespace, scope.text, request.claim.name)
        while True:
            kv, record = await self._read(key)
            if kv is None or record is None or fence_of(kv, record) != request.claim.fence:
                return api.ReleaseClaimResponse()
            if not holds(who, record, 0):
                return api.ReleaseClaimResponse()
            if await self.end(kv):
                return api.ReleaseClaimResponse()

    async def guard(self, who: Standing, claim: context_pb2.ClaimReference) -> Compare:
        """What a write that names a claim must compare. Raises ApiError (CLAIM_LOST) when it is not the caller's."""
        scope = self._gate.scope(claim.scope, who, "claim.scope")
        key = keys.claim(who.namespace, scope.text, claim.name)
        kv, _ = await self._held(who, key, claim)
        return Compare(key, Target.MOD_REVISION, kv.mod_revision)

    async def end(self, kv: KeyValue) -> bool:
        """Deletes a claim as it was read; False when it has changed since."""
        mine = Compare(kv.key, Target.MOD_REVISION, kv.mod_revision)
        result = await settle(self._store, Txn((mine,), (Delete(kv.key),)))
        if result.succeeded:
            self._index.delete(kv.key, result.revision)
        return result.succeeded

    def tell_lost(self, key: bytes, known: Known) -> None:
        """The attempt that held it, if one did, is to know."""
        if known.attempt_id:
            _, _, scope, name = keys.parts(key)
            loss = context_request_pb2.ClaimLoss(attempt_id=known.attempt_id)
            loss.claim.scope.CopyFrom(Scope.read(scope).message())
            loss.claim.name, loss.claim.fence = name, known.fence
            self.lost(known.incarnation, loss)

    def followed(self, event: WatchEvent) -> None:
        """A claim has changed, here or elsewhere; told before the index is.

        One that was deleted before its time was released, or its attempt is over: nobody has lost it.
        """
        key, revision = event.kv.key, event.kv.mod_revision
        known = self._index.get(key)
        if known is None or known.revision >= revision:
            return  # it was changed here, where that was dealt with
        if event.type is EventType.PUT:
            lost = known_claim(event.kv).fence != known.fence
        else:
            lost = known.expire_time <= self._now()
        if lost:
            self.tell_lost(key, known)

    async def _held(
        self, who: Standing, key: bytes, claim: context_pb2.ClaimReference
    ) -> tuple[KeyValue, records.ClaimRecord]:
        kv, record = await self._read(key)
        if kv is None or record is None or fence_of(kv, record) != claim.fence or not holds(who, record, self._now()):
            raise ApiError(ErrorReason.ERROR_REASON_CLAIM_LOST, claim=claim.name, fence=claim.fence)
        return kv, record

    async def _read(self, key: bytes) -> tuple[KeyValue | None, records.ClaimRecord | None]:
        kvs = (await self._store.range(key)).kvs
        return (kvs[0], records.ClaimRecord.FromString(kvs[0].value)) if kvs else (None, None)

    async def _put(self, key: bytes, before: KeyValue | None, record: records.ClaimRecord) -> int:
        """The revision, or 0 when the claim is not as it was read: look again. So does an answer that was lost."""
        mine = Compare(key, Target.MOD_REVISION, before.mod_revision if before else 0)
        data = record.SerializeToString()
        with self._index.reserved(key, len(key) + len(data)):
            result = await settle(self._store, Txn((mine,), (Put(key, data),)))
        if not result.succeeded:
            return 0
        self._index.put(key, _known(key, result.revision, data, record))
        return result.revision


def known_claim(kv: KeyValue) -> Known:
    """What the index keeps of a claim."""
    return _known(kv.key, kv.mod_revision, kv.value, records.ClaimRecord.FromString(kv.value))


def _known(key: bytes, revision: int, data: bytes, record: records.ClaimRecord) -> Known:
    return Known(
        revision,
        len(key) + len(data),
        record.expire_time,
        attempt_id=record.attempt_id,
        incarnation=record.incarnation,
        fence=record.fence or revision,
    )


def _ttl(given: bool, ttl: Duration) -> int:
    return ttl.ToMicroseconds() if given else DEFAULT_TTL


def _spelled(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1e6, UTC).isoformat(timespec="seconds")
