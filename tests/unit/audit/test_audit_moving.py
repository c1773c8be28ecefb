"""Audit records on their way from the store to the archive: none is lost or twice, and the chain stays one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from antiphon import AuditFinding, Tampering, verify_audit
from antiphon._audit import content_of
from antiphon.store.v1 import records_pb2
from antiphon.v1.audit_pb2 import AuditHead, AuditRecord
from antiphon_orchestrator.archive import ArchiveUnavailable, AuditPage
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.audit import CALLS, Chain, Fact, reading
from antiphon_orchestrator.audit.chain import START
from antiphon_orchestrator.audit.log import STAYING as STAYING_CALLS
from antiphon_orchestrator.audit.log import AuditLog
from antiphon_orchestrator.audit.moving import AWAY, EVERY, RETENTION, AuditMover
from antiphon_orchestrator.shards.audited import STAYING, AuditPages
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.store import Put, SqliteStore, StoreFull, Txn, keys

NAME = "shard-0000"
BATCH = 500
"""Records, in pages of 50: more than stay in the store."""
DAY = timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Time as the test sets it; whoever sleeps for long goes on when the test says `pass_`."""

    def __init__(self) -> None:
        self.time = BEGIN
        self.slept: list[timedelta] = []
        self._wakes = asyncio.Semaphore(0)
        self._asleep = asyncio.Semaphore(0)

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        if duration < EVERY:
            return
        self.slept.append(duration)
        self._asleep.release()
        await self._wakes.acquire()
        self.time += duration

    async def pass_(self) -> None:
        """Lets the sleeper go on, and returns when it sleeps again."""
        self._wakes.release()
        await self._asleep.acquire()


class Away(SqliteArchive):
    """An archive that can be made to fail, before it has done anything or after."""

    before = after = False

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def write_audit(self, pages: Sequence[AuditPage]) -> None:
        if self.before:
            raise ArchiveUnavailable("it is away")
        await super().write_audit(pages)
        if self.after:
            raise ArchiveUnavailable("its answer was lost")


class World:
    """A shard's chain with its writer, a store and an archive."""

    def __init__(self, store: SqliteStore, archive: Away) -> None:
        self.store, self.archive, self.clock = store, archive, Clock()

    async def begin(self) -> World:
        self.log = ShardLog(self.store, 0, "r")
        self.chain = Chain(NAME)
        self.pages = AuditPages(self.store, self.log, NAME, "r")
        await self.log.take()
        await self.pages.load(self.chain)
        self.mover = AuditMover(self.store, self.archive, lambda: [self.pages], 30 * DAY, self.clock)
        return self

    async def write(self, count: int, of: int = 50) -> None:
        """So many records at the clock's time, in pages `of` so many."""
        moment = int(self.clock.time.timestamp() * 1e6)
        for _ in range(count // of):
            facts = [Fact("end", "demo", "p", f"Run::demo/{n}") for n in range(of)]
            self.pages.committed([self.chain.add(fact, moment) for fact in facts], moment)
            await self.pages.write()

    async def stored(self) -> list[int]:
        return [seq async for page in reading.stored(self.store, NAME, 1, 1 << 40) for seq, _ in page]

    async def archived(self) -> list[int]:
        pages = await self.archive.audit_pages(NAME, 1, 1 << 40, 10_000)
        return [seq for page in pages for seq in range(page.first_seq, page.last_seq + 1)]

    async def read(self, first: int = 0, last: int = 0) -> list[AuditRecord]:
        head = await self.head()
        rows = reading.pages(self.store, self.archive, NAME, first or head.first_seq, last or head.last_seq)
        return [reading.record(NAME, seq, raw) async for page in rows for seq, raw in page]

    async def head(self) -> AuditHead:
        found = await reading.head(self.store, NAME)
        assert found is not None
        return AuditHead(
            chain=NAME,
            first_seq=found[0].trimmed_seq + 1,
            first_prev_hash=(found[0].trimmed_hash or START).hex(),
            last_seq=found[0].last_seq,
            last_hash=found[0].last_hash.hex(),
        )

    async def findings(self) -> list[AuditFinding]:
        return verify_audit(await self.read(), await self.head())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        SqliteStore(tmp_path / "store.db") as store,
        Away(f"sqlite:///{tmp_path / 'archive.db'}") as archive,
    ):
        yield await World(store, archive).begin()


async def test_old_records_leave_the_store_and_the_chain_is_read_and_verified_as_one(world: World) -> None:
    for _ in range(4):
        await world.write(2 * BATCH)
        await world.mover.look()
    stored, archived = await world.stored(), await world.archived()
    assert archived + stored == list(range(1, 8 * BATCH + 1))
    assert STAYING <= len(stored) < STAYING + 2 * BATCH
    assert await world.findings() == []
    for first in range(1, 8 * BATCH, 170):
        assert [one.seq for one in await world.read(first, first + 160)] == [
            seq for seq in range(first, first + 161) if seq <= 8 * BATCH
        ]
    assert world.mover.waiting < BATCH


