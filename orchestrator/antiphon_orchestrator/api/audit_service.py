"""AuditService: see protos/antiphon/v1/audit_service.proto. All is read from store and archive: any replica answers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import audit_pb2, audit_service_pb2_grpc
from antiphon.v1 import audit_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Clock, Credential, sign

from ..archive import Archive, ArchiveUnavailable
from ..audit import reading, signed_content
from ..audit.chain import HASH, START
from ..cluster.gathering import Gathering, coverage
from ..runs.archived import ArchivedRuns
from ..store.port import Store
from .call import FORWARDED, caller
from .errors import ApiError
from .identity_service import SYSTEM_NAMESPACE
from .paging import decode_token, encode_token

Context = grpc.aio.ServicerContext[Any, Any]

PAGE = 100

LOOKED_AT = 20_000
"""Records that one call of ListRecords reads at most: some 100 ms of the event loop, in pieces."""

PAGE_BYTES = 2 << 20

WINDOW = 256
"""Records that are read at once when the newest come first."""

PROOF = 10_000
"""Records in one part of a proof."""


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """`write` brings what the shards here have committed into pages, and says which shards those are. `credential` is
    asked at each checkpoint: certificates change."""

    def __init__(
        self,
        store: Store,
        archive: Archive,
        write: Callable[[], Awaitable[list[int]]],
        archived: ArchivedRuns,
        clock: Clock,
        credential: Callable[[], Credential],
        gathering: Gathering,
    ) -> None:
        self._store = store
        self._archive = archive
        self._write = write
        self._archived = archived
        self._clock = clock
        self._credential = credential
        self._gathering = gathering

    async def ListRecords(self, request: api.ListRecordsRequest, context: Context) -> api.ListRecordsResponse:
        head = await self._head(request.chain)
        found = decode_token(request, int)
        first, last = head.trimmed_seq + 1, head.last_seq
        if found is not None and request.newest_first:
            last = min(last, int(found[0]))
        elif found is not None:
            first = max(first, int(found[0]))
        wanted = _Filter(request, caller().namespace)
        response = api.ListRecordsResponse()
        rows = self._backwards(request.chain, first, last) if request.newest_first else self._rows(request, first, last)
        looked_at = size = 0
        async for seq, raw in rows:
            if len(response.records) == (request.page_size or PAGE) or looked_at == LOOKED_AT or size > PAGE_BYTES:
                response.next_page_token = encode_token(request, (seq,))
                break
            looked_at += 1
            record = reading.record(request.chain, seq, raw)
            if not wanted.matches(record):
                if not request.complete:
                    continue
                record = reading.hidden(request.chain, seq, raw)
            size += len(raw)
            response.records.append(record)
        return response

    async def _rows(self, request: api.ListRecordsRequest, first: int, last: int) -> AsyncIterator[tuple[int, bytes]]:
        async for page in self._pages(request.chain, first, last):
            for row in page:
                yield row

    async def _backwards(self, chain: str, first: int, last: int) -> AsyncIterator[tuple[int, bytes]]:
        while last >= first:
            start = max(first, last - WINDOW + 1)
            window = [row async for page in self._pages(chain, start, last) for row in page]
            for row in reversed(window):
                yield row
            last = start - 1

    async def _pages(self, chain: str, first: int, last: int) -> AsyncIterator[list[tuple[int, bytes]]]:
        try:
            async for page in reading.pages(self._store, self._archive, chain, first, last):
                yield page
        except ArchiveUnavailable as error:
            raise ApiError(ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE) from error

    async def GetCheckpoint(self, request: api.GetCheckpointRequest, context: Context) -> api.GetCheckpointResponse:
        who = caller()
        # Each replica writes its own shards' pages first: what all of them have committed is to be in the heads, also
        # what was committed in a shard that is between two owners now.
        if who.forwarded:
            context.set_trailing_metadata(((FORWARDED, coverage(await self._write())),))
        else:
            path = "/antiphon.v1.AuditService/GetCheckpoint"
            await self._gathering.whole(path, request.SerializeToString(), who, self._written)
        checkpoint = audit_pb2.AuditCheckpoint()
        for chain, head in sorted((await reading.heads(self._store)).items()):
            checkpoint.heads.add(
                chain=chain,
                first_seq=head.trimmed_seq + 1,
                first_prev_hash=(head.trimmed_hash or START).hex(),
                last_seq=head.last_seq,
                last_hash=(head.last_hash or START).hex(),
            )
        checkpoint.time.FromDatetime(self._clock.now())
        credential = self._credential()
        checkpoint.signature = sign(credential, signed_content(checkpoint))
        checkpoint.certificates = credential.chain_pem.decode()
        return api.GetCheckpointResponse(checkpoint=checkpoint)

    async def _written(self) -> tuple[None, list[int]]:
        return None, await self._write()

    async def GetProof(self, request: api.GetProofRequest, context: Context) -> api.GetProofResponse:
        chain, seq = request.chain, request.seq
        head = await self._head(chain)
        upto = min(request.upto_seq or head.last_seq, head.last_seq)
        if not head.trimmed_seq < seq <= upto:
            raise _no_record(chain, seq, head)
        first = max(head.trimmed_seq + 1, seq - 1)
        prev = head.trimmed_hash or START if first == seq else b""
        response: api.GetProofResponse | None = None
        async for page in self._pages(chain, first, min(upto, seq + PROOF - 1)):
            for number, raw in page:
                if number < seq:
                    prev = raw[:HASH]
                elif number == seq:
                    record = reading.record(chain, seq, raw)
                    if not _may_read(record, caller().namespace):
                        record = reading.hidden(chain, seq, raw)
                    response = api.GetProofResponse(record=record, prev_hash=prev.hex())
                elif response is not None:
                    response.digests.append(hashlib.sha256(raw[HASH:]).hexdigest())
                if response is not None:
                    response.last_seq, response.last_hash = number, raw[:HASH].hex()
        if response is None:
            raise _no_record(chain, seq, head)
        return response

    async def DigestRuns(self, request: api.DigestRunsRequest, context: Context) -> api.DigestRunsResponse:
        response = api.DigestRunsResponse()
        try:
            for part in request.runs:
                response.runs.add().CopyFrom(part)
                response.runs[-1].digest = await self._digest(part)
        except ArchiveUnavailable as error:
            raise ApiError(ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE) from error
        return response

    async def _digest(self, part: audit_pb2.RunDigest) -> str:
        namespace = caller().namespace
        summary = await self._archived.summary(part.run_id)
        if summary is None or namespace not in (summary.namespace, SYSTEM_NAMESPACE):
            return ""
        left = part.last_event_seq - part.first_event_seq + 1
        if left < 1:
            return ""
        digest = hashlib.sha256()
        async for events in self._archived.records(part.run_id, part.first_event_seq - 1):
            digest.update(b"".join(events[:left]))
            left -= min(left, len(events))
            if not left:
                return digest.hexdigest()
        return ""

    async def _head(self, chain: str) -> records.AuditHead:
        await self._write()
        found = await reading.head(self._store, chain)
        if found is None:
            raise ApiError(ErrorReason.ERROR_REASON_AUDIT_CHAIN_NOT_FOUND, chain=chain)
        return found[0]


class _Filter:
    """What of a chain one caller asks for and may read."""

    def __init__(self, request: api.ListRecordsRequest, namespace: str) -> None:
        self._request = request
        self._namespace = namespace
        self._start = request.start_time.ToMicroseconds() if request.HasField("start_time") else None
        self._end = request.end_time.ToMicroseconds() if request.HasField("end_time") else None

    def matches(self, record: audit_pb2.AuditRecord) -> bool:
        request, time = self._request, record.time.ToMicroseconds()
        return (
            _may_read(record, self._namespace)
            and (self._start is None or time >= self._start)
            and (self._end is None or time < self._end)
            and request.principal in ("", record.principal)
            and request.action in ("", record.action)
            and request.outcome in (0, record.outcome)
            and request.namespace in ("", record.namespace)
        )


def _may_read(record: audit_pb2.AuditRecord, namespace: str) -> bool:
    """A record that cannot be read as one says of no namespace whose it is."""
    return not record.hidden and namespace in (record.namespace, SYSTEM_NAMESPACE)


def _no_record(chain: str, seq: int, head: records.AuditHead) -> ApiError:
    return ApiError(
        ErrorReason.ERROR_REASON_AUDIT_RECORD_NOT_FOUND,
        chain=chain,
        seq=seq,
        first=head.trimmed_seq + 1,
        last=head.last_seq,
    )
