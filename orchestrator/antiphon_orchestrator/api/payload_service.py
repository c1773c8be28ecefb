"""PayloadService: values too large to travel inline, by digest, within the caller's namespace.

Content goes through in chunks and is never held whole. So many transfers at a time, which namespaces share, and so many
bytes each; beyond that the caller is told to come back, or that it is too much. An upload of which nothing comes ends;
a download that is not read cannot be ended, and ends with its connection, which has an age.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
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
from .gate import Gate

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
    """Over one blob store. `limit`: bytes of one payload; `transfers`: how many may be under way at once, and twice
    as many with those of namespaces that have less than their share; `idle`: seconds for each chunk of an upload."""

    def __init__(self, blobs: Blobs, *, limit: int = 1 << 30, transfers: int = 64, idle: float = 30.0) -> None:
        self._blobs = blobs
        self._limit = limit
        self._idle = idle
        # Of namespaces. How long a transfer takes is up to its caller, so the number stays as it is.
        self._gate = Gate(transfers, 0.0, time.monotonic)

    async def UploadPayload(
        self, requests: AsyncIterator[payload_service_pb2.UploadPayloadRequest], _context: Any
    ) -> payload_service_pb2.UploadPayloadResponse:
        """Nothing is kept unless all of it came and is what was announced."""
        namespace = caller().namespace
        with self._one_transfer(namespace):
            first = await self._next(requests) or payload_service_pb2.UploadPayloadRequest()
            expected = first.digest or None
            if expected is not None and not _DIGEST.fullmatch(expected):
                raise request_invalid([Violation("digest", "must be 64 lower-case hexadecimal digits")])
            seen = hashlib.sha256()

            async def chunks() -> AsyncIterator[bytes]:
                request: payload_service_pb2.UploadPayloadRequest | None = first
                while request is not None:
                    if expected is not None:
                        seen.update(request.chunk)
                    yield request.chunk
                    request = await self._next(requests)

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
                cause = "there is no room where payloads are kept"
                raise ApiError(ErrorReason.ERROR_REASON_STORE_FULL, cause=cause) from error
            except BlobsUnavailable as error:
                raise payloads_unavailable(error) from error
        blob = payload_pb2.BlobReference(digest=info.digest, size=info.size)
        return payload_service_pb2.UploadPayloadResponse(blob=blob)

    async def DownloadPayload(
        self, request: payload_service_pb2.DownloadPayloadRequest, _context: Any
    ) -> AsyncIterator[payload_service_pb2.DownloadPayloadResponse]:
        """In chunks of at most 1 MiB, as fast as the caller reads."""
        namespace = caller().namespace
        with self._one_transfer(namespace):
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

    async def _next(
        self, requests: AsyncIterator[payload_service_pb2.UploadPayloadRequest]
    ) -> payload_service_pb2.UploadPayloadRequest | None:
        """The next chunk; None at the end. Raises ApiError when nothing comes."""
        try:
            async with asyncio.timeout(self._idle):
                return await anext(requests, None)
        except TimeoutError:
            method = "/antiphon.v1.PayloadService/UploadPayload"
            raise ApiError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, method=method) from None

    @contextmanager
    def _one_transfer(self, namespace: str) -> Iterator[None]:
        place = self._gate.enter(namespace)
        if place is None:
            raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="the list of payload transfers")
        try:
            yield
        finally:
            place.give_back()
