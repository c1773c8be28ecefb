"""Who is gone is told from time that passed for us, never from a clock that was set or a process that stood still."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import registry_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.mesh.session import Session
from antiphon_orchestrator.mesh.sessions import Announcer, MeshSettings, Sessions
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.fleet import Fleet, Instance
from antiphon_orchestrator.policy import CedarPolicies
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.store import StoreUnavailable

from tests.harness import eventually

SECOND = 1_000_000
SLOW = "5" * 32


def test_a_stall_ends_no_stream_and_loses_no_absent_sidecar() -> None:
    time = 1_000 * SECOND
    nothing: Any = SimpleNamespace(changed=lambda *_: None)
    policy, tokens = CedarPolicies(), AttemptTokens(b"key")
    fleet = Fleet(policy, SchemaSet(Values()))
    sessions = Sessions(MeshSettings("r"), fleet, nothing, policy, nothing, tokens, nothing, nothing, lambda: time)
    here, away = (Session("demo", name, "p", name, 1, tokens, lambda: time) for name in ("here", "away"))
    sessions._sessions.update({"here": here, "away": away})
    sessions.close(away)
    due = sessions._absent["away"]
    for gap in (60 * SECOND, -3600 * SECOND):
        time += gap
        sessions.extend(gap)
        sessions._look_after(cast(Session, here), time)
        assert not here.ended
        assert sessions._absent["away"] - time == due - 1_000 * SECOND


class SlowStore:
    """What an attach asks of the registry, by a store that answers when it is let to, or not at all."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.verified = self

    async def holds(self, namespace: str, description: object) -> bool:
        self.asked.set()
        return await self.answer


async def test_a_sidecar_whose_hello_waits_for_a_slow_store_is_not_absent() -> None:
    time = 1_000 * SECOND
    lost: list[str] = []
    nothing: Any = SimpleNamespace(bind=lambda host: None)
    store: Any = SlowStore()
    policy, tokens = CedarPolicies(), AttemptTokens(b"key")
    fleet = Fleet(policy, SchemaSet(Values()))
    sessions = Sessions(MeshSettings("r"), fleet, store, policy, nothing, tokens, nothing, nothing, lambda: time)
    taken = SimpleNamespace(
        index=0, timers_held=True, incarnations=lambda: {SLOW}, out=SimpleNamespace(holders=lambda incarnation: set())
    )

    def release(number: int) -> None:
        taken.timers_held = False

    host = SimpleNamespace(
        shards=[taken],
        shard=lambda number: taken,
        release_timers=release,
        put=lambda n, item: lost.append(item.incarnation),
    )
    sessions.bind(cast(Any, host))
    sessions._took(0)
    sessions._absent["gone"] = time
    who = Announcer("demo", "s", "spiffe://d/ns/demo/sidecar/s", lambda agent: True, lambda capability: True)
    hello = mesh.Hello(incarnation=SLOW, generation=1, protocol_version=1)
    hello.agents.add(name="a", concurrency=1).capabilities.add(name="text.work", version="1.0")
    opening = asyncio.create_task(sessions.open(who, hello))
    await store.asked.wait()
    running = asyncio.create_task(sessions.run())
    try:
        # Its grace is over, and the adoption window, too.
        sessions._absent[SLOW] = sessions._adopting[0] = time
        await eventually(lambda: lost == ["gone"])
        sessions._absent["once more"] = time
        await eventually(lambda: lost == ["gone", "once more"])
        assert taken.timers_held
        # The store does not answer at all: whoever dials again has the grace for it, and is lost only then.
        store.answer.set_exception(StoreUnavailable("no answer in time"))
        with pytest.raises(StoreUnavailable):
            await opening
        assert sessions._absent[SLOW] == time + 8 * SECOND
        await eventually(lambda: not taken.timers_held)
        assert SLOW not in lost
        sessions._absent[SLOW] = time
        await eventually(lambda: SLOW in lost)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_agents_are_away_while_their_sidecar_may_come_back_with_them() -> None:
    time = 1_000 * SECOND
    nothing: Any = SimpleNamespace(bind=lambda host: None, changed=lambda *_: None)
    policy, tokens = CedarPolicies(), AttemptTokens(b"key")
    fleet = Fleet(policy, SchemaSet(Values()))
    sessions = Sessions(MeshSettings("r"), fleet, nothing, policy, nothing, tokens, nothing, nothing, lambda: time)
    sessions.bind(cast(Any, SimpleNamespace(shards=[])))
    who = Announcer("demo", "s", "spiffe://d/ns/demo/sidecar/s", lambda agent: True, lambda capability: True)
    agent = registry_pb2.AgentDescription(name="a", concurrency=1)
    agent.capabilities.add(name="text.work", version="1.0")
    running = asyncio.create_task(sessions.run())
    try:
        for generation, gone in ((1, "it stays away"), (3, "it comes back without the agent")):
            session = await sessions.open(who, mesh.Hello(incarnation="one", generation=generation, protocol_version=1))
            sessions._attach(session, Instance("s/one/a", "demo", who.principal, "one", agent, 1, 1, time))
            sessions.close(session)
            assert fleet.instance("s/one/a") is None and list(fleet._away) == ["s/one/a"]
            if gone == "it stays away":
                sessions._absent["one"] = time
            else:
                await sessions.open(who, mesh.Hello(incarnation="one", generation=generation + 1, protocol_version=1))
            await eventually(lambda: not fleet._away)
            assert not fleet._by_capability
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_what_a_sidecar_holds_is_told_to_the_shard_although_nothing_is_out_to_it() -> None:
    put: list[tuple[int, object]] = []
    nothing: Any = SimpleNamespace(bind=lambda host: None, changed=lambda *_: None)
    policy, tokens = CedarPolicies(), AttemptTokens(b"key")
    fleet = Fleet(policy, SchemaSet(Values()))
    sessions = Sessions(MeshSettings("r"), fleet, nothing, policy, nothing, tokens, nothing, nothing, lambda: 1)
    sessions._host = cast(Any, SimpleNamespace(put=lambda shard, item: put.append((shard, item))))
    session = Session("demo", "s", "p", "one", 2, tokens, lambda: 1)
    session.before[0], session.claimed[0] = frozenset(), 1
    sessions._inventory(session, mesh.ShardInventory(shard=0, epoch=1, attempt_ids=["r1/t0/0/1"], last=True))
    assert put == [(0, i.Inventory("one", frozenset({"r1/t0/0/1"}), frozenset()))]
