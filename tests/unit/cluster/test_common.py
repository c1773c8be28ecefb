"""What replicas have in common: one archive and one place of payloads, also when it is away at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from antiphon.store.v1 import records_pb2 as records
from antiphon_certs import Authority, Credential, Kind, prepare_root
from antiphon_orchestrator.archive import ArchiveUnavailable
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.cluster import common as module
from antiphon_orchestrator.cluster.common import Common, NotInCommon, check
from antiphon_orchestrator.store import Put, SqliteStore, Txn, keys

from tests.harness import eventually
from tests.harness.authority import Ca


class Place(SqliteArchive):
    """An archive that may be away."""

    away = False

    async def identity(self) -> str:
        if self.away:
            raise ArchiveUnavailable("away")
        return await super().identity()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
async def archives(tmp_path: Path) -> AsyncIterator[list[Place]]:
    async with Place(f"sqlite:///{tmp_path}/a.db") as one, Place(f"sqlite:///{tmp_path}/b.db") as other:
        yield [one, other]


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[list[ObjectBlobs]]:
    async with ObjectBlobs((tmp_path / "a").as_uri()) as one, ObjectBlobs((tmp_path / "b").as_uri()) as other:
        yield [one, other]


@pytest.fixture
def credential(tmp_path: Path) -> Credential:
    return Credential.from_pem(*Ca(tmp_path / "ca").issue(Kind.ORCHESTRATOR, "one"))


async def kept(store: SqliteStore) -> records.CommonRecord:
    (found,) = (await store.range(keys.common())).kvs
    return records.CommonRecord.FromString(found.value)


@asynccontextmanager
async def running(common: Common) -> AsyncIterator[None]:
    task = asyncio.create_task(common.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_replicas_with_the_same_places_add_them_once(
    store: SqliteStore, archives: list[Place], places: list[ObjectBlobs], credential: Credential
) -> None:
    for _ in range(2):
        await Common(store, "authority", lambda: credential, archives[0], places[0]).begin()
        found = await kept(store)
        assert found.archive_id == await archives[0].identity()
        assert found.payloads_id == await places[0].identity(make=False)
        assert found.trust_domain == credential.identity.trust_domain and len(found.roots) == 1


async def test_a_record_without_places_is_given_them(
    store: SqliteStore, archives: list[Place], places: list[ObjectBlobs], credential: Credential
) -> None:
    older = records.CommonRecord(trust_domain=credential.identity.trust_domain)
    await store.commit(Txn((), (Put(keys.common(), older.SerializeToString()),)))
    await Common(store, "authority", lambda: credential, archives[0], places[0]).begin()
    assert (await kept(store)).archive_id and (await kept(store)).payloads_id


@pytest.mark.parametrize(("setting", "archive", "place"), [("archive", 1, 0), ("payloads", 0, 1)])
async def test_another_place_is_refused_and_check_says_so_and_makes_no_id(
    store: SqliteStore,
    archives: list[Place],
    places: list[ObjectBlobs],
    credential: Credential,
    setting: str,
    archive: int,
    place: int,
) -> None:
    await Common(store, "authority", lambda: credential, archives[0], places[0]).begin()
    before = await kept(store)
    trusted = (credential.identity.trust_domain, credential.bundle_pem)
    await check(store, "authority", *trusted, archives[0], places[0])
    with pytest.raises(NotInCommon, match=f"^{setting}: the replicas on this store use another one .*: give all"):
        await check(store, "authority", *trusted, archives[archive], places[place])
    assert await places[1].identity(make=False) == ""
    with pytest.raises(NotInCommon, match=f"^{setting}: .* docs/cluster.md"):
        await Common(store, "authority", lambda: credential, archives[archive], places[place]).begin()
    assert await kept(store) == before


async def test_a_new_store_has_nothing_against_any_place(
    store: SqliteStore, archives: list[Place], places: list[ObjectBlobs], credential: Credential
) -> None:
    trusted = (credential.identity.trust_domain, credential.bundle_pem)
    await check(store, "authority", *trusted, archives[1], places[1])
    assert not (await store.range(keys.common())).kvs


async def test_what_was_away_at_the_start_is_compared_once_it_answers(
    store: SqliteStore,
    archives: list[Place],
    places: list[ObjectBlobs],
    credential: Credential,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.01)
    for archive in archives:
        archive.away = True
    first, second = (Common(store, "authority", lambda: credential, archive, places[0]) for archive in archives)
    await first.begin()
    await second.begin()
    assert not (await kept(store)).archive_id and (await kept(store)).payloads_id
    async with running(first):
        archives[0].away = False

        async def added() -> bool:
            return (await kept(store)).archive_id == await archives[0].identity()

        await eventually(added)
    archives[1].away = False
    with pytest.raises(NotInCommon, match=r"^archive: "):
        await asyncio.wait_for(second.run(), 10)


async def test_places_that_an_older_version_left_out_are_back_after_the_step_of_a_rotation(
    store: SqliteStore,
    archives: list[Place],
    places: list[ObjectBlobs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.01)
    ca = Ca(tmp_path / "ca")
    key, chain, bundle = ca.issue(Kind.ORCHESTRATOR, "one")
    here = [Credential.from_pem(key, chain, bundle)]
    common = Common(store, "authority", lambda: here[0], archives[0], places[0])
    await common.begin()
    before = await kept(store)
    older = records.CommonRecord(trust_domain=before.trust_domain, roots=before.roots)
    await store.commit(Txn((), (Put(keys.common(), older.SerializeToString()),)))
    async with running(common):
        prepare_root(ca.folder)
        here[0] = Credential.from_pem(key, chain, Authority.load(ca.folder).bundle_pem)

        async def followed() -> bool:
            return len((await kept(store)).roots) == 2

        await eventually(followed)
    after = await kept(store)
    assert (after.archive_id, after.payloads_id) == (before.archive_id, before.payloads_id)