async def test_what_a_crash_leaves_in_both_places_is_read_once_and_moved_again(world: World) -> None:
    await world.write(2 * BATCH)
    world.archive.after = True
    with pytest.raises(ArchiveUnavailable):
        await world.mover.look()
    assert await world.archived() and await world.stored() == list(range(1, 2 * BATCH + 1))
    assert await world.findings() == []
    world.archive.after = False
    again = await World(world.store, world.archive).begin()
    await again.mover.look()
    assert await world.archived() + await world.stored() == list(range(1, 2 * BATCH + 1))
    assert await world.findings() == []


async def test_a_page_that_is_moved_while_somebody_reads_is_not_missed(world: World) -> None:
    await world.write(4 * BATCH, of=10)
    read: list[int] = []
    async for page in reading.pages(world.store, world.archive, NAME, 1, 4 * BATCH):
        if not read:
            await world.mover.look()
        read += [seq for seq, _ in page]
    assert len(await world.stored()) < 4 * BATCH
    assert read == list(range(1, 4 * BATCH + 1))


async def test_while_the_archive_is_away_nothing_leaves_the_store_and_an_alarm_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.write(2 * BATCH)
    world.archive.before = True
    running = asyncio.create_task(world.mover.run())
    try:
        for _ in range(3):
            await asyncio.wait_for(world.clock.pass_(), 20)
        assert world.clock.slept[:3] == [EVERY, AWAY, AWAY]
        assert not world.mover.available and world.mover.waiting == 2 * BATCH - STAYING
        assert await world.stored() == list(range(1, 2 * BATCH + 1)) and await world.archived() == []
        world.archive.before = False
        await asyncio.wait_for(world.clock.pass_(), 20)
        await asyncio.wait_for(world.clock.pass_(), 20)
        assert world.mover.available and len(await world.stored()) < BATCH + STAYING
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_records_go_from_the_archive_by_age_and_the_chain_says_where_it_begins(world: World) -> None:
    await world.write(2 * BATCH)
    await world.mover.look()
    world.clock.time += 20 * DAY
    await world.write(2 * BATCH)
    await world.mover.look()
    world.clock.time += 15 * DAY
    await world.mover.look()
    head = await world.head()
    assert head.first_seq == 2 * BATCH + 1 and (await world.archived())[0] == head.first_seq
    assert await world.findings() == []
    assert (await world.read())[0].seq == head.first_seq
    again = await World(world.store, world.archive).begin()
    again.clock.time = world.clock.time
    await again.write(50)
    await again.mover.look()
    assert await again.findings() == [] and (await again.head()).first_seq == head.first_seq


async def test_what_age_removes_while_a_chain_is_read_is_told_from_what_somebody_deleted(world: World) -> None:
    await world.write(BATCH)
    await world.mover.look()
    world.clock.time += 20 * DAY
    await world.write(BATCH)
    await world.mover.look()
    head, all_of_them = await world.head(), await world.read()
    world.clock.time += 15 * DAY
    await world.mover.look()
    later, left = await world.head(), await world.read()
    assert later.first_seq == left[0].seq == BATCH + 1
    assert [found.kind for found in verify_audit(left, head)] == [Tampering.DELETED]
    assert verify_audit(left, head, later) == []
    assert verify_audit([*all_of_them[:100], *left], head, later) == [], "the first were read before they went"
    one_more = verify_audit(left[1:], head, later)
    assert [(found.kind, found.seq) for found in one_more] == [(Tampering.DELETED, BATCH + 1)]
    assert [found.seq for found in verify_audit([*left[:50], *left[60:]], head, later)] == [BATCH + 51]
    said_otherwise = AuditHead(chain=NAME, first_seq=later.first_seq, first_prev_hash=START)
    assert [found.kind for found in verify_audit(left, head, said_otherwise)] == [Tampering.EDITED]
    left[0].reason = "another"
    left[0].digest = hashlib.sha256(content_of(left[0])).hexdigest()
    assert [(found.kind, found.seq) for found in verify_audit(left, head, later)] == [(Tampering.EDITED, BATCH + 1)]
    world.clock.time += 40 * DAY
    await world.write(BATCH)
    await world.mover.look()
    assert [found.kind for found in verify_audit([], head)] == [Tampering.TRUNCATED]
    assert verify_audit([], head, await world.head()) == []


async def test_a_record_with_a_wrong_time_takes_no_younger_ones_with_it(world: World) -> None:
    await world.write(2 * BATCH)
    world.clock.time -= 100 * DAY
    await world.write(50)
    world.clock.time += 100 * DAY
    await world.write(2 * BATCH)
    await world.mover.look()
    world.clock.time += RETENTION
    await world.mover.look()
    assert (await world.head()).first_seq == 1 and await world.findings() == []


