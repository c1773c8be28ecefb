"""A commit whose answer was lost may land at any later time; whoever sent it again ends with one effect all the same.

The store here loses answers as a cluster does: the transaction is kept back, and lands when the test says so. Or it
refuses for want of room what it has taken, as etcd may.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from antiphon_orchestrator.audit import AuditLog, Fact, reading
from antiphon_orchestrator.audit import log as audit_log
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.shards.reading import segments
from antiphon_orchestrator.store import Put, SqliteStore, StoreError, StoreFull, StoreUnavailable, Txn
from backends import SqliteBackend


class LateStore:
    """A store that loses the answers to the next `lose` commits, and before that the commits themselves, if `late`."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.lose = 0
        self.late = False
        self.answer: StoreError = StoreUnavailable("the answer was lost")
        self._kept: list[Txn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> Any:
        if self.lose:
            self.lose -= 1
            if self.late:
                self._kept.append(txn)
            else:
                await self._store.commit(txn)
            raise self.answer
        return await self._store.commit(txn)

    async def land(self) -> None:
        """What was kept back takes place, if it still can."""
        for txn in self._kept:
            await self._store.commit(txn)
        self._kept.clear()


async def test_a_shards_audit_head_does_not_go_back_when_an_older_one_lands_late(embedded: SqliteBackend) -> None:
    async with embedded.open() as store:
        late = LateStore(store)
        shard_log = ShardLog(late, 0, "me")  # type: ignore[arg-type]
        await shard_log.take()
        late.lose, late.late = 1, True
        first = await shard_log.replace(Put(b"head", b"1"), 0, Put(b"page/1", b""))
        await shard_log.replace(Put(b"head", b"2"), first, Put(b"page/2", b""))
        await late.land()
        (head,) = (await store.range(b"head")).kvs
        assert head.value == b"2"


@pytest.mark.proves("a commit whose answer was lost")
async def test_a_replacement_whose_answer_was_lost_is_recognised(embedded: SqliteBackend) -> None:
    async with embedded.open() as store:
        late = LateStore(store)
        shard_log = ShardLog(late, 0, "me")  # type: ignore[arg-type]
        await shard_log.take()
        late.lose = 1
        revision = await shard_log.replace(Put(b"head", b"1"), 0, Put(b"page/1", b""))
        (head,) = (await store.range(b"head")).kvs
        assert (head.mod_revision, head.version) == (revision, 1)


async def test_a_segment_that_was_refused_for_want_of_room_and_is_there_all_the_same_is_appended_once(
    embedded: SqliteBackend,
) -> None:
    async with embedded.open() as store:
        late = LateStore(store)
        shard_log = ShardLog(late, 0, "me")  # type: ignore[arg-type]
        await shard_log.take()
        late.lose, late.answer = 1, StoreFull("no space")
        with pytest.raises(StoreFull):
            await shard_log.append([b"record"])
        assert [await shard_log.append([b"record"]), await shard_log.append([b"next"])] == [1, 2]
        assert [list(segment.records) async for _, segment in segments(store, 0)] == [[b"record"], [b"next"]]


async def test_an_act_is_once_in_the_chain_although_another_replica_wrote_before_the_answer_came(
    embedded: SqliteBackend,
) -> None:
    async with embedded.open() as store:
        late = LateStore(store)
        mine, other = (AuditLog(of, name, lambda: 1) for of, name in ((late, "a"), (store, "b")))  # type: ignore[arg-type]
        for one in (mine, other):
            await one.load()

        async def between(txn: Txn) -> Any:
            """Ours is committed, its answer lost, and another replica writes before we send it again."""
            late.__dict__.pop("commit")
            await store.commit(txn)
            await other_writes()
            raise StoreUnavailable("the answer was lost")

        async def other_writes() -> None:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(other.run())
                await other.write(Fact("theirs", "n", "p", "r"))
                running.cancel()

        late.commit = between  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(mine.run())
            await mine.write(Fact("ours", "n", "p", "r"))
            running.cancel()
        found = await reading.head(store, audit_log.CALLS)
        assert found is not None and found[0].last_seq == 2
        assert await reading.broken_at(store, audit_log.CALLS, found[0]) is None


async def test_the_key_of_attempt_tokens_is_the_one_that_was_committed(embedded: SqliteBackend) -> None:
    async with embedded.open() as store:
        late = LateStore(store)
        late.lose = 1
        tokens = await AttemptTokens.load(late)  # type: ignore[arg-type]
        assert tokens.make("a") == (await AttemptTokens.load(store)).make("a")
