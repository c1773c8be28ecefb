"""Names of agents that are long gone are forgotten, and nothing that anybody still counts on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon.v1 import registry_pb2
from antiphon.v1 import verify_pb2 as pb
from antiphon.verify.digest import digest_of
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.placement.fleet import Fleet, Instance
from antiphon_orchestrator.policy import CedarPolicies
from antiphon_orchestrator.registry.registry import ACTIVE, SUSPENDED, Conflict, Registry
from antiphon_orchestrator.store import SqliteStore, Store
from antiphon_orchestrator.store.port import CommitResult, Txn

OLGA = "spiffe://mesh.test/ns/demo/operator/olga"
RETENTION = timedelta(days=30)
DAY = 24 * 3600 * 1_000_000


class Replica:
    """One replica's registry on a store that others may share; `now` is everybody's."""

    now = 1_000_000 * DAY

    def __init__(self, store: Store) -> None:
        self.schemas = SchemaSet(Values())
        self.fleet = Fleet(CedarPolicies(), self.schemas)
        self.registry = Registry(store, self.fleet, self.schemas, lambda: Replica.now, RETENTION)

    async def announce(self, name: str, schema: str = "") -> registry_pb2.AgentDescription:
        description = registry_pb2.AgentDescription(name=name, version="1", concurrency=1)
        description.capabilities.add(name="text.work", version="1", input_schema=schema)
        await self.registry.announce("demo", "spiffe://mesh.test/ns/demo/sidecar/s", description)
        return description

    def attach(self, description: registry_pb2.AgentDescription) -> None:
        name = description.name
        self.fleet.attach(Instance(f"s/i/{name}", "demo", "s", "i", description, 1, 1, Replica.now))


@asynccontextmanager
async def replicas(folder: Path, count: int = 1) -> AsyncIterator[list[Replica]]:
    async with SqliteStore(folder / "store.db") as store:
        made = [Replica(store) for _ in range(count)]
        for one in made:
            await one.registry.load()
        yield made


@pytest.fixture(autouse=True)
def clock() -> None:
    Replica.now = 1_000_000 * DAY


async def test_an_agent_that_is_long_gone_is_forgotten_and_its_schemas_are_free(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (one,):
        await one.announce("old", '{"type": "string"}')
        Replica.now += 29 * DAY
        await one.registry.look_after()
        assert one.registry.names("demo") == ["old"]
        with pytest.raises(Conflict):
            await one.announce("new", '{"type": "integer"}')
        Replica.now += 2 * DAY
        await one.registry.look_after()
        assert one.registry.names("demo") == []
        await one.announce("new", '{"type": "integer"}')
        await one.registry.load()
        assert one.registry.names("demo") == ["new"]


class Slow:
    """A store whose transactions begin together."""

    def __init__(self, store: Store, together: int) -> None:
        self._store = store
        self._barrier = asyncio.Barrier(together)
        self._first = set[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, txn: Txn) -> CommitResult:
        if (task := id(asyncio.current_task())) not in self._first:
            self._first.add(task)
            await self._barrier.wait()
        return await self._store.commit(txn)


@pytest.mark.parametrize("apart", [False, True])
async def test_of_agents_that_announce_other_schemas_at_the_same_moment_one_is_refused(
    tmp_path: Path, apart: bool
) -> None:
    schemas = {"a": '{"type": "string"}', "b": '{"type": "integer"}', "c": '{"type": "object"}'}
    async with SqliteStore(tmp_path / "store.db") as store:
        slow: Any = Slow(store, len(schemas))
        made = [Replica(slow) for _ in schemas] if apart else [Replica(slow)] * len(schemas)
        announced = [one.announce(name, schemas[name]) for one, name in zip(made, schemas, strict=True)]
        answers = await asyncio.gather(*announced, return_exceptions=True)
        (winner,) = [name for name, answer in zip(schemas, answers, strict=True) if not isinstance(answer, Exception)]
        conflicts = [answer for answer in answers if isinstance(answer, Conflict)]
        assert len(conflicts) == 2 and {conflict.holder for conflict in conflicts} <= set(schemas)
        for one in made:
            await one.registry.load()
            assert one.registry.names("demo") == [winner]
            assert one.fleet.output_schema("demo", "text.work@1") == ""
        await made[0].announce(winner, schemas[winner])


async def test_an_agent_that_works_is_kept_and_counted_from_its_last_day(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (one,):
        one.attach(await one.announce("busy"))
        for _ in range(60):
            Replica.now += DAY
            await one.registry.look_after()
        one.fleet.detach("s/i/busy")
        Replica.now += 26 * DAY  # it was there until now, to within a tenth of the thirty days
        await one.registry.look_after()
        assert one.registry.names("demo") == ["busy"]
        Replica.now += 5 * DAY
        await one.registry.look_after()
        assert one.registry.names("demo") == []


async def test_one_that_an_operator_has_stopped_stays_stopped_for_ever(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (one,):
        await one.announce("odd")
        await one.registry.set_state("demo", "odd", SUSPENDED)
        Replica.now += 1_000 * DAY
        await one.registry.look_after()
        assert one.registry.agent("demo", "odd").state == SUSPENDED
        await one.registry.set_state("demo", "odd", ACTIVE)
        await one.registry.look_after()
        assert one.registry.names("demo") == ["odd"], "that it was resumed counts as a sign of it"


async def test_a_new_report_keeps_an_agent_and_an_old_one_goes_with_it(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (one,):
        description = await one.announce("proven")
        Replica.now += 20 * DAY
        report = pb.VerifyReport(agent="proven", version="1", capabilities_digest=digest_of(description), complete=True)
        report.cases.add(name="hello", outcome=pb.VERIFY_OUTCOME_PASSED)
        await one.registry.verified.put("demo", OLGA, report)
        Replica.now += 20 * DAY
        await one.registry.look_after()
        assert one.registry.names("demo") == ["proven"]
        assert await one.registry.verified.holds("demo", description)
        Replica.now += 20 * DAY
        await one.registry.look_after()
        assert one.registry.names("demo") == []
        assert not await one.registry.verified.holds("demo", description)


async def test_a_replica_that_does_not_see_an_agent_yet_forgets_none_that_has_just_come_back(tmp_path: Path) -> None:
    async with replicas(tmp_path, 2) as (sees, blind):
        await sees.announce("back")
        await blind.registry.load()
        Replica.now += 40 * DAY
        sees.attach(await sees.announce("back"))
        await blind.registry.look_after()
        await sees.registry.load()
        assert sees.registry.names("demo") == ["back"]


async def test_an_agent_that_comes_back_while_it_is_forgotten_is_there(tmp_path: Path) -> None:
    async with replicas(tmp_path, 2) as (sees, blind):
        await sees.announce("back")
        await blind.registry.load()
        Replica.now += 40 * DAY
        await blind.registry.look_after()
        sees.attach(await sees.announce("back"))  # it has not heard yet that the name was forgotten
        for one in (sees, blind):
            await one.registry.load()
            assert one.registry.names("demo") == ["back"]
