"""What an operator decides on an agent holds, whichever replica is told and however far behind it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon.v1 import registry_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies
from antiphon_orchestrator.registry.registry import ACTIVE, DRAINING, SUSPENDED, AgentNotFound, Registry
from antiphon_orchestrator.shards.clock import now
from antiphon_orchestrator.store import SqliteStore, keys
from antiphon_orchestrator.store.port import Delete, Txn

ODD = ("demo", "odd")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


async def replica(store: SqliteStore) -> Registry:
    """One replica's, which knows what is there now and hears of nothing that comes later."""
    schemas = SchemaSet(Values())
    registry = Registry(store, Fleet(CedarPolicies(), schemas), schemas, now, timedelta(days=30))
    await registry.load()
    return registry


async def announce(registry: Registry, version: str) -> None:
    description = registry_pb2.AgentDescription(name="odd", version=version, concurrency=1)
    await registry.announce("demo", "spiffe://mesh.test/ns/demo/sidecar/s", description)


async def test_a_decision_is_carried_out_by_a_replica_that_takes_it_for_done(store: SqliteStore) -> None:
    one = await replica(store)
    await announce(one, "1")
    for state, other in ((SUSPENDED, ACTIVE), (DRAINING, ACTIVE), (ACTIVE, SUSPENDED)):
        await one.set_state(*ODD, state)
        behind = await replica(store)
        await one.set_state(*ODD, other)
        await behind.set_state(*ODD, state)
        for registry in (behind, await replica(store)):
            assert registry.agent(*ODD).state == (state if state != ACTIVE else registry_pb2.AGENT_STATE_GONE)


async def test_a_decision_leaves_what_another_replica_was_told_of_the_agent_meanwhile(store: SqliteStore) -> None:
    one = await replica(store)
    await announce(one, "1")
    behind = await replica(store)
    await announce(one, "2")
    await behind.set_state(*ODD, DRAINING)
    for registry in (behind, await replica(store)):
        agent = registry.agent(*ODD)
        assert (agent.description.version, agent.state) == ("2", DRAINING)


async def test_a_decision_reaches_an_agent_of_which_only_another_replica_has_heard(store: SqliteStore) -> None:
    one, behind = await replica(store), await replica(store)
    await announce(one, "1")
    await behind.set_state(*ODD, SUSPENDED)
    assert behind.agent(*ODD).state == SUSPENDED


async def test_an_agent_that_another_replica_has_forgotten_is_not_there(store: SqliteStore) -> None:
    one = await replica(store)
    await announce(one, "1")
    key = keys.agent(*ODD, "record")
    assert (await store.commit(Txn((), (Delete(key),)))).succeeded
    with pytest.raises(AgentNotFound):
        await one.set_state(*ODD, SUSPENDED)
    assert one.names("demo") == []