async def change(world: World, work: Callable[[records_pb2.AuditPage], None] | None) -> None:
    """Changes the second archived page, or takes it away, behind the archive's back."""
    pages = await world.archive.audit_pages(NAME, 1, 1 << 40, 10_000)
    content = records_pb2.AuditPage.FromString(pages[1].data)
    with world.archive._engine.begin() as connection:
        if work is None:
            connection.exec_driver_sql("DELETE FROM audit_pages WHERE first_seq = ?", (pages[1].first_seq,))
        else:
            work(content)
            values = content.SerializeToString(), pages[1].first_seq
            connection.exec_driver_sql("UPDATE audit_pages SET data = ? WHERE first_seq = ?", values)


def edit(page: records_pb2.AuditPage) -> None:
    page.records[0] = page.records[0].replace(b"demo", b"team")


def swap(page: records_pb2.AuditPage) -> None:
    first, second = page.records[:2]
    page.records[0], page.records[1] = second, first


def cut(page: records_pb2.AuditPage) -> None:
    del page.records[-1]


@pytest.mark.parametrize(
    ("work", "kind", "seq"),
    [
        (edit, Tampering.EDITED, 51),
        (swap, Tampering.REORDERED, 51),
        (cut, Tampering.DELETED, 100),
        (None, Tampering.DELETED, 51),
    ],
    ids=["edited", "reordered", "cut", "deleted"],
)
async def test_what_was_done_to_an_archived_page_is_named(
    work: Callable[[records_pb2.AuditPage], None] | None, kind: str, seq: int, world: World
) -> None:
    await world.write(2 * BATCH)
    await world.mover.look()
    await change(world, work)
    assert (kind, seq) in {(one.kind, one.seq) for one in await world.findings()}


async def test_an_old_page_that_is_put_back_into_the_store_replaces_no_archived_one(world: World) -> None:
    await world.write(2 * BATCH)
    await world.mover.look()
    (page,) = await world.archive.audit_pages(NAME, 1, 1, 1)
    forged = records_pb2.AuditPage.FromString(page.data)
    edit(forged)
    await world.store.commit(Txn(ops=(Put(keys.audit(NAME, 1), forged.SerializeToString()),)))
    assert [one.kind for one in await world.findings()] == [Tampering.EDITED]
    await world.write(2 * BATCH)
    await world.mover.look()
    assert await world.findings() == []


async def test_pages_leave_a_full_store(tmp_path: Path) -> None:
    async with (
        SqliteStore(tmp_path / "store.db", max_bytes=2 << 20) as store,
        Away(f"sqlite:///{tmp_path / 'archive.db'}") as archive,
    ):
        world = await World(store, archive).begin()
        await world.write(4 * BATCH)
        with pytest.raises(StoreFull):
            for number in range(1000):
                await store.commit(Txn(ops=(Put(b"agent/%d" % number, bytes(10_000)),)))
        size = await store.size()
        await world.mover.look()
        assert await store.size() < size and len(await world.stored()) < STAYING + BATCH
        assert await world.findings() == []


async def test_an_owner_that_was_replaced_deletes_nothing(world: World) -> None:
    await world.write(2 * BATCH)
    await World(world.store, world.archive).begin()
    await world.mover.look()
    assert await world.stored() == list(range(1, 2 * BATCH + 1)) and await world.findings() == []


async def test_two_replicas_move_the_chain_that_they_share(tmp_path: Path) -> None:
    async with (
        SqliteStore(tmp_path / "store.db") as store,
        Away(f"sqlite:///{tmp_path / 'archive.db'}") as archive,
    ):
        clock = Clock()
        logs = {name: AuditLog(store, name, lambda: int(clock.time.timestamp() * 1e6)) for name in "ab"}
        movers = [AuditMover(store, archive, lambda log=log: [log], 30 * DAY, clock) for log in logs.values()]  # type: ignore[misc]
        running = [asyncio.create_task(log.run()) for log in logs.values()]

        async def write(name: str, log: AuditLog) -> None:
            for _ in range(STAYING_CALLS // 50):
                await asyncio.gather(*(log.write(Fact("drain", "n", name, "r")) for _ in range(50)))

        await asyncio.gather(*(write(name, log) for name, log in logs.items()))
        await asyncio.gather(*(mover.look() for mover in movers))
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        found = await reading.head(store, CALLS)
        assert found is not None and found[0].last_seq == 2 * STAYING_CALLS
        rows = reading.pages(store, archive, CALLS, found[0].trimmed_seq + 1, found[0].last_seq)
        assert [seq async for page in rows for seq, _ in page] == list(range(1, 2 * STAYING_CALLS + 1))
        assert await archive.audit_pages(CALLS, 1, 1, 1)
