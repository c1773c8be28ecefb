"""Who is told that a claim is lost, when several replicas look after one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from antiphon.v1 import context_pb2
from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import SystemClock
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.context.claims import Claims
from antiphon_orchestrator.context.gate import Gate
from antiphon_orchestrator.context.index import Index
from antiphon_orchestrator.context.keeper import Keeper
from antiphon_orchestrator.context.rules import Quota, Standing
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.store import SqliteStore, Store

from tests.harness.waiting import eventually

ALICE = "spiffe://mesh.test/ns/demo/client/alice"
SECOND = 1_000_000


class Replica:
    """The claims of one replica, with a clock of its own."""

    def __init__(self, store: Store, name: str) -> None:
        self.now = 1_000 * SECOND
        self.told: list[tuple[str, str, int]] = []
        held = Index()
        policy = CedarPolicies(dev_profile())
        gate = Gate(policy, AuditLog(store, name, lambda: self.now))
        self.claims = Claims(store, gate, held, Quota(), lambda: self.now)
        self.claims.lost = lambda incarnation, loss: self.told.append((incarnation, loss.attempt_id, loss.claim.fence))
        self.keeper = Keeper(store, self.claims, Index(), held, Index(), SystemClock(), lambda: self.now)
        self.held = held

    async def acquire(self, number: int, seconds: int = 10) -> context_pb2.ClaimReference:
        """The claim, for an attempt of task t that is out to sidecar incarnation iNUMBER."""
        request = api.AcquireClaimRequest(name="plan", request_id=f"q{number}")
        request.ttl.FromSeconds(seconds)
        return (await self.claims.acquire(who(number), request)).claim.claim


def who(number: int) -> Standing:
    attempt = f"r1/t/0/{number}"
    return Standing(ALICE, "client", "demo", attempt_id=attempt, run_id="r1", incarnation=f"i{number}")


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas that follow one store; the test collects, and nothing does so by the clock."""
    async with SqliteStore(folder / "store.db") as store:
        replicas = Replica(store, "a"), Replica(store, "b")
        tasks = []
        for one in replicas:
            await one.keeper.load()
            tasks += [
                asyncio.create_task(one.keeper._follow(*kind, revision))
                for kind, revision in zip(one.keeper._kinds, one.keeper._read_to, strict=True)
            ]
        try:
            yield replicas
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def knows(replica: Replica, count: int) -> None:
    await eventually(lambda: len(replica.held) == count)


async def test_the_replica_that_ends_a_claim_tells_its_holder_and_so_does_one_that_sees_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other):
        claim = await one.acquire(1)
        await knows(other, 1)
        for replica in (one, other):
            replica.now += 11 * SECOND
        await other.keeper.collect()
        assert other.told == [("i1", "r1/t/0/1", claim.fence)], "it was acquired at the other one"
        await knows(one, 0)
        assert one.told == other.told, "the one that ended it may be gone before it tells anybody"


async def test_one_whose_clock_is_behind_leaves_the_word_to_the_one_that_ended_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other):
        await one.acquire(1)
        await knows(other, 1)
        other.now += 11 * SECOND
        await other.keeper.collect()
        await knows(one, 0)
        assert len(other.told) == 1 and one.told == []


async def test_a_claim_that_is_released_or_renewed_is_lost_by_nobody(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other):
        claim = await one.acquire(1)
        await knows(other, 1)
        for _ in range(3):
            await other.claims.renew(who(1), api.RenewClaimRequest(claim=claim))
        await one.claims.release(who(1), api.ReleaseClaimRequest(claim=claim))
        await knows(other, 0)
        await knows(one, 0)
        assert one.told == other.told == []


async def test_who_is_succeeded_at_another_replica_is_told_once_by_each(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other):
        first = await one.acquire(1)
        await knows(other, 1)
        other.now += 11 * SECOND  # it takes over by its own clock
        second = await other.acquire(2)
        assert second.fence > first.fence
        assert other.told == [("i1", "r1/t/0/1", first.fence)]
        await eventually(lambda: one.told == other.told)
