"""Collection of payloads: what anything refers to stays, the rest goes after its time, and doubt deletes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon.v1 import payload_pb2
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.archive import ArchivedRun, ArchiveUnavailable, EventChunk
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.blobs import BlobNotFound, BlobsUnavailable, ObjectBlobs
from antiphon_orchestrator.runs.collection import PayloadCollector
from antiphon_orchestrator.store import Put, SqliteStore, Txn

GRACE = timedelta(days=7)
LIMIT = 1_000_000


class Now:
    """The time; nothing here sleeps."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        raise AssertionError("a sweep does not wait for the clock")


@dataclass
class Place:
    store: SqliteStore
    archive: SqliteArchive
    blobs: ObjectBlobs
    folder: Path
    metrics: telemetry.Metrics

    def __post_init__(self) -> None:
        self.collector = PayloadCollector(self.store, self.archive, self.blobs, GRACE, Now(), self.metrics)

    async def payload(self, content: bytes, *, age: timedelta = GRACE * 2, namespace: str = "default") -> str:
        """Its digest, once it is there and so old."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        digest = (await self.blobs.put_stream(namespace, None, chunks(), LIMIT)).digest
        self.grow_old(digest, age)
        return digest

    def grow_old(self, digest: str, age: timedelta = GRACE * 2) -> None:
        then = (datetime.now(UTC) - age).timestamp()
        for path in self.folder.rglob(digest):
            os.utime(path, (then, then))

    async def put(self, key: bytes, value: bytes) -> None:
        assert (await self.store.commit(Txn(ops=(Put(key, value),)))).succeeded

    async def archived(self, run_id: str, *events: bytes) -> None:
        run = ArchivedRun(
            run_id, "default", "g", "", "SUCCEEDED", "me", b"", b"", datetime.now(UTC), 9, datetime.now(UTC)
        )
        await self.archive.write([run], [EventChunk(run_id, n, n, data) for n, data in enumerate(events, 1)])

    async def left(self) -> set[str]:
        return {blob.digest async for _, blob in self.blobs.all()}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with (
        SqliteStore(tmp_path / "store.db") as store,
        SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as archive,
        ObjectBlobs((tmp_path / "payloads").as_uri()) as blobs,
    ):
        yield Place(store, archive, blobs, tmp_path / "payloads", telemetry.Metrics())


def reference(digest: str) -> bytes:
    """As records and entries hold it."""
    return payload_pb2.Payload(blob=payload_pb2.BlobReference(digest=digest, size=1)).SerializeToString()


async def test_what_nothing_refers_to_goes_after_its_time_and_what_is_young_stays(place: Place) -> None:
    old, young = await place.payload(b"old"), await place.payload(b"young", age=GRACE - timedelta(minutes=1))
    other = await place.payload(b"elsewhere", namespace="team.a/b")
    assert await place.collector.sweep() == 2
    assert await place.left() == {young}
    for digest, namespace in ((old, "default"), (other, "team.a/b")):
        with pytest.raises(BlobNotFound):
            await place.blobs.stat(namespace, digest)
    assert place.metrics.registry.get_sample_value("antiphon_payloads_collected_total") == 2
    assert place.metrics.registry.get_sample_value("antiphon_payload_bytes_collected_total") == len(b"oldelsewhere")
    assert [path for path in place.folder.rglob("*") if path.is_file() and old in path.name] == []


async def test_what_anything_refers_to_stays(place: Place) -> None:
    live, entry, first, second, quoted, late = [await place.payload(b"%d" % n) for n in range(6)]
    await place.put(b"log/0000/0000000000000001", b"\xff" * 1000 + reference(live))
    await place.put(b"context/default/run/x", reference(entry))
    await place.archived("r1", reference(first), b"nothing", reference(second))
    await place.archived("r2", json.dumps({"deep": [{"digest": quoted}]}).encode())
    for n in range(40):
        await place.archived(f"r3{n:02}", b"x" * 100)
    await place.archived("r4", b"a" * 262_100 + late.encode())  # across the border of two pieces
    gone = await place.payload(b"gone")
    for _ in range(2):
        await place.collector.sweep()
        assert await place.left() == {live, entry, first, second, quoted, late}
    assert gone not in await place.left()


async def test_what_lost_its_last_reference_goes_as_well(place: Place) -> None:
    digest = await place.payload(b"x")
    await place.archived("r1", reference(digest))
    assert await place.collector.sweep() == 0
    assert await place.archive.delete_before(datetime.now(UTC) + timedelta(days=1), 10) == 1
    assert await place.collector.sweep() == 1


async def test_what_was_used_stays_for_its_time_again(place: Place) -> None:
    digest = await place.payload(b"x")
    await place.blobs.use("default", digest)
    assert await place.collector.sweep() == 0
    place.grow_old(digest)
    assert await place.collector.sweep() == 1


class Stepping:
    """The store under a `Blobs`, which does something else before one of its calls."""

    def __init__(self, store: Any, at: int, something: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._until = at
        self._something = something

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not name.endswith("_async"):
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            self._until -= 1
            if self._until == 0:
                await self._something()
            return await found(*arguments, **options)

        return call


async def use(blobs: ObjectBlobs, content: bytes) -> None:
    await blobs.use("default", hashlib.sha256(content).hexdigest())


async def upload(blobs: ObjectBlobs, content: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    await blobs.put_stream("default", None, chunks(), LIMIT)


@pytest.mark.parametrize("way", [use, upload])
async def test_a_payload_that_is_wanted_at_any_moment_of_its_removal_stays_or_its_user_is_told(
    place: Place, way: Callable[[ObjectBlobs, bytes], Awaitable[None]]
) -> None:
    kept = refused = 0
    for step in range(1, 10):
        content = b"content %d" % step
        digest = await place.payload(content)
        told: list[bool] = []

        async def want(content: bytes = content, told: list[bool] = told) -> None:
            try:
                await way(ObjectBlobs(place.folder.as_uri()), content)
            except (BlobNotFound, BlobsUnavailable):
                told.append(False)
            else:
                told.append(True)

        place.blobs.__dict__["_store"] = Stepping(ObjectBlobs(place.folder.as_uri())._store, step, want)
        await place.collector.sweep()
        there = digest in await place.left()
        assert there or told != [True], step
        kept += there
        refused += told == [False]
    assert kept
    assert refused or way is upload


async def test_what_a_crash_left_half_removed_comes_back(place: Place) -> None:
    digest = await place.payload(b"x")
    path = f"default/{digest[:2]}/{digest}"
    await place.blobs._store.rename_async(path, f".trash/{path}")
    assert await place.left() == set()
    await place.put(b"context/default/run/x", reference(digest))
    assert await place.collector.sweep() == 0
    assert await place.left() == {digest}


async def test_an_archive_that_cannot_be_read_to_its_end_deletes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.payload(b"x")
    for n in range(20):
        await place.archived(f"r{n:02}", b"x")
    scan, calls = place.archive.scan, 0

    async def fails(after: tuple[str, int], limit: int) -> list[EventChunk]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArchiveUnavailable("away")
        return await scan(after, limit)

    monkeypatch.setattr(place.archive, "scan", fails)
    with pytest.raises(ArchiveUnavailable):
        await place.collector.sweep()
    assert len(await place.left()) == 1
