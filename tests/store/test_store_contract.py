"""What every store backend does alike: revisions, compares, ranges, limits."""

from __future__ import annotations

import asyncio

import pytest
from antiphon_orchestrator.store import (
    MAX_OPERATIONS,
    MAX_TXN_BYTES,
    UP_TO_LAST,
    Compare,
    Delete,
    InvalidTxn,
    KeyValue,
    Operator,
    Put,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)
from backends import Backend

from tests.harness.waiting import eventually


async def test_a_put_makes_a_revision_and_keeps_count_of_versions(backend: Backend) -> None:
    async with backend.open() as store:
        first = await store.commit(Txn(ops=(Put(b"a", b"1"), Put(b"b", b"1"))))
        second = await store.commit(Txn(ops=(Put(b"a", b"2"),)))
        assert second.revision == first.revision + 1
        found = await store.range(b"a", prefix_end(b""))
        assert found.revision == second.revision
        assert found.kvs == (
            KeyValue(b"a", b"2", first.revision, second.revision, 2),
            KeyValue(b"b", b"1", first.revision, first.revision, 1),
        )


@pytest.mark.parametrize(
    ("target", "op", "value", "present", "absent"),
    [
        (Target.VERSION, Operator.EQUAL, 0, False, True),
        (Target.VERSION, Operator.EQUAL, 2, True, False),
        (Target.VERSION, Operator.GREATER, 0, True, False),
        (Target.VERSION, Operator.LESS, 1, False, True),
        (Target.CREATE_REVISION, Operator.EQUAL, 0, False, True),
        (Target.CREATE_REVISION, Operator.NOT_EQUAL, 0, True, False),
        (Target.MOD_REVISION, Operator.LESS, 1 << 40, True, True),
        (Target.VALUE, Operator.EQUAL, b"m", True, False),
        (Target.VALUE, Operator.EQUAL, b"", False, False),
        (Target.VALUE, Operator.NOT_EQUAL, b"x", True, False),
        (Target.VALUE, Operator.GREATER, b"a", True, False),
        (Target.VALUE, Operator.LESS, b"a", False, False),
    ],
)
async def test_a_compare_holds_as_in_etcd(
    backend: Backend, target: Target, op: Operator, value: int | bytes, present: bool, absent: bool
) -> None:
    async with backend.open() as store:
        await store.commit(Txn(ops=(Put(b"here", b"l"),)))
        await store.commit(Txn(ops=(Put(b"here", b"m"),)))
        assert (await store.commit(Txn((Compare(b"here", target, value, op),)))).succeeded is present
        assert (await store.commit(Txn((Compare(b"gone", target, value, op),)))).succeeded is absent


@pytest.mark.parametrize("size", [10, 100_000])
async def test_one_failed_compare_changes_nothing_and_shows_what_was_asked_for(backend: Backend, size: int) -> None:
    async with backend.open() as store:
        before = await store.commit(Txn(ops=(Put(b"owner", b"me"), Put(b"log", b"n" * size))))
        txn = Txn(
            (Compare(b"owner", Target.VALUE, b"me"), Compare(b"log", Target.VERSION, 0)),
            (Put(b"log", b"other"), Delete(b"owner")),
            otherwise_get=(b"log", b"nothing"),
        )
        result = await store.commit(txn)
        log = KeyValue(b"log", b"n" * size, before.revision, before.revision, 1)
        assert not result.succeeded
        assert result.observed == {b"log": log, b"nothing": None}
        assert result.revision == before.revision
        assert len((await store.range(b"a", UP_TO_LAST)).kvs) == 2


async def test_compares_see_large_values(backend: Backend) -> None:
    async with backend.open() as store:
        await store.commit(Txn(ops=(Put(b"k", b"v" * 5000),)))
        assert (await store.commit(Txn((Compare(b"k", Target.VALUE, b"v" * 5000),)))).succeeded
        assert not (await store.commit(Txn((Compare(b"k", Target.VALUE, b"v" * 4999),)))).succeeded


async def test_the_same_append_twice_succeeds_once_even_when_sent_together(backend: Backend) -> None:
    async with backend.open() as store:
        append = Txn((Compare(b"log/1", Target.VERSION, 0),), (Put(b"log/1", b"nonce"),), otherwise_get=(b"log/1",))
        results = await asyncio.gather(store.commit(append), store.commit(append))
        second, first = sorted(results, key=lambda result: result.succeeded)
        assert first.succeeded
        assert not second.succeeded
        observed = second.observed[b"log/1"]
        assert observed is not None and observed.value == b"nonce"


