"""What a sidecar does with values that are too large to travel inline, against a PayloadService that misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import grpc
import pytest
from antiphon.v1 import failure_pb2, payload_pb2, payload_service_pb2, payload_service_pb2_grpc
from antiphon_sidecar.payloads import LARGEST, PATIENCE, Lane, NotMoved, Payloads

from tests.integration.sidecar_process import WAIT, eventually

CONTENT = b'"' + b"x" * 3_000_000 + b'"'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SMALL = b"[1]"


def always() -> bool:
    return True


class Service(payload_service_pb2_grpc.PayloadServiceServicer):
    """Keeps what comes. `refuse`: what it answers instead; `wait`: it stands still; `answer`: what it sends down."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.asked = 0
        self.refuse: grpc.StatusCode | None = None
        self.wait: asyncio.Event | None = None
        self.answer = SMALL

    async def _asked(self, context: Any) -> None:
        self.asked += 1
        if self.refuse is not None:
            await context.abort(self.refuse, "not now")
        if self.wait is not None:
            await self.wait.wait()

    async def UploadPayload(
        self, requests: AsyncIterator[payload_service_pb2.UploadPayloadRequest], context: Any
    ) -> payload_service_pb2.UploadPayloadResponse:
        await self._asked(context)
        chunks = [request async for request in requests]
        content = b"".join(chunk.chunk for chunk in chunks)
        assert max(len(chunk.chunk) for chunk in chunks) <= 1 << 20, "the contract's limit"
        assert [bool(chunk.digest) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        self.kept.append(content)
        blob = payload_pb2.BlobReference(digest=hashlib.sha256(content).hexdigest(), size=len(content))
        return payload_service_pb2.UploadPayloadResponse(blob=blob)

    async def DownloadPayload(
        self, request: payload_service_pb2.DownloadPayloadRequest, context: Any
    ) -> AsyncIterator[payload_service_pb2.DownloadPayloadResponse]:
        await self._asked(context)
        for start in range(0, len(self.answer), 1 << 20):
            yield payload_service_pb2.DownloadPayloadResponse(chunk=self.answer[start : start + (1 << 20)])


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def payloads(*channels: grpc.aio.Channel, now: Callable[[], float] = lambda: 0.0) -> Payloads:
    made = Payloads(now)
    for channel in channels:
        made.opened(channel)
    return made


def reference(content: bytes = SMALL) -> payload_pb2.Payload:
    digest = hashlib.sha256(content).hexdigest()
    return payload_pb2.Payload(blob=payload_pb2.BlobReference(digest=digest, size=len(content)), media_type="a/b")


async def failure(move: Any) -> failure_pb2.Failure:
    with pytest.raises(NotMoved) as caught:
        async with asyncio.timeout(WAIT):
            await move
    return caught.value.failure


async def test_the_content_is_replaced_and_all_else_stays() -> None:
    service = Service()
    async with serving(service) as channel:
        payload = payload_pb2.Payload(inline=CONTENT, media_type="application/json", schema="s")
        payload.labels.add(key="pii")
        await payloads(channel).keep(payload, always)
        assert service.kept == [CONTENT]
        assert (payload.blob.digest, payload.blob.size, payload.inline) == (DIGEST, len(CONTENT), b"")
        assert (payload.media_type, payload.schema, payload.labels[0].key) == ("application/json", "s", "pii")
        back = reference()
        await payloads(channel).fetch(back, always)
        assert (back.inline, back.HasField("blob"), back.media_type) == (SMALL, False, "a/b")


@pytest.mark.parametrize("answer", [b"[2]", b"", b"x" * (2 * LARGEST)])
async def test_content_that_is_not_what_was_referred_to_is_not_handed_on(answer: bytes) -> None:
    service = Service()
    service.answer = answer
    async with serving(service) as channel:
        payload = reference()
        found = await failure(payloads(channel).fetch(payload, always))
        assert (found.kind, found.code) == (failure_pb2.FAILURE_KIND_PERMANENT, "PAYLOAD_DIGEST_MISMATCH")
        assert payload == reference()


async def test_another_replica_is_asked_when_one_cannot() -> None:
    away, there = Service(), Service()
    away.refuse = grpc.StatusCode.UNAVAILABLE
    async with serving(away) as first, serving(there) as second:
        payload = reference()
        await payloads(first, second).fetch(payload, always)
        assert (payload.inline, away.asked, there.asked) == (SMALL, 1, 1)


async def test_a_channel_that_closes_under_a_value_is_not_the_end_of_it() -> None:
    slow, there = Service(), Service()
    slow.wait = asyncio.Event()
    async with serving(there) as second:
        async with serving(slow) as first:
            both = payloads(first, second)
            payload = payload_pb2.Payload(inline=CONTENT)
            moving = asyncio.create_task(both.keep(payload, always))
            await eventually(lambda: slow.asked == 1)
            both.closed(first)
            await first.close(None)
            async with asyncio.timeout(WAIT):
                await moving
            slow.wait.set()
        assert payload.blob.digest == DIGEST


async def test_whoever_cancels_it_cancels_it() -> None:
    slow = Service()
    slow.wait = asyncio.Event()
    async with serving(slow) as channel:
        moving = asyncio.create_task(payloads(channel).fetch(reference(), always))
        await eventually(lambda: slow.asked == 1)
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
        slow.wait.set()


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
async def test_a_refusal_that_passes_is_waited_for_and_not_for_ever(code: grpc.StatusCode) -> None:
    busy = Service()
    busy.refuse = code
    clock = count(0.0, PATIENCE / 2)
    async with serving(busy) as channel:
        found = await failure(
            payloads(channel, now=lambda: next(clock)).keep(payload_pb2.Payload(inline=SMALL), always)
        )
        assert (found.kind, found.retryable) == (failure_pb2.FAILURE_KIND_TRANSIENT, True)
        assert "not now" in found.message
        assert busy.asked > 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, failure_pb2.FAILURE_KIND_POLICY),
        (grpc.StatusCode.NOT_FOUND, failure_pb2.FAILURE_KIND_PERMANENT),
    ],
)
async def test_one_that_does_not_pass_is_told_at_once(code: grpc.StatusCode, kind: int) -> None:
    strict = Service()
    strict.refuse = code
    async with serving(strict) as channel:
        found = await failure(payloads(channel).fetch(reference(), always))
        assert (found.kind, found.retryable, strict.asked) == (kind, False, 1)


