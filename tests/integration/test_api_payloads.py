"""Large payloads go up and down in chunks, whole or not at all, and stay within their namespace."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import payload_service_pb2, payload_service_pb2_grpc
from antiphon_certs import Authority
from antiphon_orchestrator.blobs import ObjectBlobs
from api_harness import Running, reason_of, serving

from tests.harness.objects import S3Server

Stub: Any = payload_service_pb2_grpc.PayloadServiceStub
CONTENT = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def api(authority: Authority, tmp_path: Path) -> AsyncIterator[Running]:
    async with ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs, serving(authority, blobs=blobs) as running:
        yield running


@pytest.fixture
def payloads(api: Running) -> Any:
    return Stub(api.dial())


def chunks(content: bytes, digest: str = "") -> Iterator[payload_service_pb2.UploadPayloadRequest]:
    for start in range(0, len(content), 100_000):
        chunk = content[start : start + 100_000]
        yield payload_service_pb2.UploadPayloadRequest(chunk=chunk, digest=digest if start == 0 else "")


async def download(payloads: Any, digest: str, offset: int = 0) -> bytes:
    request = payload_service_pb2.DownloadPayloadRequest(digest=digest, offset=offset)
    return b"".join([response.chunk async for response in payloads.DownloadPayload(request)])


async def upload(payloads: Any, messages: Callable[[], Iterator[payload_service_pb2.UploadPayloadRequest]]) -> Any:
    """The answer to an upload, made again when grpc.aio says that it broke: it says so, too, of one that is refused
    while a message is written (grpc issue 36066)."""
    while True:
        try:
            return await payloads.UploadPayload(messages())
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                raise


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == reason
    return caught.value


async def test_content_comes_back_as_it_went_up_from_any_offset(payloads: Any) -> None:
    for digest in ("", DIGEST):
        blob = (await payloads.UploadPayload(chunks(CONTENT, digest))).blob
        assert (blob.digest, blob.size) == (DIGEST, len(CONTENT))
    assert await download(payloads, DIGEST) == CONTENT
    assert await download(payloads, DIGEST, 700_001) == CONTENT[700_001:]
    assert await download(payloads, DIGEST, len(CONTENT)) == b""
    await refused(download(payloads, DIGEST, len(CONTENT) + 1), "REQUEST_INVALID")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KiB."""
    if os.geteuid() != 0:
        missing = "not run: only root can mount a disk"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_full_disk_is_told_as_full_and_takes_what_still_fits(authority: Authority, small: Path) -> None:
    async with ObjectBlobs(small.as_uri(), kept_free=0) as blobs, serving(authority, blobs=blobs) as running:
        payloads = Stub(running.dial())
        await refused(upload(payloads, lambda: chunks(CONTENT)), "STORE_FULL")
        assert (await upload(payloads, lambda: chunks(CONTENT[:100_000]))).blob.size == 100_000


async def test_payloads_leave_room_on_the_disk_for_those_who_work(authority: Authority, small: Path) -> None:
    kept = 200 << 10
    async with ObjectBlobs(small.as_uri(), kept_free=kept) as blobs, serving(authority, blobs=blobs) as running:
        payloads = Stub(running.dial())
        stored: dict[str, bytes] = {}
        reason = ""
        for first in range(64):
            content = bytes([first]) * 20_000
            try:
                answer = await upload(payloads, partial(chunks, content))
            except grpc.aio.AioRpcError as error:
                reason = reason_of(error)
                break
            stored[answer.blob.digest] = content
        assert (reason, len(stored) > 3) == ("STORE_FULL", True)
        assert shutil.disk_usage(small).free >= kept - 40_000, "what one chunk takes"
        for digest, content in stored.items():
            assert await download(payloads, digest) == content


async def test_nothing_at_all_is_a_payload_too(payloads: Any) -> None:
    blob = (await payloads.UploadPayload(iter(()))).blob
    assert await download(payloads, blob.digest) == b""


