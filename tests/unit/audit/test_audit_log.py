"""The chain of calls over a real store: durable before it is answered, shared by replicas, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from antiphon import Tampering, verify_audit
from antiphon.store.v1 import records_pb2
from antiphon.v1.audit_pb2 import AuditHead, AuditRecord
from antiphon_orchestrator.audit import CALLS, AuditLog, Fact, reading
from antiphon_orchestrator.audit.chain import START
from antiphon_orchestrator.audit.log import BATCH
from antiphon_orchestrator.policy import CedarPolicies, Request
from antiphon_orchestrator.store import Put, SqliteStore, Store, StoreFull, StoreUnavailable, Txn, keys

NOW = 1_790_000_000_000_000


@pytest.fixture(autouse=True)
def time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an orchestrator gives its last records is little on a machine that has much to do."""
    monkeypatch.setattr("antiphon_orchestrator.audit.log.CLOSING", 60.0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


@asynccontextmanager
async def writing(store: Store, writer: str = "one") -> AsyncIterator[AuditLog]:
    """A log whose writer runs, and which is closed as a process closes it."""
    log = AuditLog(store, writer, lambda: NOW)
    await log.load()
    task = asyncio.create_task(log.run())
    try:
        yield log
    finally:
        task.cancel()
        await asyncio.wait((task,))
        await log.close()


def fact(name: str) -> Fact:
    return Fact("drain", "demo", "spiffe://mesh.test/ns/demo/operator/olga", f"Agent::demo/{name}")


async def kept(store: Store) -> tuple[AuditHead, list[AuditRecord]]:
    found = await reading.head(store, CALLS)
    assert found is not None
    head, _ = found
    records = [
        reading.record(CALLS, seq, raw)
        async for page in reading.stored(store, CALLS, head.trimmed_seq + 1, head.last_seq)
        for seq, raw in page
    ]
    shown = AuditHead(
        chain=CALLS,
        first_seq=head.trimmed_seq + 1,
        first_prev_hash=(head.trimmed_hash or START).hex(),
        last_seq=head.last_seq,
        last_hash=head.last_hash.hex(),
    )
    return shown, records


async def resources(store: Store) -> list[str]:
    """The names of the resources, of a chain that is whole."""
    head, records = await kept(store)
    assert verify_audit(records, head) == []
    return [record.resource.rpartition("/")[2] for record in records]


async def test_a_record_is_in_the_store_when_its_writer_is_told(store: SqliteStore) -> None:
    async with writing(store) as log:
        await log.write(fact("a"))
        assert await resources(store) == ["a"]


async def test_what_waits_is_one_page(store: SqliteStore) -> None:
    async with writing(store) as log:
        await asyncio.gather(*(log.write(fact(str(number))) for number in range(BATCH)))
    prefix = keys.audit_prefix(CALLS)
    assert len((await store.range(prefix, keys.audit(CALLS, 1 << 40))).kvs) <= 2
    assert await resources(store) == [str(number) for number in range(BATCH)]


async def test_the_next_process_goes_on_where_the_last_one_ended(store: SqliteStore) -> None:
    for name in "abc":
        async with writing(store, name) as log:
            await log.write(fact(name))
    assert await resources(store) == ["a", "b", "c"]


async def test_two_replicas_share_the_chain(store: SqliteStore) -> None:
    async with writing(store, "one") as one, writing(store, "two") as two:
        for number in range(20):
            await asyncio.gather(one.write(fact(f"one{number}")), two.write(fact(f"two{number}")))
    found = await resources(store)
    assert sorted(found) == sorted([f"{name}{number}" for name in ("one", "two") for number in range(20)])


async def test_refusals_are_written_at_the_latest_when_the_process_ends(store: SqliteStore) -> None:
    request = Request.submit(
        "spiffe://d/ns/demo/client/a", "client", "demo", "g", labels=frozenset({"pii"}), priority=3
    )
    (decision,) = CedarPolicies().decide_batch([request])
    async with writing(store) as log:
        for _ in range(5):
            log.record(request, decision)
    head, records = await kept(store)
    assert verify_audit(records, head) == []
    first, counted = records
    assert (first.action, first.resource, first.decision_id) == ("submit", "Graph::demo/g", decision.decision_id)
    assert dict(first.details) == {"labels": "pii", "priority": "3"} and first.reason == decision.reason
    assert counted.details["repeated"] == "4"


class Full:
    """A store that has no space for a while; when it `lies`, it takes what it refuses."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self.lies = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> Any:
        if self.full:
            if self.lies:
                await self._store.commit(txn)
            raise StoreFull("no space")
        return await self._store.commit(txn)


@pytest.mark.parametrize("lies", [False, True])
async def test_with_a_full_store_an_act_is_refused_and_the_chain_goes_on_later(store: SqliteStore, lies: bool) -> None:
    full: Any = Full(store)
    full.lies = lies
    async with writing(full) as log:
        await log.write(fact("before"))
        full.full = True
        with pytest.raises(StoreFull):
            await log.write(fact("refused"))
        full.full = False
        await log.write(fact("after"))
    assert await resources(store) == ["before", *["refused"] * lies, "after"]


class Hanging:
    """A store that never answers its first commit, and has made it or not."""

    def __init__(self, store: Store, made: bool) -> None:
        self._store = store
        self._made = made
        self.hangs = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> Any:
        if self.hangs.is_set():
            return await self._store.commit(txn)
        if self._made:
            await self._store.commit(txn)
        self.hangs.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("made", [True, False])
async def test_what_is_being_written_at_the_end_of_the_process_is_written_once_and_answered(
    store: SqliteStore, made: bool
) -> None:
    hanging: Any = Hanging(store, made)
    async with asyncio.timeout(10):
        async with writing(hanging) as log:
            act = asyncio.create_task(log.write(fact("act")))
            await hanging.hangs.wait()
            log.note(fact("after"), NOW)
        await act
    assert await resources(store) == ["act", "after"]


class Away:
    """A store that can be away for reads, for longer than it tries by itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> Any:
        if self.away:
            self.asked.set()
            raise StoreUnavailable("no answer")
        return await self._store.range(start, end, limit=limit)


async def other_writes(store: Store, name: str) -> None:
    async with writing(store, "other") as other:
        await other.write(fact(name))


async def test_reads_that_fail_beside_a_commit_are_tried_until_the_store_is_back(store: SqliteStore) -> None:
    away: Any = Away(store)
    async with asyncio.timeout(10), writing(away) as log:
        await other_writes(store, "theirs")
        away.away = True
        act = asyncio.create_task(log.write(fact("ours")))
        await away.asked.wait()
        away.away = False
        await act
        assert await resources(store) == ["theirs", "ours"]


async def test_a_page_whose_answer_was_lost_is_not_written_again_although_the_store_is_away_when_it_is_looked_for(
    store: SqliteStore,
) -> None:
    away: Any = Away(store)

    async def between(txn: Txn) -> Any:
        """Ours is committed, and another replica writes before we send it again."""
        del away.commit
        await store.commit(txn)
        await other_writes(store, "theirs")
        away.away = True
        raise StoreUnavailable("the answer was lost")

    async with asyncio.timeout(10), writing(away) as log:
        away.commit = between
        act = asyncio.create_task(log.write(fact("ours")))
        await away.asked.wait()
        away.away = False
        await act
        await log.write(fact("next"))
    assert await resources(store) == ["ours", "theirs", "next"]


@pytest.mark.parametrize("damage", ["edit", "delete"])
async def test_a_broken_end_is_an_alarm_and_the_chain_goes_on(
    damage: str, store: SqliteStore, capsys: pytest.CaptureFixture[str]
) -> None:
    async with writing(store) as log:
        for name in "abcd":
            await log.write(fact(name))
    key = keys.audit(CALLS, 3)
    page = records_pb2.AuditPage.FromString((await store.range(key)).kvs[0].value)
    page.records[0] = page.records[0].replace(b"olga", b"oleg")
    value = page.SerializeToString() if damage == "edit" else b""
    await store.commit(Txn(ops=(Put(key, value),)))
    head, _ = await kept(store)
    broken = await reading.broken_at(store, CALLS, (await reading.heads(store))[CALLS])
    assert broken is not None and broken[0] == 3
    async with writing(store) as log:
        await log.write(fact("e"))
    now, records = await kept(store)
    assert now.last_seq == head.last_seq + 1
    assert {(found.kind, found.seq) for found in verify_audit(records, now)} >= {
        (Tampering.DELETED if damage == "delete" else Tampering.EDITED, 3)
    }


async def test_records_are_found_wherever_their_page_begins(store: SqliteStore) -> None:
    async with writing(store) as log:
        for size in (1, 60, 3, 100, 1, 1, 40):
            await asyncio.gather(*(log.write(fact(str(size))) for _ in range(size)))
    _, every = await kept(store)
    for first in range(1, len(every) + 1, 7):
        found = [seq async for page in reading.stored(store, CALLS, first, first + 2) for seq, _ in page]
        assert found == [seq for seq in range(first, first + 3) if seq <= len(every)]