async def test_what_appends_to_a_shared_store_is_to_wait_for_the_append_under_way(backend: Backend) -> None:
    async with backend.open() as store:
        assert store.under_way() is None
        append = asyncio.create_task(store.commit(Txn(ops=(Put(b"log/1", b"nonce"),))))
        for _ in range(3):  # no answer comes in so few passes of the loop
            await asyncio.sleep(0)
        waits = store.under_way()
        assert (waits is not None) is store.shared
        if waits is not None:
            async with asyncio.timeout(10):
                await waits
        assert (await append).succeeded
        assert store.under_way() is None


async def test_only_a_change_makes_a_revision(backend: Backend) -> None:
    async with backend.open() as store:
        before = (await store.commit(Txn(ops=(Put(b"k", b""),)))).revision
        for idle in (Delete(b"x"), Delete(b"l", b"z"), Delete(b"log/1", b"log/2"), Delete(b"z", b"a")):
            assert (await store.commit(Txn(ops=(idle,)))).revision == before
        assert (await store.commit(Txn())).revision == before
        assert (await store.commit(Txn(ops=(Delete(b"k"),)))).revision == before + 1


async def test_a_key_that_comes_back_starts_at_version_one(backend: Backend) -> None:
    async with backend.open() as store:
        await store.commit(Txn(ops=(Put(b"k", b"1"),)))
        await store.commit(Txn(ops=(Delete(b"k"),)))
        last = await store.commit(Txn(ops=(Put(b"k", b"2"),)))
        assert (await store.range(b"k")).kvs == (KeyValue(b"k", b"2", last.revision, last.revision, 1),)


@pytest.mark.parametrize("prefix", [b"log/", b"agent/"])
async def test_a_range_delete_takes_exactly_its_keys(backend: Backend, prefix: bytes) -> None:
    async with backend.open() as store:
        keys = [prefix + name for name in (b"a", b"b", b"b/x", b"c", b"\xff")]
        await store.commit(Txn(ops=tuple(Put(key, b"v" * 2000) for key in keys)))
        await store.commit(Txn(ops=(Delete(prefix + b"b", prefix + b"c"),)))
        left = await store.range(prefix, prefix_end(prefix))
        assert [kv.key for kv in left.kvs] == [prefix + name for name in (b"a", b"c", b"\xff")]
        for key in keys:
            absent = await store.commit(Txn((Compare(key, Target.VERSION, 0),)))
            assert absent.succeeded is (key in (prefix + b"b", prefix + b"b/x"))


async def test_a_journal_key_that_a_wide_delete_took_is_forgotten_like_any_other(backend: Backend) -> None:
    async with backend.open() as store:
        absent = Txn((Compare(b"log/1", Target.VERSION, 0),))
        await store.commit(Txn(ops=(Put(b"log/1", b""), Put(b"a", b""))))
        await store.commit(Txn(ops=(Delete(b"a", UP_TO_LAST),)))
        assert (await store.commit(absent)).succeeded
        await store.commit(Txn(ops=(Put(b"log/1", b""),)))
        assert not (await store.commit(absent)).succeeded
        await store.commit(Txn(ops=(Delete(b"log/1", b"log/2"),)))
        assert (await store.commit(absent)).succeeded


async def test_a_limited_range_says_that_there_is_more(backend: Backend) -> None:
    async with backend.open() as store:
        await store.commit(Txn(ops=tuple(Put(b"k%d" % i, b"") for i in range(5))))
        found, start = [], b"k"
        while True:
            page = await store.range(start, prefix_end(b"k"), limit=2)
            found += [kv.key for kv in page.kvs]
            if not page.more:
                break
            start = page.kvs[-1].key + b"\0"
        assert found == [b"k%d" % i for i in range(5)]
        assert not (await store.range(b"k", prefix_end(b"k"), limit=5)).more


