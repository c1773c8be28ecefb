"""What the keeper collects: all that has ended, also what ended while the store was away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import SystemClock
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.context import Quota, Standing, keeper
from antiphon_orchestrator.context.claims import Claims
from antiphon_orchestrator.context.entries import Entries
from antiphon_orchestrator.context.gate import Gate
from antiphon_orchestrator.context.index import Index
from antiphon_orchestrator.context.keeper import BATCH, RUN_KEPT, Keeper
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.store import SqliteStore, StoreUnavailable, Txn, keys, prefix_end

SECOND = 1_000_000
ALICE = Standing("spiffe://mesh.test/ns/demo/client/alice", "client", "demo")


class Outage:
    """A store that takes so many transactions more, and is away then."""

    def __init__(self, real: SqliteStore) -> None:
        self.real = real
        self.left = 1 << 30

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def commit(self, txn: Txn) -> Any:
        if self.left <= 0:
            raise StoreUnavailable("it has no leader")
        self.left -= 1
        return await self.real.commit(txn)


class Place:
    """Shared context with a clock that the test moves."""

    def __init__(self, store: SqliteStore, blobs: ObjectBlobs) -> None:
        self.now = 1_000 * SECOND
        self.store = Outage(store)
        there = cast(Any, self.store)
        gate = Gate(CedarPolicies(dev_profile()), AuditLog(store, "a", lambda: self.now))
        entries, held, requests = Index(), Index(), Index()
        self.claims = Claims(there, gate, held, Quota(), lambda: self.now)
        self.entries = Entries(there, gate, self.claims, entries, requests, blobs, Quota(), lambda: self.now)
        self.keeper = Keeper(there, self.claims, entries, held, requests, SystemClock(), lambda: self.now)

    async def count(self, prefix: bytes) -> int:
        return len((await self.store.range(prefix, prefix_end(prefix))).kvs)

    async def claim(self, name: str) -> None:
        request = api.AcquireClaimRequest(name=name, request_id="q")
        request.ttl.FromSeconds(10)
        await self.claims.acquire(ALICE, request)

    async def put(self, key: str, *, run: str = "", ttl: int = 0) -> int:
        request = api.PutEntryRequest(key=key, request_id=f"{run}/{key}")
        request.value.inline = b"1"
        if run:
            request.scope.run_id = run
        if ttl:
            request.ttl.FromSeconds(ttl)
        return (await self.entries.put(ALICE, request)).revision


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr("antiphon_orchestrator.api.storing._FIRST_WAIT", 0)
    async with (
        SqliteStore(tmp_path / "store.db") as store,
        ObjectBlobs((tmp_path / "blobs").as_uri()) as blobs,
    ):
        yield Place(store, blobs)


@pytest.mark.parametrize("goes_through", [0, 3])
async def test_claims_that_ended_while_the_store_was_away_go_when_it_is_back(place: Place, goes_through: int) -> None:
    for n in range(10):
        await place.claim(f"item-{n}")
    place.now += 11 * SECOND
    place.store.left = goes_through
    with pytest.raises(StoreUnavailable):
        await place.keeper.collect()
    assert await place.count(keys.CLAIMS) == 10 - goes_through
    place.store.left = 1 << 30
    await place.keeper.collect()
    assert await place.count(keys.CLAIMS) == 0


@pytest.mark.parametrize("goes_through", [0, 1])
async def test_request_ids_beyond_their_number_go_when_the_store_is_back(
    place: Place, goes_through: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOST_REQUESTS", 5)
    for n in range(2 * BATCH + 5):
        await place.put(f"k{n}")
    place.store.left = goes_through
    with pytest.raises(StoreUnavailable):
        await place.keeper.collect()
    place.store.left = 1 << 30
    await place.keeper.collect()
    assert await place.count(keys.CONTEXT_REQUESTS) == 5


async def test_entries_of_a_run_go_an_hour_after_its_end_and_none_before(place: Place) -> None:
    ends: dict[str, int | None] = {"r1": None, "r2": None, "unknown": 0}
    asked: list[str] = []

    async def run_ended(run_id: str) -> int | None:
        asked.append(run_id)
        return ends[run_id]

    async def left() -> list[str]:
        found = await place.store.range(keys.CONTEXT, prefix_end(keys.CONTEXT))
        return [keys.parts(kv.key)[2] for kv in found.kvs]

    place.keeper.run_ended = run_ended
    for run in ends:
        for n in range(BATCH + 1 if run == "r1" else 1):
            await place.put(f"notes/{n}", run=run)
    await place.put("plan")
    place.now += RUN_KEPT - 1
    await place.keeper.collect_runs()
    assert asked == [] and len(await left()) == BATCH + 4, "what is young is nobody's to look at"
    place.now += 1
    ends["r1"] = place.now
    await place.keeper.collect_runs()
    assert sorted(asked) == ["r1", "r2", "unknown"]
    assert set(await left()) == {"namespace", "run:r1", "run:r2"}
    place.now += RUN_KEPT - 1
    await place.put("late", run="r1")
    await place.keeper.collect_runs()
    assert (await left()).count("run:r1") == BATCH + 2
    place.now += 1
    await place.keeper.collect_runs()
    assert (await left()).count("run:r1") == 1, "what was written after the end stays as long"
    assert (await left()).count("run:r2") == 1
    place.now += RUN_KEPT
    await place.keeper.collect_runs()
    assert await left() == ["namespace", "run:r2"]
    assert place.keeper.entries.usage(b"demo")[0] == 2


async def test_entries_that_expired_while_the_store_was_away_go_when_it_is_back(place: Place) -> None:
    for n in range(BATCH + 5):
        await place.put(f"k{n}", ttl=1)
    place.now += 2 * SECOND
    place.store.left = 1
    with pytest.raises(StoreUnavailable):
        await place.keeper.collect()
    place.store.left = 1 << 30
    await place.keeper.collect()
    assert await place.count(keys.CONTEXT) == 0
