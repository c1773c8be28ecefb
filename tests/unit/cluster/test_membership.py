"""What replicas learn of each other from the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from antiphon.store.v1 import records_pb2 as records
from antiphon_orchestrator.cluster import membership as module
from antiphon_orchestrator.cluster.membership import LEASE, AddressInUse, Membership, check_address
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.store import (
    Delete,
    Put,
    RangeResult,
    SqliteStore,
    StoreUnavailable,
    Txn,
    WatchBatch,
    keys,
)

from tests.harness.waiting import eventually


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


@asynccontextmanager
async def joined(store: SqliteStore, name: str) -> AsyncIterator[Membership]:
    """A replica that is there, and gone afterwards."""
    membership = Membership(store, name, "1.0", 0)
    await membership.join(f"{name}:7443", f"{name}:7444")
    running = asyncio.create_task(membership.run())
    try:
        yield membership
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await membership.gone()


async def test_replicas_notice_who_comes_and_who_goes(store: SqliteStore) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(joined(store, "a"))
        async with joined(store, "b") as second:
            assert {(member.address, member.join_address) for member in second.others} == {("a:7443", "a:7444")}
            await eventually(lambda: {member.address for member in first.others} == {"b:7443"})
            await second.leave()
            await eventually(lambda: first.members["b"].leaving)
        await eventually(lambda: not first.others)


async def test_one_that_was_there_before_has_rested_and_one_that_comes_later_has_not(store: SqliteStore) -> None:
    async with joined(store, "a") as first, joined(store, "b") as second:
        await eventually(lambda: "b" in first.members)
        assert second.members["a"].seen < first.members["b"].seen


async def test_a_replica_whose_lease_has_ended_is_there_again(store: SqliteStore) -> None:
    async with joined(store, "a") as first, joined(store, "b") as second:
        (marker,) = (await store.range(keys.replica("b"))).kvs
        await store.revoke(marker.lease)
        await eventually(lambda: "b" not in first.members)
        await eventually(lambda: "b" in first.members and "b" in second.members)


class Deaf(SqliteStore):
    """One of several replicas whose watches tell nothing, and which fails once when it is asked who owns what."""

    shared = True
    failures = 0

    async def watch(
        self, prefix: bytes, from_revision: int = 0, *, before: bool = False
    ) -> AsyncGenerator[WatchBatch, None]:
        await asyncio.Event().wait()
        yield WatchBatch((), 0)

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        if start == keys.SHARDS and self.failures:
            self.failures -= 1
            raise StoreUnavailable("for once")
        return await super().range(start, end, limit=limit)


async def test_a_replica_whose_lease_has_ended_is_cut_off_until_it_knows_what_others_took(tmp_path: Path) -> None:
    async with Deaf(tmp_path / "store.db") as store, joined(store, "a") as membership:
        await ShardLog(store, 3, "a").take()
        await membership.refresh(3)
        returns: list[tuple[bool, str]] = []
        membership.returned = lambda: returns.append((membership.cut_off, membership.owners[3].replica_id))
        assert not membership.cut_off
        (marker,) = (await store.range(keys.replica("a"))).kvs
        await store.revoke(marker.lease)
        await ShardLog(store, 3, "b").take()
        store.failures = 1
        await eventually(lambda: membership.cut_off)
        await eventually(lambda: not membership.cut_off)
        assert returns == [(True, "b")]
        assert not store.failures and (await store.range(keys.replica("a"))).kvs


async def test_a_replica_that_is_back_is_cut_off_until_it_has_read_what_others_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, passed = module.clock, 0
    monkeypatch.setattr(module, "clock", lambda: real() + passed)
    async with Deaf(tmp_path / "store.db") as store, joined(store, "a") as membership:
        reads: list[bool] = []
        end = asyncio.Event()

        async def read_again() -> None:
            reads.append(membership.cut_off)
            if len(reads) == 1:
                raise StoreUnavailable("for once")
            await end.wait()

        membership.read_again = read_again
        assert not membership.cut_off
        passed += LEASE * 1_000_001
        assert membership.cut_off
        await eventually(lambda: len(reads) == 2)
        assert membership.cut_off and reads == [True, True]
        end.set()
        await eventually(lambda: not membership.cut_off)
        assert len(reads) == 2


async def test_the_claimant_of_a_shard_is_its_owner_or_whom_it_was_handed_over_to(store: SqliteStore) -> None:
    async with joined(store, "a") as first, joined(store, "b"):
        await eventually(lambda: "b" in first.members)
        log = ShardLog(store, 3, "a")
        await log.take()
        await eventually(lambda: (owner := first.claimant(3)) is not None and owner.replica_id == "a")
        await log.hand_over("b")
        await first.refresh(3)
        owner = first.claimant(3)
        assert owner is not None and owner.replica_id == "b"
        assert first.claimant(4) is None


class Clock:
    """Microseconds that pass when somebody says so."""

    now = 0

    def __call__(self) -> int:
        return self.now


class Standing(SqliteStore):
    """One whose process stands still for a minute while its first answer is under way."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self.clock = clock
        self.ranged = 0

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        found = await super().range(start, end, limit=limit)
        self.ranged += 1
        self.clock.now += 60_000_000 if self.ranged == 1 else 0
        if self.ranged == 1:
            await self.commit(Txn(ops=(Delete(keys.replica("a")),)))
        return found


async def test_an_address_is_refused_by_what_was_asked_after_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "clock", clock)
    there = Txn(ops=(Put(keys.replica("a"), records.ReplicaRecord(address="one:1").SerializeToString()),))
    async with Standing(tmp_path / "standing.db", clock) as store:
        await store.commit(there)
        await check_address(store, "one:1")
        assert store.ranged == 2, "it was gone when it was asked again"
        await store.commit(there)
        checking = asyncio.create_task(check_address(store, "one:1"))
        await eventually(lambda: store.ranged > 2)
        clock.now += 2 * LEASE * 1_000_000 + 1
        with pytest.raises(AddressInUse, match="one:1 is the address of replica a, which is there"):
            await checking
