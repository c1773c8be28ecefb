"""The store of the simulation does what every real store does with the same operations, drawn by a seed.

tests/simulation rests on it: what it proves of replicas on a model holds for etcd as far as the model is etcd's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from antiphon_orchestrator.store import (
    UP_TO_LAST,
    Compacted,
    Compare,
    Delete,
    LeaseNotFound,
    Operator,
    Put,
    Store,
    Target,
    Txn,
    WatchEvent,
)
from backends import Backend

from tests.simulation.cluster.store import StoreModel

KEYS = [b"a", b"b/1", b"b/2", b"c", b"d/1", b"log/1", b"log/2"]
PREFIXES = [b"a", b"b/", b"c", b"d/"]
OPERATIONS = 120
UNWATCHED = (b"log/",)


class Both:
    """A store and the model, side by side. `leases` are those that were ever granted: many have ended."""

    def __init__(self, seed: int, store: Store, revision: int) -> None:
        self.rng = random.Random(seed)
        self.store = store
        self.model = StoreModel(revision, UNWATCHED)
        self.first = revision + 1
        self.leases: list[int] = []

    async def operate(self) -> None:
        await self.rng.choices(
            [self.commit, self.range, self.grant, self.keep_alive, self.revoke, self.compact, self.watch],
            [50, 15, 4, 6, 3, 3, 8],
        )[0]()

    async def same(self, real: Awaitable[Any], modelled: Callable[[], Any]) -> None:
        assert await outcome(real) == await outcome(call(modelled))

    async def commit(self) -> None:
        txn = self.txn()
        await self.same(self.store.commit(txn), lambda: self.model.commit(txn))

    def txn(self) -> Txn:
        rng = self.rng
        keys = rng.sample(KEYS, rng.randint(1, 3))
        ops: list[Put | Delete] = []
        for key in keys:
            lease = rng.choice(self.leases) if self.leases and rng.random() < 0.3 else 0
            ops.append(Put(key, b"%d" % rng.randrange(4), lease) if rng.random() < 0.7 else Delete(key))
        if rng.random() < 0.1:
            ops = [Delete(rng.choice(KEYS), rng.choice([b"c", b"e", UP_TO_LAST]))]
        return Txn(tuple(self.compare() for _ in range(rng.choice([0, 1, 2]))), tuple(ops), tuple(keys))

    def compare(self) -> Compare:
        rng, key = self.rng, self.rng.choice(KEYS)
        found = self.model.get(key)
        if rng.random() < 0.3:
            return Compare(key, Target.VALUE, found.value if found is not None and rng.random() < 0.7 else b"1")
        target = rng.choice([Target.CREATE_REVISION, Target.MOD_REVISION, Target.VERSION])
        value = getattr(found, target.value, 0) if rng.random() < 0.7 else rng.randrange(5)
        return Compare(key, target, value, rng.choice(list(Operator)))

    async def range(self) -> None:
        start, end = self.rng.choice(KEYS), self.rng.choice([b"", b"c", b"e", UP_TO_LAST])
        limit = self.rng.choice([0, 0, 1, 2])
        await self.same(self.store.range(start, end, limit=limit), lambda: self.model.range(start, end, limit))

    async def grant(self) -> None:
        lease = await self.store.grant(600)
        self.model.grant(lease, 600, 0.0)
        self.leases.append(lease)

    async def keep_alive(self) -> None:
        if self.leases:
            lease = self.rng.choice(self.leases)
            await self.same(self.store.keep_alive(lease), lambda: self.model.keep_alive(lease, 0.0))

    async def revoke(self) -> None:
        if self.leases:
            lease = self.rng.choice(self.leases)
            await self.same(self.store.revoke(lease), lambda: self.model.revoke(lease))

    async def compact(self) -> None:
        revision = self.rng.randint(self.first, max(self.first, self.model.revision))
        if revision <= self.model.revision:
            await self.same(self.store.compact(revision), lambda: self.model.compact(revision))

    async def watch(self) -> None:
        """From a revision that is there, or is not any more. What exactly a compaction spares is not promised."""
        prefix = self.rng.choice(PREFIXES)
        revision = self.rng.randint(self.first, self.model.revision + 1)
        if revision == self.model.compacted:
            return
        try:
            expected = self.model.since(prefix, revision)
        except Compacted:
            with pytest.raises(Compacted):
                await self._told(prefix, revision, 1)
            return
        assert await self._told(prefix, revision, len(expected)) == expected

    async def _told(self, prefix: bytes, revision: int, count: int) -> list[WatchEvent]:
        told: list[WatchEvent] = []
        watch = self.store.watch(prefix, revision, before=True)
        try:
            while len(told) < count:
                told += (await anext(watch)).events
        finally:
            await watch.aclose()
        return told


async def call(act: Callable[[], Any]) -> Any:
    return act()


async def outcome(work: Awaitable[Any]) -> Any:
    """What came of it; of a refusal its kind."""
    try:
        return await work
    except LeaseNotFound as refused:
        return type(refused)


@pytest.mark.parametrize("seed", range(5))
async def test_the_simulated_store_does_what_a_real_one_does(backend: Backend, seed: int) -> None:
    async with backend.open(unwatched=UNWATCHED) as store:
        both = Both(seed, store, backend.revision)
        async with asyncio.timeout(120):
            for _ in range(OPERATIONS):
                await both.operate()
            found = await store.range(b"\0", UP_TO_LAST)
        assert found == both.model.range(b"\0", UP_TO_LAST)


def test_a_lease_ends_its_keys_when_its_time_is_over_and_not_before() -> None:
    model = StoreModel()
    model.grant(7, 5, now=0.0)
    model.commit(Txn(ops=(Put(b"mark", b"", 7),)))
    model.keep_alive(7, now=4.0)
    model.expire(now=8.9)
    assert model.get(b"mark") is not None
    model.expire(now=9.0)
    assert model.get(b"mark") is None
    with pytest.raises(LeaseNotFound):
        model.keep_alive(7, now=9.0)
