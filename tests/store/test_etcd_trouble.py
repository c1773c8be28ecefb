"""A cluster that cannot be used says why in one line with what to do; one that is full makes room by itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import structlog
from antiphon_orchestrator.shards.log import settle
from antiphon_orchestrator.store import (
    UP_TO_LAST,
    Compare,
    Delete,
    EventType,
    Put,
    Store,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    Target,
    Txn,
    keys,
    prefix_end,
)
from antiphon_orchestrator.store.etcd import EtcdAddress, EtcdStore, TlsFiles
from antiphon_orchestrator.store.etcd.health import Member, keeps_deletes, require_usable
from antiphon_orchestrator.store.etcd.wire import meaning
from structlog.testing import LogCapture

from tests.harness import eventually
from tests.harness.etcd import Etcd, StartEtcd
from tests.harness.etcd_tls import Pki
from tests.harness.etcd_users import grant_again, require_users

QUOTA = 8 << 20


@pytest.fixture
def foreign(tmp_path: Path) -> TlsFiles:
    """Files of another authority."""
    return Pki(tmp_path / "foreign", "127.0.0.1").client("antiphon")


async def refusal(address: EtcdAddress) -> str:
    """What opening the store says; always one line."""
    with pytest.raises(StoreError) as refused:
        async with EtcdStore(address):
            pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_where_nobody_listens_it_says_so() -> None:
    assert "127.0.0.1:1 cannot be reached (connection refused): start etcd" in await refusal(
        EtcdAddress(("127.0.0.1:1",), b"p/")
    )


async def test_a_name_that_is_not_known_is_named() -> None:
    assert "nowhere.invalid:2379 cannot be reached" in await refusal(EtcdAddress(("nowhere.invalid:2379",), b"p/"))


async def test_plain_text_to_a_tls_port_is_told_to_give_the_authority(etcd_current: Etcd) -> None:
    assert "speaks TLS: give store_ca" in await refusal(replace(etcd_current.address(), tls=None))


async def test_tls_to_a_plain_port_is_told_to_leave_it_out(etcd_debian: Etcd, foreign: TlsFiles) -> None:
    assert "does not speak TLS: leave store_ca out" in await refusal(replace(etcd_debian.address(), tls=foreign))


async def test_a_server_of_another_authority_is_not_believed(etcd_current: Etcd, foreign: TlsFiles) -> None:
    address = etcd_current.address()
    assert address.tls is not None
    assert "store_ca does not vouch for" in await refusal(replace(address, tls=replace(address.tls, ca=foreign.ca)))


async def test_a_missing_client_certificate_is_asked_for(etcd_current: Etcd) -> None:
    address = etcd_current.address()
    assert address.tls is not None
    only_ca = TlsFiles(address.tls.ca)
    assert "demands a client certificate: give store_cert" in await refusal(replace(address, tls=only_ca))


async def test_a_client_certificate_of_another_authority_is_not_accepted(etcd_current: Etcd, foreign: TlsFiles) -> None:
    address = etcd_current.address()
    assert address.tls is not None
    files = TlsFiles(address.tls.ca, foreign.certificate, foreign.private_key)
    assert "does not accept the certificate in store_cert" in await refusal(replace(address, tls=files))


async def test_a_file_that_cannot_be_read_is_named(etcd_current: Etcd, tmp_path: Path) -> None:
    missing = TlsFiles(tmp_path / "missing.pem")
    assert "missing.pem" in await refusal(replace(etcd_current.address(), tls=missing))


@pytest.mark.parametrize("empty", ["ca", "certificate", "private_key"])
async def test_a_file_that_is_empty_is_named(tmp_path: Path, foreign: TlsFiles, empty: str) -> None:
    (tmp_path / "empty.pem").touch()
    address = EtcdAddress(("127.0.0.1:1",), b"p/", replace(foreign, **{empty: tmp_path / "empty.pem"}))
    assert "empty.pem for the store's TLS holds no PEM" in await refusal(address)


async def test_a_member_that_hangs_is_told_from_one_that_is_gone(start_etcd: StartEtcd) -> None:
    etcd = start_etcd(tls=False)
    etcd.stop(0)
    try:
        assert "does not answer: its process hangs" in await refusal(etcd.address())
    finally:
        etcd.cont(0)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.3.27", "it needs 3.4 or newer"),
        ("2.3.8", "it needs 3.4 or newer"),
        ("3.5.0", "lose committed data"),
        ("3.5.2", "lose committed data"),
    ],
)
def test_releases_that_lack_what_is_needed_or_lose_data_are_refused(version: str, reason: str) -> None:
    with pytest.raises(StoreRefused, match=reason):
        require_usable([Member("a:1", "3.6.1"), Member("b:1", version)])


@pytest.mark.parametrize("version", ["3.4.0", "3.4.23", "3.5.3", "3.5.30", "3.6.0", "3.7.3", "3.10.0", "4.0.0-rc.1"])
def test_other_releases_are_taken(version: str) -> None:
    assert require_usable([Member("a:1", version, quota=7), Member("b:1", trouble="away")]) == 7


def test_without_any_member_all_reasons_are_told() -> None:
    with pytest.raises(StoreUnavailable, match="a:1 is off; b:1 is away"):
        require_usable([Member("a:1", trouble="is off"), Member("b:1", trouble="is away")])


@pytest.mark.parametrize("version", ["debian", "current"])
async def test_a_user_of_the_prefix_can_do_all_there_and_nothing_beside_it(start_etcd: StartEtcd, version: str) -> None:
    etcd = start_etcd(version=version)
    require_users(etcd, "antiphon", b"ours/")
    async with EtcdStore(etcd.address("ours")) as store:
        lease = await store.grant(10)
        put = await store.commit(Txn(ops=(Put(b"k", b"v", lease),)))
        assert (await anext(store.watch(b"k", put.revision))).revision == put.revision
        assert len((await store.range(b"\0", UP_TO_LAST)).kvs) == 1
        await store.keep_alive(lease)
        assert await store.size() > 0
        if version == "current":  # releases of today leave compaction to root
            with pytest.raises(StoreRefused, match="--auto-compaction-mode"):
                await store.compact(put.revision)
    assert "demands a user that may do this" in await refusal(etcd.address("theirs"))
    stranger = replace(etcd.address("ours"), tls=etcd.files("stranger"))
    assert "whose common name is an etcd user" in await refusal(stranger)
    async with EtcdStore(replace(etcd.address("ours"), tls=etcd.files("root"))) as store:
        await store.compact(put.revision)


@pytest.mark.parametrize("version", ["debian", "current"])
async def test_a_change_of_users_is_no_refusal_of_what_is_under_way(start_etcd: StartEtcd, version: str) -> None:
    etcd = start_etcd(version=version)
    require_users(etcd, "antiphon", b"ours/")
    async with EtcdStore(etcd.address("ours")) as store:
        changed = asyncio.Event()

        async def write(key: bytes) -> None:
            while not changed.is_set():
                await settle(store, Txn(ops=(Put(key, b""),)))
                await store.range(key)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(write(b"k/%d" % number))
            for _ in range(40):
                await asyncio.to_thread(grant_again, etcd, "antiphon", b"ours/")
            changed.set()


@pytest.mark.parametrize("said", ["etcdserver: revision of auth store is old", "etcdserver: invalid auth token"])
def test_what_etcd_says_when_its_users_changed_is_sent_again(said: str) -> None:
    for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED):
        assert isinstance(meaning(code, said, "a:1"), StoreUnavailable)


def append(seq: int) -> Txn:
    key = b"log/%04d" % seq
    return Txn((Compare(key, Target.VERSION, 0),), (Put(key, b"x" * 200_000),))


TRIM = Txn((Compare(b"owner", Target.VERSION, 0),), (Delete(b"log/", b"log/9"),))


async def fill(store: Store) -> int:
    """Appends until the quota is reached; returns the first `seq` that did not fit."""
    for seq in range(1000):
        try:
            await store.commit(append(seq))
        except StoreFull:
            return seq
    raise AssertionError("it never filled")


@pytest.mark.parametrize("version", ["debian", "current"])
async def test_a_full_cluster_takes_trims_and_then_makes_room_by_itself(start_etcd: StartEtcd, version: str) -> None:
    etcd = start_etcd(version=version, quota=QUOTA)
    async with EtcdStore(etcd.address()) as store:
        # The one release does not tell its quota, and is taken to have etcd's default.
        assert store.max_bytes == {"debian": 2 << 30, "current": QUOTA}[version]
        seq = await fill(store)
        with pytest.raises(StoreFull, match="has reached its quota"):
            await store.commit(append(seq))
        assert (await store.commit(TRIM)).succeeded
        with pytest.raises(StoreFull):
            await store.commit(append(seq))
        assert any("NOSPACE" in member.trouble for member in await store.members())
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(store.run())
            await settle(store, append(seq))
            keeping.cancel()
        assert [kv.key for kv in (await store.range(b"log/", prefix_end(b"log/"))).kvs] == [b"log/%04d" % seq]
        assert not any(member.trouble for member in await store.members())


async def test_a_lease_that_is_refused_has_room_made_even_where_nothing_was_marked_or_trimmed(
    start_etcd: StartEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antiphon_orchestrator.store.etcd.store.PERIOD", 1000.0)  # else it finds out by itself
    etcd = start_etcd(quota=QUOTA)
    async with EtcdStore(etcd.address("others")) as others:
        with pytest.raises(StoreFull):
            for number in range(1000):
                await others.commit(Txn(ops=(Put(b"k", b"%d" % number * 100_000),)))
    async with EtcdStore(etcd.address()) as store, asyncio.TaskGroup() as group:
        with pytest.raises(StoreFull):
            await store.grant(10)
        keeping = group.create_task(store.run())

        async def granted() -> bool:
            try:
                return await store.grant(10) > 0
            except StoreFull:
                return False

        await eventually(granted)
        keeping.cancel()


@pytest.mark.parametrize(
    ("version", "keeps"),
    [("3.4.33", False), ("3.4.34", True), ("3.5.14", False), ("3.5.15", True), ("3.6.0", True), ("", False)],
)
def test_which_releases_keep_a_delete_at_the_revision_that_is_compacted(version: str, keeps: bool) -> None:
    assert keeps_deletes(version) is keeps


@pytest.mark.parametrize("version", ["debian", "current"])
async def test_while_there_is_no_room_no_deletion_that_is_watched_is_what_history_is_forgotten_before(
    start_etcd: StartEtcd, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antiphon_orchestrator.store.etcd.store.PERIOD", 0.1)
    monkeypatch.setattr("antiphon_orchestrator.store.etcd.store._LONGEST_WAIT", 0.1)
    said = LogCapture()
    monkeypatch.setattr("antiphon_orchestrator.store.etcd.room.log", structlog.wrap_logger(None, processors=[said]))
    etcd = start_etcd(version=version, quota=QUOTA)
    async with EtcdStore(etcd.address()) as store:

        async def no_room_for_good() -> bool:
            """Whether there was none twice in a row. The first time may find some, and it is taken up."""
            nonlocal seq, rounds
            with suppress(StoreFull):
                while True:  # a database file grows by doubling: room for some
                    await store.commit(append(seq))  # if it does not succeed, it is there although it was refused
                    seq, rounds = seq + 1, len(said.entries)
            return len(said.entries) >= rounds + 2

        await store.commit(Txn(ops=(Put(keys.STORE_MARK, b""), Put(b"watched", b""))))
        seq, rounds = await fill(store), 0
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(store.run())
            await eventually(no_room_for_good)  # the mark is gone, and still there is none
            deleted = (await store.commit(Txn(ops=(Delete(b"watched"),)))).revision
            rounds = len(said.entries)
            await eventually(lambda: len(said.entries) >= rounds + 2)
            batch = await anext(store.watch(b"watched", deleted - 1))
            assert [event.type for event in batch.events] == [EventType.DELETE]
            assert (await store.commit(TRIM)).succeeded
            await settle(store, append(seq))
            keeping.cancel()
