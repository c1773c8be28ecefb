"""Blobs: whole or not there, named by what they hold, one namespace apart from another; in a folder and in S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_orchestrator.blobs import (
    BlobCorrupt,
    BlobDigestMismatch,
    BlobNotFound,
    BlobsUnavailable,
    BlobTooLarge,
    ObjectBlobs,
    check_url,
    objects,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import eventually
from tests.harness.objects import S3Server

LIMIT = 20_000_000


async def pieces(*chunks: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


async def read(blobs: ObjectBlobs, namespace: str, digest: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.get_stream(namespace, digest, offset)])


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def kept(blobs: ObjectBlobs) -> list[str]:
    """Paths of everything that is there, the spool included."""
    return [found["path"] async for batch in blobs._store.list() for found in batch]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as made:
        yield made


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place."""
    if request.param == "folder":
        return (tmp_path / "blobs").as_uri()
    server: S3Server = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.bucket()


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Whoever runs this is not root within, who may read everything."""
    me = os.geteuid()
    if me == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, 1_048_576, 13_333_333])
async def test_content_comes_back_by_its_digest_from_any_offset(url: str, size: int) -> None:
    content = os.urandom(size)
    chunks = [content[i : i + 700_001] for i in range(0, size, 700_001)]
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("default", None, pieces(*chunks), LIMIT)
        assert (info.digest, info.size) == (digest_of(content), size)
        assert await blobs.stat("default", info.digest) == info
        for offset in {0, size // 2, size}:
            assert await read(blobs, "default", info.digest, offset) == content[offset:]
        with pytest.raises(ValueError):
            await read(blobs, "default", info.digest, size + 1)
    async with ObjectBlobs(url) as blobs:
        assert [found async for found in blobs.list("default")] == [info]


async def test_content_that_is_not_what_it_was_said_to_be_is_not_kept(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        with pytest.raises(BlobDigestMismatch):
            await blobs.put_stream("default", digest_of(b"this"), pieces(b"that"), LIMIT)
        await blobs.put_stream("default", digest_of(b"this"), pieces(b"th", b"is"), LIMIT)
        assert len(await kept(blobs)) == 1


async def test_content_over_its_limit_is_refused_before_it_is_all_read(url: str) -> None:
    read_so_far = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read_so_far
        while True:
            read_so_far += 100_000
            yield b"x" * 100_000

    async with ObjectBlobs(url) as blobs:
        with pytest.raises(BlobTooLarge):
            await blobs.put_stream("default", None, endless(), 5_000_000)
        assert read_so_far <= 5_100_000
        assert (await blobs.put_stream("default", None, pieces(b"12345"), 5)).size == 5
        assert len(await kept(blobs)) == 1


async def test_a_sender_that_fails_or_goes_away_leaves_nothing(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        with pytest.raises(ConnectionError):
            broken = pieces(b"x" * 3_000_000, error=ConnectionError("gone"))
            await blobs.put_stream("default", None, broken, LIMIT)
        started = asyncio.Event()

        async def stalls() -> AsyncIterator[bytes]:
            yield b"x" * 3_000_000
            started.set()
            await asyncio.Event().wait()

        putting = asyncio.ensure_future(blobs.put_stream("default", None, stalls(), LIMIT))
        await started.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert [found async for found in blobs.list("default")] == []
        assert not [path for path in await kept(blobs) if not path.startswith(".spool/")]


async def test_a_blob_of_one_namespace_is_not_seen_from_another(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("one", None, pieces(b"secret"), LIMIT)
        with pytest.raises(BlobNotFound):
            await read(blobs, "two", info.digest)
        with pytest.raises(BlobNotFound):
            await blobs.stat("two", info.digest)
        await blobs.delete("two", info.digest)
        assert await read(blobs, "one", info.digest) == b"secret"
        assert [found async for found in blobs.list("two")] == []


async def test_a_deleted_blob_is_gone_and_deleting_again_is_no_error(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("one", None, pieces(b"x"), LIMIT)
        await blobs.delete("one", info.digest)
        await blobs.delete("one", info.digest)
        with pytest.raises(BlobNotFound):
            await read(blobs, "one", info.digest)


async def test_putting_a_blob_again_renews_its_time_so_that_it_is_not_collected(tmp_path: Path) -> None:
    async with ObjectBlobs(tmp_path.as_uri()) as blobs:
        first = await blobs.put_stream("one", None, pieces(b"x"), LIMIT)
        (path,) = files(tmp_path)
        os.utime(path, (0, 0))
        assert (await blobs.stat("one", first.digest)).modify_time < first.modify_time
        second = await blobs.put_stream("one", first.digest, pieces(b"x"), LIMIT)
        assert second.modify_time >= first.modify_time


async def test_opening_clears_old_leftovers_from_the_spool_and_leaves_young_ones(tmp_path: Path) -> None:
    spool = tmp_path / ".spool"
    spool.mkdir()
    for name in ("old", "young"):
        (spool / name).write_bytes(b"x")
    os.utime(spool / "old", (0, 0))
    async with ObjectBlobs(tmp_path.as_uri()):
        assert [path.name for path in spool.iterdir()] == ["young"]


@pytest.mark.parametrize("digest", ["", "x", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65])
async def test_what_is_no_digest_is_refused(url: str, digest: str) -> None:
    async with ObjectBlobs(url) as blobs:
        with pytest.raises(ValueError):
            await blobs.stat("one", digest)
        with pytest.raises(ValueError):
            await blobs.put_stream("one", digest, pieces(b"x"), LIMIT)


NAMESPACES = st.text(st.sampled_from("a.%/\\2EF é~"), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(NAMESPACES, NAMESPACES)
def test_no_namespace_reaches_another_or_out_of_the_folder(one: str, other: str) -> None:
    async def check(folder: Path) -> None:
        async with ObjectBlobs((folder / "blobs").as_uri()) as blobs:
            info = await blobs.put_stream(one, None, pieces(b"x"), LIMIT)
            assert [found.digest async for found in blobs.list(one)] == [info.digest]
            assert [found async for found in blobs.list(other)] == ([info] if one == other else [])
            assert len(files(folder)) == len(files(folder / "blobs")) == 1
            assert not (folder / "blobs" / ".spool" / info.digest).exists()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


async def test_a_blob_needs_a_namespace(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        with pytest.raises(ValueError):
            await blobs.put_stream("", None, pieces(b"x"), LIMIT)


async def test_a_blob_that_was_damaged_is_never_read_to_its_end(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        for content, damaged in ((b"x" * 9_000_000, b"x" * 8_999_999 + b"y"), (b"small", b"smell"), (b"", b"more")):
            info = await blobs.put_stream("one", None, pieces(content), LIMIT)
            (path,) = [path for path in await kept(blobs) if path.endswith(info.digest)]
            await blobs._store.put_async(path, damaged)
            got = b""
            with pytest.raises(BlobCorrupt):
                async for chunk in blobs.get_stream("one", info.digest):
                    got += chunk
            assert len(got) < len(damaged)


async def test_a_blob_is_removed_unless_it_was_put_or_used_since(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_YOUNG", timedelta(hours=-1))  # every use is noted
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("a.b/c", None, pieces(b"x"), LIMIT)
        assert [(namespace, found.digest) async for namespace, found in blobs.all()] == [("a.b/c", info.digest)]
        assert (await blobs.use("a.b/c", info.digest)).size == 1
        assert not await blobs.remove_unused("a.b/c", info.digest, past)
        assert await read(blobs, "a.b/c", info.digest) == b"x"
        assert await blobs.remove_unused("a.b/c", info.digest, future)
        assert not await blobs.remove_unused("a.b/c", info.digest, future)
        assert await kept(blobs) == []
        with pytest.raises(BlobNotFound):
            await blobs.use("a.b/c", info.digest)


async def test_what_was_half_removed_comes_back(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("a.b/c", None, pieces(b"x"), LIMIT)
        (path,) = await kept(blobs)
        await blobs._store.rename_async(path, f".trash/{path}")
        assert [found async for found in blobs.all()] == []
        await blobs.recover()
        await blobs.recover()
        assert await read(blobs, "a.b/c", info.digest) == b"x"


async def test_what_was_put_again_is_not_replaced_by_what_was_half_removed(url: str) -> None:
    """Its old time would have it collected."""
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("a.b/c", None, pieces(b"x"), LIMIT)
        (path,) = await kept(blobs)
        await blobs._store.put_async(f".trash/{path}", b"the former one")
        await blobs.recover()
        assert await blobs.stat("a.b/c", info.digest) == info
        assert await kept(blobs) == [path]


async def test_what_comes_back_half_removed_counts_as_used_whatever_came_between(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        info = await blobs.put_stream("a.b/c", None, pieces(b"x"), LIMIT)
        (path,) = await kept(blobs)
        await blobs._store.rename_async(path, f".trash/{path}")
        now = datetime.now(UTC).replace(microsecond=0)
        await blobs.recover()
        assert f".used/{path}" in await kept(blobs)
        assert not await blobs.remove_unused("a.b/c", info.digest, now)


async def test_whatever_else_lies_among_the_blobs_is_passed_over(url: str) -> None:
    async with ObjectBlobs(url) as blobs:
        await blobs.put_stream("a.b/c", None, pieces(b"x"), LIMIT)
        (path,) = await kept(blobs)
        folder, two, digest = path.split("/")
        strays = ("README.txt", f"{folder}/notes", f"{folder}/{two}/.nfs0001", f"{path}.bak", f"other/zz/{digest}")
        for stray in (*strays, f"{folder}/{two}/deeper/{digest}", f".trash/{path}.bak"):
            await blobs._store.put_async(stray, b"")
        await blobs.recover()
        assert [(namespace, found.digest) async for namespace, found in blobs.all()] == [("a.b/c", digest)]


async def test_folders_of_others_and_names_that_cannot_be_spelled_do_not_hide_the_blobs() -> None:
    with tempfile.TemporaryDirectory() as name, nobody(Path(name)):
        folder = Path(name) / "blobs"
        async with ObjectBlobs(folder.as_uri()) as blobs:
            info = await blobs.put_stream("one", None, pieces(b"x"), LIMIT)
            (folder / "a\nb").touch()
            (folder / "backups").mkdir(mode=0)
            assert [found.digest async for _, found in blobs.all()] == [info.digest]


async def test_links_pipes_and_folders_with_the_name_of_a_blob_are_none(tmp_path: Path) -> None:
    async with ObjectBlobs(tmp_path.as_uri()) as blobs:
        info = await blobs.put_stream("one", None, pieces(b"x"), LIMIT)
        for root in (tmp_path / "one", tmp_path / ".trash" / "one"):
            folder = root / "ab"
            folder.mkdir(parents=True)
            loop, pipe, link, inner = (folder / f"ab{number:062}" for number in range(4))
            loop.symlink_to(loop)
            os.mkfifo(pipe)
            link.symlink_to(tmp_path / "one" / info.digest[:2] / info.digest)
            inner.mkdir()
            (root / "cd").symlink_to(root / "cd")
        (tmp_path / "two").symlink_to(tmp_path / "two")
        async with asyncio.timeout(20):
            await blobs.recover()
            assert [found.digest async for _, found in blobs.all()] == [info.digest]


async def test_the_probe_says_whether_it_can_write_and_read_and_leaves_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ObjectBlobs(url) as blobs:
        assert await blobs.probe() == f"{url}: can be written and read"
        assert await kept(blobs) == []
    if url.startswith("file:"):
        assert "none yet" in await ObjectBlobs((tmp_path / "other").as_uri()).probe()
        (tmp_path / "file").touch()
        wrong = (tmp_path / "file").as_uri()
    else:
        wrong = "s3://no-such-bucket/at-all"
    with pytest.raises(BlobsUnavailable) as refused:
        await ObjectBlobs(wrong).probe()
    assert "\n" not in str(refused.value) and "nothing may print" not in str(refused.value)


async def test_a_place_has_one_id_for_all_its_life_which_is_no_blob(url: str) -> None:
    assert await ObjectBlobs(url).identity(make=False) == ""
    async with ObjectBlobs(url) as one, ObjectBlobs(url) as other:
        assert await one.identity(make=False) == "" and await kept(one) == []
        (here,) = set(await asyncio.gather(*(blobs.identity(make=True) for blobs in (one, other, one, other))))
        assert len(here) == 32 and len(await kept(one)) == 1
        await one.recover()
        assert [found async for found in one.all()] == []
    assert await ObjectBlobs(url).identity(make=False) == here
    async with ObjectBlobs(f"{url}-other") as elsewhere:
        assert await elsewhere.identity(make=True) != here


async def test_a_folders_id_has_its_name_once_it_is_whole_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise BlobsUnavailable(f"{path} cannot be synced")

    async with ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs:
        with monkeypatch.context() as patch:
            patch.setattr(objects, "_sync", broken)
            with pytest.raises(BlobsUnavailable, match="cannot be synced"):
                await blobs.identity(make=True)
        assert await kept(blobs) == []
        assert len(await blobs.identity(make=True)) == 32


@pytest.mark.parametrize("left", [b"", b"0123456789abcdef", b"\xff" * 32, b"0" * 32 + b"\n"])
async def test_what_is_no_id_of_a_place_is_said_with_the_remedy_and_left_alone(url: str, left: bytes) -> None:
    async with ObjectBlobs(url) as blobs:
        await blobs._store.put_async(".identity", left)
        for make in (False, True):
            with pytest.raises(BlobCorrupt, match=f"^payloads: the id of {url} was damaged: restore .identity in it"):
                await blobs.identity(make=make)
        assert await kept(blobs) == [".identity"]
        await blobs._store.delete_async(".identity")
        assert len(await blobs.identity(make=True)) == 32


async def test_an_object_store_that_is_away_or_stands_still_costs_a_deadline_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = server.bucket()
        async with ObjectBlobs(bucket) as patient:  # a second is little for a server that shares its machine
            info = await patient.put_stream("one", None, pieces(b"x"), LIMIT)
        async with ObjectBlobs(bucket, request=timedelta(seconds=1)) as blobs:

            async def back() -> bool:
                try:
                    return await read(blobs, "one", info.digest) == b"x"
                except BlobsUnavailable:
                    return False

            server.pause()
            try:
                for call in (
                    blobs.stat("one", info.digest),
                    blobs.put_stream("one", None, pieces(b"y"), LIMIT),
                    read(blobs, "one", info.digest),
                    blobs.identity(make=True),
                ):
                    with pytest.raises(BlobsUnavailable):
                        await asyncio.wait_for(call, 60)
            finally:
                server.resume()
            await eventually(back)
            server.close()
            with pytest.raises(BlobsUnavailable):
                await blobs.stat("one", info.digest)


@pytest.mark.parametrize(
    "wrong",
    ["", "payloads", "http://x/y", "file://host/x", "file:///", "s3:///x", "s3://key:secret@bucket/x", "s3://b/x?a=b"],
)
def test_what_is_no_place_of_payloads_is_refused_without_repeating_it(wrong: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_url(wrong)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("right", ["file:///x/y", "s3://bucket", "s3://bucket/a/b", "gs://b/p", "azure://c/p"])
def test_what_is_a_place_of_payloads_is_taken(right: str) -> None:
    check_url(right)