async def test_while_no_replica_is_there_a_value_waits_until_nobody_wants_it() -> None:
    """Longer than the patience with replicas that are there."""
    clock, wanted = count(0.0, PATIENCE), iter([True, True, True, False])
    moving = payloads(now=lambda: next(clock)).fetch(reference(), lambda: next(wanted))
    assert (await failure(moving)).kind == failure_pb2.FAILURE_KIND_CANCELLED


async def test_patience_begins_when_a_replica_is_there_again() -> None:
    service = Service()
    service.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED
    async with serving(service) as channel:
        looks = 0
        alone = payloads(now=lambda: looks * 0.6 * PATIENCE)

        def wanted() -> bool:
            """A replica comes with the third look; it is busy with the first, and not with the next."""
            nonlocal looks
            looks += 1
            if looks == 3:
                alone.opened(channel)
            if service.asked:
                service.refuse = None
            return True

        payload = reference()
        async with asyncio.timeout(WAIT):
            await alone.fetch(payload, wanted)
        assert (payload.inline, service.asked) == (SMALL, 2)


async def test_a_lane_moves_one_after_the_other_and_stands_still_while_it_is_closed() -> None:
    order: list[str] = []
    first = asyncio.Event()

    async def move(payload: payload_pb2.Payload, wanted: Callable[[], bool]) -> None:
        order.append(f"{payload.schema} begins")
        if payload.schema == "a":
            await first.wait()
        if payload.schema == "b":
            raise NotMoved(failure_pb2.Failure(message="no"))

    lane = Lane(move)
    assert not lane
    for name in ("a", "b", "c"):
        payload = payload_pb2.Payload(inline=SMALL, schema=name)

        def finish(failure: failure_pb2.Failure | None, name: str = name) -> None:
            order.append(f"{name}: {failure.message if failure else 'there'}")
            if name == "b":
                lane.open.clear()

        lane.add(payload, always, finish)
    assert lane.bytes == 3 * len(SMALL)
    running = asyncio.create_task(lane.run())
    await eventually(lambda: order == ["a begins"])
    assert lane
    first.set()
    await eventually(lambda: order[-1] == "b: no")
    assert order == ["a begins", "a: there", "b begins", "b: no"]
    assert lane.bytes == len(SMALL)
    lane.open.set()
    await eventually(lambda: order[-1] == "c: there")
    assert not lane and lane.bytes == 0
    running.cancel()
