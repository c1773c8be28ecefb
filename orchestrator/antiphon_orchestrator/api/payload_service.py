"""PayloadService: values too large to travel inline, by digest, within the caller's namespace.

Content goes through in chunks and is never held whole. So many transfers at a time and so many bytes each; beyond that
the caller is told to come back, or that it is too much.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from antiphon.v1 import payload_pb2, payload_service_pb2, payload_service_pb2_grpc
from antiphon.v1.error_pb2 import ErrorReason

from antiphon_orchestrator import telemetry
from antiphon_orchestrator.blobs import (
    BlobCorrupt,
    BlobDigestMismatch,
    BlobNotFound,
    Blobs,
    BlobsFull,
    BlobsUnavailable,
    BlobTooLarge,
)

from .call import caller
from .errors import ApiError, Violation, request_invalid

log = telemetry.logger("payloads")
CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def payloads_unavailable(error: BlobsUnavailable) -> ApiError:
    """The refusal; the log has the cause, which is not the caller's to know."""
    log.error("payloads_unavailable", cause=str(error))
    return ApiError(ErrorReason.ERROR_REASON_PAYLOADS_UNAVAILABLE)


async def require_payload(blobs: Blobs, namespace: str, digest: str) -> None:
    """Whoever is about to record a reference asks this first, which keeps the payload from being collected.

    Raises ApiError: PAYLOAD_NOT_FOUND, PAYLOADS_UNAVAILABLE.
    """
    try:
        await blobs.use(namespace, digest)
    except BlobNotFound as error:
        raise ApiError(ErrorReason.ERROR_REASON_PAYLOAD_NOT_FOUND, digest=digest) from error
    except BlobsUnavailable as error:
        raise payloads_unavailable(error) from error


class PayloadService(payload_service_pb2_grpc.PayloadServiceServicer):
    """Over one blob store. `limit`: bytes of one payload; `transfers`: how many may be under way at once."""

    def __init__(self, blobs: Blobs, *, limit: int = 1 << 30, transfers: int = 64) -> None:
        self._blobs = blobs
        self._limit = limit
        self._transfers = transfers
        self._under_way = 0

    async def UploadPayload(
        self, requests: AsyncIterator[payload_service_pb2.UploadPayloadRequest], _context: Any
    ) -> payload_service_pb2.UploadPayloadResponse:
        """Nothing is kept unless all of it came and is what was announced."""
        namespace = caller().namespace
        with self._one_transfer():
            first = await anext(requests, payload_service_pb2.UploadPayloadRequest())
            expected = first.digest or None
            if expected is not None and not _DIGEST.fullmatch(expected):
                raise request_invalid([Violation("digest", "must be 64 lower-case hexadecimal digits")])
            seen = hashlib.sha256()

            async def chunks() -> AsyncIterator[bytes]:
                request = first
                while True:
                    if expected is not None:
                        seen.update(request.chunk)
                    yield request.chunk
                    try:
                        request = await anext(requests)
                    except StopAsyncIteration:
                        return

            try:
                info = await self._blobs.put_stream(namespace, expected, chunks(), self._limit)
            except BlobTooLarge as error:
                raise ApiError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, limit=self._limit) from error
            except BlobDigestMismatch as error:
                assert expected is not None
                raise ApiError(
                    ErrorReason.ERROR_REASON_PAYLOAD_DIGEST_MISMATCH, expected=expected, actual=seen.hexdigest()
                ) from error
            except BlobsFull as error:
                log.error("payloads_full", cause=str(error))
                raise ApiError(ErrorReason.ERROR_REASON_STORE_FULL) from error
            except BlobsUnavailable as error:
                raise payloads_unavailable(error) from error
        blob = payload_pb2.BlobReference(digest=info.digest, size=info.size)
        return payload_service_pb2.UploadPayloadResponse(blob=blob)

    async def DownloadPayload(
        self, request: payload_service_pb2.DownloadPayloadRequest, _context: Any
    ) -> AsyncIterator[payload_service_pb2.DownloadPayloadResponse]:
        """In chunks of at most 1 MiB, as fast as the caller reads."""
        namespace = caller().namespace
        with self._one_transfer():
            try:
                info = await self._blobs.stat(namespace, request.digest)
                if request.offset > info.size:
                    raise request_invalid([Violation("offset", f"lies beyond the end at {info.size}")])
                async for data in self._blobs.get_stream(namespace, request.digest, request.offset):
                    for start in range(0, len(data), CHUNK):
                        yield payload_service_pb2.DownloadPayloadResponse(chunk=data[start : start + CHUNK])
            except BlobNotFound as error:
                raise ApiError(ErrorReason.ERROR_REASON_PAYLOAD_NOT_FOUND, digest=request.digest) from error
            except BlobCorrupt as error:
                log.error("payload_corrupt", namespace=namespace, key=request.digest)
                raise ApiError(ErrorReason.ERROR_REASON_PAYLOAD_CORRUPT, digest=request.digest) from error
            except BlobsUnavailable as error:
                raise payloads_unavailable(error) from error

    @contextmanager
    def _one_transfer(self) -> Iterator[None]:
        if self._under_way >= self._transfers:
            raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="payload transfers")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
