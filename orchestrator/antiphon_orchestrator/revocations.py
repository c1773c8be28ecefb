"""Which certificates are revoked: kept in the store, known to every replica by its watch, asked about on every call.

A revocation names one certificate by its serial number, or all of an identity that were issued until a moment. That
moment lies `MARGIN` after the commit, so that a replica whose clock is a little ahead cannot issue one beyond it; what
is issued to the identity on purpose afterwards, with a new token, is dated after it (`not_before`). Whoever issues for
a certificate that is presented asks the store once more when it has issued (`confirm`): either it sees the revocation,
or the new certificate is of a time that the revocation covers.

A revocation is forgotten when nothing is left that it could refuse, so their number is bounded by what is revoked in
that time, and by `LIMIT`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import LEAF_LIFETIME, LONGEST_RECOVERY, Clock, Identity, Peer

from . import telemetry
from .api.errors import ApiError
from .api.storing import settle
from .store import keys
from .store.port import (
    Compacted,
    Compare,
    Delete,
    EventType,
    KeyValue,
    Put,
    Store,
    StoreError,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)

log = telemetry.logger("revocations")

MARGIN = timedelta(seconds=20)
"""By which the clocks of two replicas may differ, with the time that a commit takes. Less than how far behind the clock
of who reads a certificate may be, so that one which is dated after it is valid at once."""

KEPT = LEAF_LIFETIME + LONGEST_RECOVERY + timedelta(hours=24)
"""As long as a certificate may be brought back, whatever window an orchestrator is told, and as an unused token may be
used."""

LIMIT = 10_000
"""Of all namespaces together; some 2 MB."""

_STEP = timedelta(seconds=2)
_RETRY = 0.2
_RACES = 5
_LOOK_AFTER = timedelta(minutes=10)


class Subject(NamedTuple):
    """What is revoked in a namespace: `serial`, or the identity of `kind` and `name`."""

    namespace: str
    kind: str = ""
    name: str = ""
    serial: str = ""

    @property
    def key(self) -> bytes:
        if self.serial:
            return keys.revoked_serial(self.namespace, self.serial)
        return keys.revoked_identity(self.namespace, self.kind, self.name)

    @classmethod
    def of(cls, identity: Identity) -> Subject:
        return cls(identity.namespace, identity.kind.value, identity.name)


class Known(NamedTuple):
    """A revocation, and the revision it was written with."""

    record: records.RevocationRecord
    revision: int


class Revocations:
    """Of the whole mesh, as this replica knows them; `load` first."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[Subject, Known] = {}
        self._followed = 0

    # What is asked.

    def check(self, peer: Peer) -> None:
        """By what this replica knows. Raises ApiError (CERTIFICATE_REVOKED)."""
        if not self._known:
            return
        identity = peer.identity
        of_all = self._known.get(Subject.of(identity))
        of_one = self._known.get(_by_serial(peer))
        _refuse(peer, of_all.record if of_all else None, of_one.record if of_one else None)

    async def not_before(self, identity: Identity) -> datetime:
        """The time to issue a certificate at, so that what was revoked of the identity before does not refuse it."""
        found = await self.of(identity)
        now = self._clock.now()
        return now if found is None else max(now, _moment(found.record.issued_until) + timedelta(seconds=1))

    async def confirm(self, peer: Peer, issued: datetime) -> None:
        """What was issued at `issued` in exchange for a certificate may leave. Raises ApiError."""
        of_all = await self.of(peer.identity)
        of_one = await self._read(_by_serial(peer))
        _refuse(peer, of_all.record if of_all else None, of_one.record if of_one else None)
        if of_all is not None and _micros(issued) <= of_all.record.issued_until:
            raise _revoked(peer.identity, of_all.record)

    async def of(self, identity: Identity) -> Known | None:
        """What the store says now of all certificates of an identity."""
        return await self._read(Subject.of(identity))

    async def any_of(self, namespace: str, serials: Iterable[str]) -> bool:
        """Whether the store says now that one of these certificates is revoked."""
        for serial in serials:
            if await self._read(Subject(namespace, serial=serial)) is not None:
                return True
        return False

    def listed(self, namespace: str) -> Iterator[tuple[Subject, records.RevocationRecord]]:
        """All revocations of a namespace, ordered by their keys."""
        found = [(subject, known) for subject, known in self._known.items() if subject.namespace == namespace]
        for subject, known in sorted(found, key=lambda item: item[0].key):
            yield subject, known.record

    # Changes.

    async def revoke(self, subject: Subject, cause: str, principal: str) -> None:
        """In force here when it returns. Raises ApiError (REVOCATIONS_EXHAUSTED)."""
        for _ in range(_RACES):
            former = await self._read(subject)
            if former is None and len(self._known) >= LIMIT:
                raise ApiError(ErrorReason.ERROR_REASON_REVOCATIONS_EXHAUSTED, limit=LIMIT)
            now = self._clock.now()
            until = now + MARGIN
            record = records.RevocationRecord(cause=cause, principal=principal, create_time=_micros(now))
            if not subject.serial:
                if former is not None:  # beyond what was dated after that one
                    until = max(until, _moment(former.record.issued_until) + _STEP)
                record.issued_until = _micros(until)
            record.expire_time = _micros(until + KEPT)
            revision = await self._put(subject, record, former.revision if former else 0)
            if revision and self._clock.now() < until:
                self._note(subject, Known(record, revision))
                log.info("revoked", namespace=subject.namespace, principal=principal, cause=cause)
                return
        raise ApiError(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE)

    async def _put(self, subject: Subject, record: records.RevocationRecord, former: int) -> int:
        """The revision of the record; 0 when another was written meanwhile."""
        key, value = subject.key, record.SerializeToString()
        compare = Compare(key, Target.MOD_REVISION, former)
        result = await settle(self._store, Txn((compare,), (Put(key, value),), (key,), spare=True))
        if result.succeeded:
            return result.revision
        there = result.observed[key]
        return there.mod_revision if there is not None and there.value == value else 0

    # What other replicas do.

    async def load(self) -> None:
        """Reads all revocations: before anybody is served, and when changes may have been missed."""
        found = await self._store.range(keys.REVOCATIONS, prefix_end(keys.REVOCATIONS))
        there = {_subject(kv.key) for kv in found.kvs}
        for subject, known in list(self._known.items()):
            if subject not in there and known.revision <= found.revision:
                del self._known[subject]
        for kv in found.kvs:
            if kv.mod_revision >= self._followed:  # else the watch, which may be ahead, has told of it, or of its end
                self._note(_subject(kv.key), _known(kv))
        self._followed = max(self._followed, found.revision + 1)

    async def run(self) -> None:
        """Follows what other replicas revoke, and forgets; cancel to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="revocations")
            group.create_task(self._look_after(), name="forgotten revocations")

    async def _follow(self) -> None:
        lost = False
        while True:
            try:
                if lost:
                    await self.load()
                    lost = False
                async with aclosing(self._store.watch(keys.REVOCATIONS, self._followed)) as changes:
                    async for batch in changes:
                        for event in batch.events:
                            self._take(event.type, event.kv)
                        self._followed = batch.revision + 1
            except Compacted:
                lost = True
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "revocations_not_followed", cause=str(error))
                await asyncio.sleep(_RETRY * (0.5 + random.random()))

    def _take(self, kind: EventType, kv: KeyValue) -> None:
        subject = _subject(kv.key)
        if kind is EventType.PUT:
            self._note(subject, _known(kv))
        elif (known := self._known.get(subject)) is not None and known.revision < kv.mod_revision:
            del self._known[subject]

    def _note(self, subject: Subject, known: Known) -> None:
        former = self._known.get(subject)
        if former is None or former.revision < known.revision:
            self._known[subject] = known

    async def _look_after(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_AFTER)
            try:
                await self.forget()
            except StoreError as error:
                log.warning("revocations_not_forgotten", cause=str(error))

    async def forget(self) -> None:
        """Drops the revocations of which nothing is left. Raises StoreError."""
        now = _micros(self._clock.now())
        for subject, known in list(self._known.items()):
            if known.record.expire_time < now:
                compare = Compare(subject.key, Target.MOD_REVISION, known.revision)
                result = await settle(self._store, Txn((compare,), (Delete(subject.key),)))
                if result.succeeded and self._known.get(subject) is known:
                    del self._known[subject]

    async def _read(self, subject: Subject) -> Known | None:
        found = (await self._store.range(subject.key)).kvs
        return _known(found[0]) if found else None


def _refuse(peer: Peer, of_all: records.RevocationRecord | None, of_one: records.RevocationRecord | None) -> None:
    if of_one is not None:
        raise _revoked(peer.identity, of_one)
    if of_all is not None and _micros(peer.issue_time) <= of_all.issued_until:
        raise _revoked(peer.identity, of_all)


def _revoked(identity: Identity, record: records.RevocationRecord) -> ApiError:
    when = _moment(record.create_time).isoformat(timespec="seconds")
    reason = ErrorReason.ERROR_REASON_CERTIFICATE_REVOKED
    return ApiError(reason, identity=identity.uri, revoke_time=when, cause=record.cause)


def _by_serial(peer: Peer) -> Subject:
    return Subject(peer.identity.namespace, serial=f"{peer.serial:x}")


def _subject(key: bytes) -> Subject:
    _, namespace, kind, *rest = keys.parts(key)
    if kind == "serial":
        return Subject(namespace, serial=rest[0])
    return Subject(namespace, *rest)


def _known(kv: KeyValue) -> Known:
    return Known(records.RevocationRecord.FromString(kv.value), kv.mod_revision)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