async def test_content_that_is_not_what_was_announced_is_not_kept(payloads: Any) -> None:
    error = await refused(upload(payloads, lambda: chunks(CONTENT + b"!", DIGEST)), "PAYLOAD_DIGEST_MISMATCH")
    assert hashlib.sha256(CONTENT + b"!").hexdigest() in (error.details() or "")
    await refused(download(payloads, DIGEST), "PAYLOAD_NOT_FOUND")
    await refused(upload(payloads, lambda: chunks(CONTENT, "x")), "REQUEST_INVALID")


async def test_a_rule_broken_halfway_is_named_and_nothing_is_kept(payloads: Any) -> None:
    def halfway() -> Iterator[payload_service_pb2.UploadPayloadRequest]:
        yield payload_service_pb2.UploadPayloadRequest(chunk=CONTENT)
        yield payload_service_pb2.UploadPayloadRequest(chunk=b"x" * ((1 << 20) + 1))

    await refused(upload(payloads, halfway), "REQUEST_INVALID")
    await refused(download(payloads, DIGEST), "PAYLOAD_NOT_FOUND")


async def test_more_than_the_limit_is_refused(payloads: Any) -> None:
    await refused(upload(payloads, lambda: chunks(CONTENT * 2)), "MESSAGE_TOO_LARGE")


async def test_another_namespace_sees_nothing(api: Running, payloads: Any) -> None:
    await payloads.UploadPayload(chunks(CONTENT))
    other = Stub(api.dial(api.credential(namespace="team-b")))
    await refused(download(other, DIGEST), "PAYLOAD_NOT_FOUND")


async def test_transfers_beyond_the_bound_are_told_to_come_back_and_other_namespaces_have_their_share(
    api: Running, payloads: Any
) -> None:
    calls = [payloads.UploadPayload() for _ in range(16)]
    for call in calls:
        await call.write(payload_service_pb2.UploadPayloadRequest(chunk=b"x"))
    while True:
        try:
            await payloads.UploadPayload(iter(()))
        except grpc.aio.AioRpcError as error:
            assert reason_of(error) == "OVERLOADED"
            break
    other = Stub(api.dial(api.credential(namespace="team-b")))
    blob = (await other.UploadPayload(chunks(CONTENT))).blob
    assert await download(other, blob.digest) == CONTENT
    for call in calls:
        await call.done_writing()
        await call
    await payloads.UploadPayload(chunks(CONTENT))


async def test_an_upload_of_which_nothing_comes_ends(authority: Authority, tmp_path: Path) -> None:
    async with (
        ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs,
        serving(authority, blobs=blobs, payload_idle=0.3) as api,
    ):
        payloads = Stub(api.dial())
        silent, begun = payloads.UploadPayload(), payloads.UploadPayload()
        await begun.write(payload_service_pb2.UploadPayloadRequest(chunk=b"x"))
        for call in (silent, begun):
            await refused(call, "DEADLINE_EXCEEDED")
        await payloads.UploadPayload(chunks(CONTENT))


async def test_a_payload_that_was_damaged_where_it_is_kept_is_refused_before_its_end(
    payloads: Any, tmp_path: Path
) -> None:
    await payloads.UploadPayload(chunks(CONTENT))
    (path,) = (tmp_path / "blobs").rglob(DIGEST)
    path.write_bytes(CONTENT[:-1] + b"?")
    error = await refused(download(payloads, DIGEST), "PAYLOAD_CORRUPT")
    assert error.code() == grpc.StatusCode.DATA_LOSS


async def test_payloads_that_cannot_be_reached_are_said_to_be_away_with_a_time_to_try_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = server.bucket()
    async with ObjectBlobs(url, request=timedelta(seconds=1)) as blobs, serving(authority, blobs=blobs) as running:
        payloads = Stub(running.dial())
        for call in (upload(payloads, lambda: chunks(CONTENT)), download(payloads, DIGEST)):
            error = await refused(call, "PAYLOADS_UNAVAILABLE")
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "bucket" not in str(error.details())
