"""Audit records of a shard between its log and their pages: none is lost by a crash, none is written twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from antiphon import verify_audit
from antiphon.v1.audit_pb2 import AuditHead, AuditRecord
from antiphon_orchestrator.audit import Chain, Fact, reading
from antiphon_orchestrator.shards.audited import BATCH, DELAY, AuditPages
from antiphon_orchestrator.shards.log import Fenced, ShardLog
from antiphon_orchestrator.shards.reading import segments
from antiphon_orchestrator.store import Put, SqliteStore, Store, StoreFull, Txn, keys
from structlog.testing import LogCapture

NAME = "shard-0000"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


class Owner:
    """An owner of the shard, as shards.host makes one."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.log = ShardLog(store, 0, "r")
        self.chain = Chain(NAME)
        self.pages = AuditPages(store, self.log, NAME, "r")

    async def recover(self) -> Owner:
        await self.log.take()
        await self.pages.load(self.chain)
        async for seq, segment in segments(self.store, 0):
            self.log.next_seq = seq + 1
            self.pages.recover(self.chain, segment)
        return self

    async def turn(self, count: int = 1, moment: int = 0) -> None:
        first = self.chain.last_seq + 1
        raw = [self.chain.add(Fact("end", "demo", "p", f"Run::demo/{first + n}"), moment) for n in range(count)]
        await self.log.append([b"record"], raw, first)
        self.pages.committed(raw, moment)


async def kept(store: SqliteStore) -> list[int]:
    """Numbers of the records that have a page, found whole."""
    found = await reading.head(store, NAME)
    if found is None:
        return []
    head = found[0]
    records: list[AuditRecord] = []
    async for page in reading.stored(store, NAME, head.trimmed_seq + 1, head.last_seq):
        records += [reading.record(NAME, seq, raw) for seq, raw in page]
    shown = AuditHead(
        chain=NAME,
        first_seq=head.trimmed_seq + 1,
        first_prev_hash=(head.trimmed_hash or bytes(32)).hex(),
        last_seq=head.last_seq,
        last_hash=head.last_hash.hex(),
    )
    assert verify_audit(records, shown) == []
    return [record.seq for record in records]


async def test_what_has_no_page_after_a_crash_is_found_in_the_log(store: SqliteStore) -> None:
    first = await Owner(store).recover()
    await first.turn(3)
    await first.pages.write()
    await first.turn(2)
    second = await Owner(store).recover()
    await second.turn(1)
    assert await kept(store) == [1, 2, 3]
    await second.pages.write()
    assert await kept(store) == [1, 2, 3, 4, 5, 6]
    third = await Owner(store).recover()
    assert third.pages.due is None and third.chain.last_hash == second.chain.last_hash


async def test_a_page_is_due_a_second_after_its_first_record_or_when_many_wait(store: SqliteStore) -> None:
    owner = await Owner(store).recover()
    await owner.turn(moment=10)
    await owner.turn(moment=20)
    assert owner.pages.due == 10 + DELAY
    await owner.turn(BATCH, moment=30)
    assert owner.pages.due == 30
    await owner.pages.write()
    assert owner.pages.due is None and len(await kept(store)) == BATCH + 2
    found = await store.range(keys.audit_prefix(NAME), keys.audit(NAME, 1 << 40))
    assert len(found.kvs) == 2  # no page is larger than readers look back for


async def test_an_owner_that_was_replaced_writes_no_page(store: SqliteStore) -> None:
    former = await Owner(store).recover()
    await former.turn(2)
    present = await Owner(store).recover()
    with pytest.raises(Fenced):
        await former.pages.write()
    await present.pages.write()
    assert await kept(store) == [1, 2]


class Full:
    """A store that takes nothing but deletions for a while; when it `lies`, it takes the rest too, and refuses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self.lies = False
        self.refused = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> Any:
        if self.full and any(isinstance(op, Put) for op in txn.ops):
            self.refused.set()
            if self.lies:
                await self._store.commit(txn)
            raise StoreFull("no space")
        return await self._store.commit(txn)


async def test_while_the_log_waits_for_space_to_be_trimmed_readers_and_the_mover_do_not(store: SqliteStore) -> None:
    full: Any = Full(store)
    owner = await Owner(full).recover()
    await owner.turn(2)
    full.full = True
    async with asyncio.timeout(10):
        waiting = asyncio.create_task(owner.pages.write())
        await full.refused.wait()
        with pytest.raises(StoreFull):
            await owner.pages.write(wait_for_space=False)
        with pytest.raises(StoreFull):
            await owner.pages.begin_after(1, bytes(32))
        full.full = False
        await waiting
    assert await kept(store) == [1, 2]


async def test_a_page_that_is_due_in_a_full_store_is_due_again_later(store: SqliteStore) -> None:
    full: Any = Full(store)
    owner = await Owner(full).recover()
    await owner.turn(2)
    full.full = True
    async with asyncio.timeout(10):
        await owner.pages.write_due(5)
    assert owner.pages.due == 5 + DELAY and await kept(store) == []
    full.full = False
    await owner.pages.write_due(5 + DELAY)
    assert owner.pages.due is None and await kept(store) == [1, 2]


async def test_a_page_that_was_refused_and_is_there_all_the_same_is_written_over_with_what_came_since(
    store: SqliteStore,
) -> None:
    full: Any = Full(store)
    owner = await Owner(full).recover()
    await owner.turn(2)
    full.full = full.lies = True
    with pytest.raises(StoreFull):
        await owner.pages.write(wait_for_space=False)
    assert await kept(store) == [1, 2]
    full.full = False
    await owner.turn(1)
    await owner.pages.write()
    assert await kept(store) == [1, 2, 3]


async def test_a_log_whose_audit_records_were_changed_is_an_alarm(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = LogCapture()  # not what earlier tests have set up for the whole process
    monkeypatch.setattr("antiphon_orchestrator.shards.audited.log", structlog.wrap_logger(None, processors=[said]))
    owner = await Owner(store).recover()
    await owner.turn(2)
    async for _, segment in segments(store, 0):
        segment.audit[1] = segment.audit[1].replace(b"demo", b"team")
        other = Owner(store)
        other.pages.recover(other.chain, segment)
    assert [line["event"] for line in said.entries] == ["audit_chain_broken"]
