"""Who may take a shard, and what the log says to whoever does not own it any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from antiphon.store.v1 import records_pb2 as records
from antiphon_orchestrator.shards.log import Fenced, ShardLog
from antiphon_orchestrator.store import Put, SqliteStore, Txn, keys


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


async def appears(store: SqliteStore, replica: str) -> int:
    """The lease under which the replica is there."""
    lease = await store.grant(60)
    await store.commit(Txn(ops=(Put(keys.replica(replica), b"", lease),)))
    return lease


async def owner(store: SqliteStore) -> records.ShardOwner:
    return records.ShardOwner.FromString((await store.range(keys.shard_owner(0))).kvs[0].value)


async def test_nobody_takes_a_shard_whose_owner_is_there(store: SqliteStore) -> None:
    await appears(store, "a")
    await appears(store, "b")
    mine, theirs = ShardLog(store, 0, "a"), ShardLog(store, 0, "b")
    await mine.take()
    with pytest.raises(Fenced):
        await theirs.take()
    assert await mine.append([b"record"]) == 1


async def test_the_shard_of_one_that_is_gone_is_taken_and_its_next_write_is_refused(store: SqliteStore) -> None:
    lease = await appears(store, "a")
    await appears(store, "b")
    mine, theirs = ShardLog(store, 0, "a"), ShardLog(store, 0, "b")
    await mine.take()
    await mine.append([b"record"])
    await store.revoke(lease)
    await theirs.take()
    assert theirs.epoch == mine.epoch + 1
    for refused in (mine.append([b"late"]), mine.trim(2), mine.hand_over("c")):
        with pytest.raises(Fenced):
            await refused
    theirs.next_seq = 2
    assert await theirs.append([b"record"]) == 2


async def test_an_owner_that_was_overtaken_learns_of_it_by_asking(store: SqliteStore) -> None:
    lease = await appears(store, "a")
    mine, theirs = ShardLog(store, 0, "a"), ShardLog(store, 0, "b")
    await mine.take()
    assert await mine.owned()
    await store.revoke(lease)
    await theirs.take()
    assert (await mine.owned(), await theirs.owned()) == (False, True)
    await theirs.hand_over("c")
    assert not await theirs.owned()


async def test_a_shard_that_was_handed_over_is_its_successors_and_nobody_elses(store: SqliteStore) -> None:
    for name in "abc":
        await appears(store, name)
    former, heir, other = (ShardLog(store, 0, name) for name in "abc")
    await former.take()
    await former.hand_over("b")
    with pytest.raises(Fenced):
        await former.append([b"late"])
    for refused in (other, ShardLog(store, 0, "a")):
        with pytest.raises(Fenced):
            await refused.take()
    await heir.take()
    assert (heir.epoch, (await owner(store)).successor_id) == (2, "")


async def test_a_shard_whose_successor_is_gone_is_anybodys(store: SqliteStore) -> None:
    await appears(store, "a")
    await appears(store, "c")
    former = ShardLog(store, 0, "a")
    await former.take()
    await former.hand_over("b")  # which has never been there
    other = ShardLog(store, 0, "c")
    await other.take()
    assert (await owner(store)).replica_id == "c"


async def test_one_that_took_a_shard_before_may_take_it_again(store: SqliteStore) -> None:
    await appears(store, "a")
    await ShardLog(store, 0, "a").take()
    again = ShardLog(store, 0, "a")
    await again.take()
    assert again.epoch == 2
