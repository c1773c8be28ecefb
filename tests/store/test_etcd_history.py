"""History is forgotten by marks: late enough for watches that were away, sooner the fuller the store is."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.store import Compacted, Delete, Put, Store, Txn
from antiphon_orchestrator.store.etcd.history import KEPT, LEAST_KEPT, History
from backends import Backend, ManualClock

PLENTY, SCARCE = 1 << 50, 1


async def put(store: Store, key: bytes) -> int:
    return (await store.commit(Txn(ops=(Put(key, b""),)))).revision


async def is_kept(store: Store, revision: int) -> bool:
    """Whether a watch can begin there; something has happened since."""
    watch = store.watch(b"k/", revision)
    try:
        await anext(watch)
    except Compacted:
        return False
    finally:
        await watch.aclose()
    return True


@pytest.mark.parametrize(("quota", "seconds"), [(PLENTY, KEPT[0][1]), (SCARCE, LEAST_KEPT)])
async def test_what_is_older_than_is_kept_is_forgotten_and_nothing_younger(
    backend: Backend, quota: int, seconds: float
) -> None:
    clock = ManualClock()
    async with backend.open() as store:
        history = History(store, quota, clock=clock)
        old = await put(store, b"k/1")
        await history.look()
        clock.seconds += seconds - 1
        young = await put(store, b"k/2")
        await history.look()
        await put(store, b"k/3")
        assert await is_kept(store, old)
        clock.seconds += 1
        await history.look()
        assert not await is_kept(store, old)
        assert await is_kept(store, young)


async def test_nothing_is_written_while_nobody_else_writes(backend: Backend) -> None:
    async with backend.open() as store:
        history = History(store, PLENTY, clock=ManualClock())
        await put(store, b"k/1")
        await history.look()
        before = (await store.range(b"k/1")).revision
        for _ in range(3):
            await history.look()
        assert (await store.range(b"k/1")).revision == before


async def test_replicas_follow_the_marks_of_each_other(backend: Backend) -> None:
    async with backend.open() as store:
        replicas = [History(store, PLENTY, clock=ManualClock()) for _ in range(3)]
        for n in range(4):
            await put(store, b"k/%d" % n)
            before = (await store.range(b"k/1")).revision
            for replica in replicas:
                await replica.look()
            assert (await store.range(b"k/1")).revision == before + 1


async def test_a_delete_at_the_revision_that_is_compacted_is_not_lost_for_whoever_resumes_there(
    backend: Backend,
) -> None:
    """Old members forget such a delete, so what is compacted is always a mark and never it."""
    clock = ManualClock()
    async with backend.open() as store:
        history = History(store, SCARCE, clock=clock)
        await put(store, b"k/1")
        deleted = (await store.commit(Txn(ops=(Delete(b"k/1"),)))).revision
        await history.look()
        await put(store, b"k/2")
        clock.seconds += LEAST_KEPT
        await history.look()
        with pytest.raises(Compacted):
            await anext(store.watch(b"k/", deleted))
