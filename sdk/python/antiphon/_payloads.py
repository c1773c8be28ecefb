"""Values too large to travel inline: streamed up and down in chunks, named by their digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

from antiphon.v1.payload_pb2 import Payload
from antiphon.v1.payload_service_pb2 import DownloadPayloadRequest, DownloadPayloadResponse, UploadPayloadRequest

from . import _calls
from ._connection import Connection, Generation
from ._errors import error_of

_CHUNK = 1 << 20
_SLOWEST = 1 << 20
"""Bytes a second that an upload is given at least."""


async def upload(connection: Connection, data: bytes, media_type: str) -> Payload:
    """Keep `data` and answer the payload that refers to it. Raises `AntiphonError`."""
    digest = hashlib.sha256(data).hexdigest()

    def chunks() -> Iterator[UploadPayloadRequest]:
        yield UploadPayloadRequest(digest=digest, chunk=data[:_CHUNK])
        for start in range(_CHUNK, len(data), _CHUNK):
            yield UploadPayloadRequest(chunk=data[start : start + _CHUNK])

    async def send(to: Generation, left: float) -> Payload:
        answer = await to.payloads.UploadPayload(chunks(), timeout=left, metadata=_calls.metadata())
        return Payload(blob=answer.blob, media_type=media_type)

    return await _calls.call(connection, send, timedelta(seconds=30 + len(data) / _SLOWEST))


async def download(connection: Connection, digest: str, patience: timedelta) -> bytes:
    """The content with that digest, checked. Raises `PayloadNotFound`, `PayloadCorrupt`,
    `PayloadsUnavailable`, `PayloadDigestMismatch`."""
    data = bytearray()

    async def open_stream(to: Generation) -> AsyncIterator[DownloadPayloadResponse]:
        stream = to.payloads.DownloadPayload(
            DownloadPayloadRequest(digest=digest, offset=len(data)), metadata=_calls.metadata()
        )
        try:
            async for message in stream:
                yield message
        finally:
            stream.cancel()

    async for message in _calls.resume(connection, open_stream, patience):
        data += message.chunk
    actual = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    if actual != digest:
        text = f"the content has digest {actual}, asked for was {digest}"
        raise error_of("PAYLOAD_DIGEST_MISMATCH", text, metadata={"expected": digest, "actual": actual})
    return bytes(data)
