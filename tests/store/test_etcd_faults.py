"""What clusters do to commits and watches when members stall, die and forget: nothing that the port does not say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from antiphon_orchestrator.cluster.membership import LEASE, RENEWAL
from antiphon_orchestrator.shards.log import settle
from antiphon_orchestrator.store import (
    Compacted,
    Compare,
    Delete,
    Put,
    Store,
    StoreUnavailable,
    Target,
    Txn,
    WatchBatch,
    WatchEvent,
    prefix_end,
)
from antiphon_orchestrator.store.etcd import EtcdStore

from tests.harness.etcd import Etcd, StartEtcd
from tests.harness.waiting import eventually

EVENTS = 8000


def create(key: bytes, value: bytes) -> Txn:
    """A put that can take effect once, as the segments of a log are appended."""
    return Txn((Compare(key, Target.CREATE_REVISION, 0),), (Put(key, value),), (key,))


async def is_there(store: Store, key: bytes) -> bool:
    return bool((await store.range(key)).kvs)


async def take(watch: AsyncIterator[WatchBatch], count: int) -> list[WatchEvent]:
    events: list[WatchEvent] = []
    async with asyncio.timeout(60):
        async for batch in watch:
            events += batch.events
            if len(events) >= count:
                break
    return events


@pytest.mark.proves("a commit whose answer was lost")
async def test_a_commit_that_lands_after_it_was_read_as_absent_has_exactly_one_effect(etcd_three: Etcd) -> None:
    """It waits at a follower for a leader that has stalled; its caller gives up; the others, who have elected another,
    say that there is no such key; then the old leader wakes up and hands it on to the new one."""
    for attempt in range(5):  # nearly every one lands late, and whichever does not must be right as well
        if await landed_late(etcd_three, create(b"late/%d" % attempt, b"nonce")):
            return
    raise AssertionError("no commit landed late")


async def landed_late(etcd: Etcd, txn: Txn) -> bool:
    key = txn.otherwise_get[0]
    leader = etcd.leader()
    follower, other = (n for n in range(3) if n != leader)
    async with EtcdStore(etcd.address(only=follower)) as store, EtcdStore(etcd.address(only=other)) as beside:
        before = (await store.commit(Txn(ops=(Put(b"count", b""),)))).revision
        etcd.stop(leader)
        try:
            try:
                assert (await store.commit(txn)).succeeded
                return False  # another leader was elected before it had been on its way to this one
            except StoreUnavailable:
                if await is_there(beside, key):
                    return False
        finally:
            etcd.cont(leader)
        late = True
        try:
            await eventually(lambda: is_there(beside, key), limit=5)
        except AssertionError:
            late = False
        result = await settle(store, txn)
        assert not (late and result.succeeded)
        if not result.succeeded:
            found = result.observed[key]
            assert found is not None and found.value == b"nonce"
        kvs = (await beside.range(key)).kvs
        assert [(kv.value, kv.version, kv.mod_revision) for kv in kvs] == [(b"nonce", 1, before + 1)]
        return late


async def test_eight_thousand_events_across_two_crashes_come_all_and_once(start_etcd: StartEtcd) -> None:
    etcd = start_etcd()
    async with EtcdStore(etcd.address()) as store:
        written: dict[bytes, int] = {}

        async def write(worker: int) -> None:
            for n in range(EVENTS // 40):
                key = b"event/%02d/%04d" % (worker, n)
                result = await settle(store, create(key, b"v"))
                found = None if result.succeeded else result.observed[key]
                written[key] = found.mod_revision if found is not None else result.revision

        async def crash() -> None:
            for share in (3, 2):
                await eventually(lambda share=share: len(written) * share > EVENTS)
                await asyncio.to_thread(etcd.restart, 0)

        watching = asyncio.ensure_future(take(store.watch(b"event/"), EVENTS))
        await asyncio.gather(*(write(worker) for worker in range(40)), crash())
        events = await watching
    assert {event.kv.key: event.kv.mod_revision for event in events} == written
    assert len(events) == EVENTS
    assert all(first.kv.mod_revision < second.kv.mod_revision for first, second in pairwise(events))


async def test_a_watch_that_is_still_catching_up_when_its_member_crashes_misses_nothing(start_etcd: StartEtcd) -> None:
    """etcd tells a thousand revisions at a time then, under the header of a store that is far ahead of them."""
    etcd, count = start_etcd(), 4000
    async with EtcdStore(etcd.address()) as store:
        keys = [b"k/%04d" % n for n in range(count)]
        for n in range(0, count, 200):
            await asyncio.gather(*(store.commit(create(key, b"v" * 500)) for key in keys[n : n + 200]))
        watch = store.watch(b"k/", 1)
        first = await anext(watch)
        assert len(first.events) < count
        await asyncio.to_thread(etcd.restart, 0)
        rest = await take(watch, count - len(first.events))
        assert sorted(event.kv.key for event in [*first.events, *rest]) == keys


async def test_a_watch_and_its_writer_go_on_at_other_members_when_theirs_dies(etcd_three: Etcd) -> None:
    async with EtcdStore(etcd_three.address("failover")) as store:
        watch = store.watch(b"k/")
        waiting = asyncio.ensure_future(take(watch, 30))
        for n in range(30):
            if n % 10 == 5:
                dead = n // 10
                etcd_three.kill(dead)
            await settle(store, create(b"k/%02d" % n, b"v"))
            if n % 10 == 9:
                await asyncio.to_thread(etcd_three.restart, dead)
        assert [event.kv.key for event in await waiting] == [b"k/%02d" % n for n in range(30)]


async def test_a_watch_that_was_away_while_its_history_was_forgotten_is_told_so(etcd_three: Etcd) -> None:
    member = (etcd_three.leader() + 1) % 3
    others = [n for n in range(3) if n != member]
    async with (
        EtcdStore(etcd_three.address("forgotten", only=member)) as store,
        EtcdStore(etcd_three.address("forgotten", only=others[0])) as beside,
    ):
        watch = store.watch(b"k/")
        first = await beside.commit(create(b"k/1", b"v"))
        assert (await anext(watch)).revision == first.revision
        etcd_three.kill(member)
        waiting = asyncio.ensure_future(anext(watch))
        for n in range(2, 5):
            last = await beside.commit(create(b"k/%d" % n, b"v"))
        await beside.compact(last.revision)
        await asyncio.to_thread(etcd_three.restart, member)
        with pytest.raises(Compacted) as refused:
            await waiting
        assert refused.value.revision == last.revision
        found = await store.range(b"k/", prefix_end(b"k/"))
        again = store.watch(b"k/", found.revision + 1)
        after = await beside.commit(Txn(ops=(Delete(b"k/2"),)))
        assert (await anext(again)).revision == after.revision


async def test_a_lease_lives_on_while_members_die(etcd_three: Etcd) -> None:
    async with EtcdStore(etcd_three.address("lease")) as store:
        lease = await store.grant(10)
        await store.commit(Txn(ops=(Put(b"replica/1", b"", lease),)))
        for n in range(3):
            etcd_three.kill(n)
            await store.keep_alive(lease)
            await asyncio.to_thread(etcd_three.restart, n)
        assert await is_there(store, b"replica/1")


async def test_a_lease_is_renewed_in_time_while_the_member_that_is_asked_first_stalls(etcd_three: Etcd) -> None:
    leader = etcd_three.leader()
    first = (leader + 1) % 3
    address = etcd_three.address("renewed")
    order = [first, leader, (leader + 2) % 3]
    async with EtcdStore(replace(address, endpoints=tuple(address.endpoints[n] for n in order))) as store:
        lease = await store.grant(10)
        etcd_three.stop(first)
        try:
            assert await renewed(store, lease)
        finally:
            etcd_three.cont(first)


async def renewed(store: Store, lease: int) -> bool:
    """As a replica renews its lease, as often as it can before that ends: a try, and as long until the next."""
    for _ in range(int(LEASE / (2 * RENEWAL))):
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEWAL):
                await store.keep_alive(lease)
            return True
    return False


async def test_a_watch_leaves_a_member_that_stalls(etcd_three: Etcd) -> None:
    async with EtcdStore(etcd_three.address("stalled")) as store:
        watch = store.watch(b"k/")
        await store.commit(create(b"k/1", b""))
        await anext(watch)
        etcd_three.stop(0)  # the first endpoint, which all begin with
        try:
            written = await settle(store, create(b"k/2", b""))
            async with asyncio.timeout(30):  # without pings it would wait for as long as the member does
                assert (await anext(watch)).revision == written.revision
        finally:
            etcd_three.cont(0)


async def test_commits_watches_and_leases_share_no_connection(start_etcd: StartEtcd) -> None:
    etcd = start_etcd()
    async with EtcdStore(etcd.address()) as store:
        waiting = asyncio.ensure_future(anext(store.watch(b"k")))
        await store.keep_alive(await store.grant(10))
        await store.commit(Txn(ops=(Put(b"k", b""),)))
        await waiting
        assert connections(etcd) == 3


def connections(etcd: Etcd) -> int:
    """Established ones to the first member, by their client's end."""
    port = f":{int(etcd.endpoints[0].rpartition(':')[2]):04X}"
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return sum(row[2].endswith(port) and row[3] == "01" for row in rows)


async def test_a_range_is_of_one_moment_however_large_its_values_are(etcd_current: Etcd) -> None:
    """All of it is more than one answer may have; meanwhile somebody changes it."""
    count, size = 80, 1_200_000
    async with EtcdStore(etcd_current.address("large")) as store:
        for n in range(count):
            await store.commit(Txn(ops=(Put(b"k/%02d" % n, b"a" * size),)))
        reading = asyncio.ensure_future(store.range(b"k/", prefix_end(b"k/")))
        await store.commit(Txn(ops=(Put(b"k/%02d" % (count - 1), b"b"), Delete(b"k/00"))))
        found = await reading
        lengths = [len(kv.value) for kv in found.kvs]
        assert lengths in ([size] * count, [size] * (count - 2) + [1])
        assert not found.more
        assert len((await store.range(b"k/", prefix_end(b"k/"), limit=70)).kvs) == 70
        await store.commit(Txn(ops=(Delete(b"k/", prefix_end(b"k/")),)))