@pytest.mark.parametrize(
    "txn",
    [
        Txn(ops=tuple(Put(b"%d" % i, b"") for i in range(MAX_OPERATIONS + 1))),
        Txn(tuple(Compare(b"%d" % i, Target.VERSION, 0) for i in range(MAX_OPERATIONS + 1))),
        Txn(otherwise_get=tuple(b"%d" % i for i in range(MAX_OPERATIONS + 1))),
        Txn(ops=(Put(b"k", b"x" * MAX_TXN_BYTES),)),
        Txn((Compare(b"k", Target.VALUE, b"x" * MAX_TXN_BYTES),)),
        Txn(ops=(Put(b"k", b""), Put(b"k", b""))),
        Txn(ops=(Delete(b"k"), Put(b"k", b""))),
        Txn(ops=(Put(b"k", b""), Delete(b"a", b"z"))),
        Txn(ops=(Put(b"k", b""), Delete(b"a", UP_TO_LAST))),
        Txn(ops=(Put(b"", b""),)),
        Txn(ops=(Delete(b"", b"z"),)),
        Txn((Compare(b"", Target.VERSION, 0),)),
        Txn(otherwise_get=(b"",)),
        Txn((Compare(b"k", Target.VERSION, b"1"),)),
        Txn((Compare(b"k", Target.VALUE, 1),)),
    ],
)
async def test_what_etcd_refuses_is_refused(backend: Backend, txn: Txn) -> None:
    async with backend.open() as store:
        with pytest.raises(InvalidTxn):
            await store.commit(txn)
        assert not (await store.range(b"\0", UP_TO_LAST)).kvs


async def test_the_largest_transaction_is_accepted(backend: Backend) -> None:
    async with backend.open() as store:
        ops = tuple(Put(b"%d" % i, b"x" * 12_000) for i in range(MAX_OPERATIONS))
        compares = tuple(Compare(b"%d" % i, Target.VERSION, 0) for i in range(MAX_OPERATIONS))
        assert (await store.commit(Txn(compares, ops))).succeeded


async def test_what_is_acknowledged_is_there_after_opening_again(backend: Backend) -> None:
    async with backend.open() as store:
        revision = (await store.commit(Txn(ops=(Put(b"k", b"v"),)))).revision
        revision = (await store.commit(Txn(ops=(Put(b"log/1", b"v"),)))).revision
        revision = (await store.commit(Txn(ops=(Delete(b"log/1"),)))).revision
    async with backend.open() as store:
        found = await store.range(b"\0", UP_TO_LAST)
        assert [kv.key for kv in found.kvs] == [b"k"]
        assert found.revision == revision


async def test_more_callers_than_the_queue_holds_all_get_their_turn(backend: Backend) -> None:
    async with backend.open(queue_limit=2) as store:
        results = await asyncio.gather(*(store.commit(Txn(ops=(Put(b"%d" % i, b""),))) for i in range(50)))
        assert len({result.revision for result in results}) == 50


async def test_a_cancelled_caller_frees_its_place_in_the_queue(backend: Backend) -> None:
    async with backend.open(queue_limit=1) as store:
        for i in range(5):
            waiting = asyncio.ensure_future(store.commit(Txn(ops=(Put(b"%d" % i, b""),))))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (await store.commit(Txn(ops=(Put(b"last", b""),)))).succeeded


async def test_a_closed_store_refuses(backend: Backend) -> None:
    async with backend.open() as store:
        await store.commit(Txn())
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.commit(Txn())
    with pytest.raises(StoreUnavailable):
        await store.range(b"k")


async def test_size_grows_and_shrinks_with_what_is_kept(backend: Backend) -> None:
    """Growth is measured from the least size seen: an etcd is shared, and frees what other tests left when it likes."""
    sizes: list[int] = []
    written = 0

    async def larger() -> bool:
        nonlocal written
        sizes.append(await store.size())
        if sizes[-1] > min(sizes) + 1_000_000:
            return True
        await store.commit(Txn(ops=tuple(Put(b"log/%d" % (written + i), b"x" * 10_000) for i in range(100))))
        written += 100
        return False

    async def smaller() -> bool:
        await store.commit(Txn(ops=(Put(b"next", b""),)))  # etcd frees pages with the write after that which left them
        return await store.size() < sizes[-1] - 800_000

    async with backend.open() as store:
        await eventually(larger)
        trimmed = await store.commit(Txn(ops=(Delete(b"log/", prefix_end(b"log/")),)))
        await store.compact(trimmed.revision)
        await eventually(smaller)
