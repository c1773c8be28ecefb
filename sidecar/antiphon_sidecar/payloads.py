"""Values too large to travel inline: kept for the agents of this sidecar, and fetched for them.

On an agent's socket a value is whole up to LARGEST bytes. On the way between sidecar and orchestrator one above the
inline limit is a reference; the sidecar puts one in the place of the other, with its own identity and within its own
namespace, which is all that an agent beside it could do with a client's certificate. A value that is larger still is
an agent's own to upload and to download.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import grpc
from antiphon.v1 import failure_pb2, payload_pb2, payload_service_pb2, payload_service_pb2_grpc

from .backoff import backoff
from .checks import failed
from .errors import reason_of

T = TypeVar("T")

LARGEST = 2 << 20
"""Bytes of a value on an agent's socket: with all around it, it fits one message of the SDKs."""
MOST_KEPT = 8 << 20
"""Bytes of one agent that wait to be kept at which no more is read of it."""
MOST_READY = 4
"""Values that were fetched for one agent and that it has not read yet."""
PATIENCE = 60.0
"""Seconds for which replicas that are there may refuse a value before that is a failure. While none is there it waits
for as long as its attempt has time, as every outcome does."""
_TRY = 15.0  # seconds of one try, besides those that its bytes take
_SLOWEST = 256 << 10  # bytes a second that are expected at least
_CHUNK = 1 << 20
_AWAY = frozenset({"", "NOT_SERVING"})
"""Reasons of UNAVAILABLE that say nothing of the value: the replica is gone, or going."""
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,  # what grpc.aio says, too, of an upload that is refused while a chunk is written
    }
)

Wanted = Callable[[], bool]
"""Whether somebody still waits for a value."""

Move = Callable[[payload_pb2.Payload, Wanted], Awaitable[None]]
"""`Payloads.keep` or `.fetch`."""

Finish = Callable[[failure_pb2.Failure | None], None]
"""Told that a value is in its place, or why it cannot be."""


class NotMoved(Exception):
    """A value could be neither kept nor fetched; `failure` says why."""

    def __init__(self, failure: failure_pb2.Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def fetchable(payload: payload_pb2.Payload) -> bool:
    """Whether an agent gets the content and not the reference that came."""
    return payload.HasField("blob") and payload.blob.size <= LARGEST


class Payloads:
    """PayloadService at whatever replica is attached. `now`: monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._channels: list[grpc.aio.Channel] = []

    def opened(self, channel: grpc.aio.Channel) -> None:
        """A replica has welcomed the sidecar on this channel."""
        self._channels.append(channel)

    def closed(self, channel: grpc.aio.Channel) -> None:
        """The channel is about to close."""
        self._channels.remove(channel)

    async def keep(self, payload: payload_pb2.Payload, wanted: Wanted) -> None:
        """Put a reference in the place of the payload's inline content. Raises `NotMoved`."""
        data = payload.inline
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())

        async def chunks() -> AsyncIterator[payload_service_pb2.UploadPayloadRequest]:
            yield payload_service_pb2.UploadPayloadRequest(digest=digest, chunk=data[:_CHUNK])
            for start in range(_CHUNK, len(data), _CHUNK):
                yield payload_service_pb2.UploadPayloadRequest(chunk=data[start : start + _CHUNK])

        async def upload(stub: Any, seconds: float) -> payload_service_pb2.UploadPayloadResponse:
            answer: payload_service_pb2.UploadPayloadResponse = await stub.UploadPayload(chunks(), timeout=seconds)
            return answer

        answer = await self._tried("kept", upload, len(data), wanted)
        payload.blob.CopyFrom(answer.blob)  # the content's other form goes with it

    async def fetch(self, payload: payload_pb2.Payload, wanted: Wanted) -> None:
        """Put the content in the place of a reference to at most LARGEST bytes. Raises `NotMoved`."""
        digest, size = payload.blob.digest, payload.blob.size

        async def download(stub: Any, seconds: float) -> bytes:
            data = bytearray()
            request = payload_service_pb2.DownloadPayloadRequest(digest=digest)
            call = stub.DownloadPayload(request, timeout=seconds)
            try:
                async for message in call:
                    data += message.chunk
                    if len(data) > size:
                        break
            finally:
                call.cancel()
            return bytes(data)

        data = await self._tried("fetched", download, size, wanted)
        if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != digest:
            text = f"the value {digest} cannot be fetched: what came is not what the reference names"
            raise NotMoved(failed(failure_pb2.FAILURE_KIND_PERMANENT, text, code="PAYLOAD_DIGEST_MISMATCH"))
        payload.inline = data

    async def _tried(self, what: str, operation: Callable[[Any, float], Awaitable[T]], size: int, wanted: Wanted) -> T:
        """What the operation gives at the first replica that lets it succeed."""
        end, tries = self._now() + PATIENCE, 0
        problem, reason = "", ""
        while wanted():
            away = not self._channels
            if not away:
                channel = self._channels[tries % len(self._channels)]
                stub: Any = payload_service_pb2_grpc.PayloadServiceStub(channel)
                try:
                    return await operation(stub, _TRY + size / _SLOWEST)
                except grpc.aio.AioRpcError as error:
                    problem, reason = error.details() or error.code().name, reason_of(error)
                    away = error.code() is grpc.StatusCode.UNAVAILABLE and reason in _AWAY
                    if error.code() not in _PASSING:
                        text = f"the value could not be {what}: {problem}"
                        kind = failure_pb2.FAILURE_KIND_PERMANENT
                        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                            kind = failure_pb2.FAILURE_KIND_POLICY
                        raise NotMoved(failed(kind, text, code=reason)) from error
                except asyncio.CancelledError:
                    # A call also ends so when its channel is closed, since a replica has gone or a certificate changed.
                    if (task := asyncio.current_task()) is None or task.cancelling():
                        raise
                    away = True
            if away:
                end = self._now() + PATIENCE
            elif self._now() >= end:
                text = f"the value could not be {what} for {PATIENCE:.0f} s: {problem}"
                raise NotMoved(failed(failure_pb2.FAILURE_KIND_TRANSIENT, text, code=reason, retryable=True))
            await asyncio.sleep(backoff(tries))
            tries += 1
        raise NotMoved(failed(failure_pb2.FAILURE_KIND_CANCELLED, f"nobody waits for the value to be {what} any more"))


class _Waiting(NamedTuple):
    payload: payload_pb2.Payload
    size: int
    wanted: Wanted
    finish: Finish


class Lane:
    """The values of one agent that go one way, one after the other."""

    def __init__(self, move: Move) -> None:
        self._move = move
        self._waiting: deque[_Waiting] = deque()
        self._something = asyncio.Event()
        self.bytes = 0
        """Of the values that wait and are held here."""
        self.open = asyncio.Event()
        """Whether the next one may begin."""
        self.open.set()

    def __bool__(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._waiting)

    def add(self, payload: payload_pb2.Payload, wanted: Wanted, finish: Finish) -> None:
        """Move one; `finish` is told once it is in the payload."""
        size = len(payload.inline)
        self._waiting.append(_Waiting(payload, size, wanted, finish))
        self.bytes += size
        self._something.set()

    async def run(self) -> None:
        """Until cancelled. Raises what `finish` raises."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._waiting:
                await self.open.wait()
                move, failure = self._waiting[0], None
                try:
                    await self._move(move.payload, move.wanted)
                except NotMoved as error:
                    failure = error.failure
                self._waiting.popleft()
                self.bytes -= move.size
                move.finish(failure)
