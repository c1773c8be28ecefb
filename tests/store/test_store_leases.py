"""Leases end keys; they never end with a live keep-alive, and never outlive the process that granted them."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.store import UP_TO_LAST, Delete, EventType, LeaseNotFound, Put, Store, Txn
from backends import Backend, SqliteBackend

from tests.harness.waiting import eventually

TTL = 5
"""Seconds, real ones in a cluster: what comes before a lease's end takes longer on a machine that has much to do."""


async def live(store: Store) -> list[bytes]:
    return [kv.key for kv in (await store.range(b"\0", UP_TO_LAST)).kvs]


async def are_live(store: Store, *keys: bytes) -> bool:
    return await live(store) == list(keys)


async def test_a_lease_ends_its_keys_and_watchers_are_told(backend: Backend) -> None:
    async with backend.open() as store:
        lease = await store.grant(TTL)
        await store.commit(Txn(ops=(Put(b"alive/1", b"", lease), Put(b"alive/2", b"", lease), Put(b"fact", b""))))
        watch = store.watch(b"alive/")
        assert await live(store) == [b"alive/1", b"alive/2", b"fact"]
        backend.let_pass(TTL)
        await eventually(lambda: are_live(store, b"fact"))
        batch = await anext(watch)
        assert [(event.type, event.kv.key) for event in batch.events] == [
            (EventType.DELETE, b"alive/1"),
            (EventType.DELETE, b"alive/2"),
        ]
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease)


async def test_a_lease_of_the_embedded_store_ends_at_its_time_and_not_before(embedded: SqliteBackend) -> None:
    async with embedded.open() as store:
        await store.commit(Txn(ops=(Put(b"alive/1", b"", await store.grant(10)),)))
        embedded.clock.seconds += 9.9
        assert await live(store) == [b"alive/1"]
        embedded.clock.seconds += 0.1
        assert await live(store) == []


async def test_keeping_a_lease_alive_starts_its_time_anew(backend: Backend) -> None:
    async with backend.open() as store:
        lease, other = await store.grant(TTL), await store.grant(TTL)
        await store.commit(Txn(ops=(Put(b"kept", b"", lease), Put(b"lost", b"", other))))

        async def only_one_is_left() -> bool:
            await store.keep_alive(lease)
            backend.let_pass(TTL / 4)
            return await are_live(store, b"kept")

        await eventually(only_one_is_left)
        await store.keep_alive(lease)


async def test_a_key_follows_the_lease_of_its_last_put(backend: Backend) -> None:
    async with backend.open() as store:
        first, second = await store.grant(TTL), await store.grant(100)
        await store.commit(Txn(ops=tuple(Put(key, b"", first) for key in (b"freed", b"moved", b"gone", b"same"))))
        await store.commit(Txn(ops=(Put(b"freed", b""), Put(b"moved", b"", second), Delete(b"gone"))))
        backend.let_pass(TTL)
        await eventually(lambda: are_live(store, b"freed", b"moved"))
        await store.revoke(second)
        assert await live(store) == [b"freed"]


async def test_a_put_under_a_lease_that_ended_changes_nothing(backend: Backend) -> None:
    async with backend.open() as store:
        ended = await store.grant(TTL)
        await store.revoke(ended)
        for lease in (ended, 12345):
            with pytest.raises(LeaseNotFound):
                await store.commit(Txn(ops=(Put(b"a", b""), Put(b"b", b"", lease))))
            with pytest.raises(LeaseNotFound):
                await store.revoke(lease)
        assert await live(store) == []


async def test_an_embedded_lease_whose_time_is_over_takes_no_put(embedded: SqliteBackend) -> None:
    async with embedded.open() as store:
        ended = await store.grant(TTL)
        embedded.clock.seconds += TTL
        with pytest.raises(LeaseNotFound):
            await store.commit(Txn(ops=(Put(b"a", b"", ended),)))
        assert await live(store) == []


async def test_a_lease_needs_a_positive_time(backend: Backend) -> None:
    async with backend.open() as store:
        with pytest.raises(ValueError):
            await store.grant(0)


async def test_leases_end_with_the_process_that_had_them(backend: Backend) -> None:
    async with backend.open() as store:
        lease = await store.grant(1000)
        revision = (await store.commit(Txn(ops=(Put(b"replica/1", b"", lease), Put(b"fact", b""))))).revision
    async with backend.open() as store:
        assert await live(store) == [b"fact"]
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease)
        (event,) = (await anext(store.watch(b"replica/", revision + 1))).events
        assert (event.type, event.kv.key) == (EventType.DELETE, b"replica/1")
