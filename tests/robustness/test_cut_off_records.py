"""A replica that is cut off from the store, and what others change meanwhile: entries, agents, who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon import entry_value
from antiphon.options.v1 import options_pb2
from antiphon.v1 import (
    context_service_pb2,
    context_service_pb2_grpc,
    registry_pb2,
    registry_service_pb2,
    registry_service_pb2_grpc,
)
from antiphon_certs import Kind
from antiphon_orchestrator.api.image import Image, Method

from tests.harness import eventually
from tests.harness.cluster import Cluster
from tests.harness.etcd import StartEtcd
from tests.harness.network import Network
from tests.harness.raw import channel, reason_of

PATIENCE = timedelta(seconds=60)
KEY, AGENT = "rate", "worker"
SUSPENDED = registry_pb2.AGENT_STATE_SUSPENDED
ANSWERED = {"/antiphon.mesh.v1.MeshService/Attach", "/antiphon.v1.ClusterService/GetCluster"}
"""What a replica goes on with: sidecars stay, and people are told who is there."""

PUBLIC = {options_pb2.LISTENER_MUTUAL_TLS, options_pb2.LISTENER_JOIN}


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.proves("a replica is cut off from the store")
async def test_a_replica_that_is_cut_off_tells_nothing_that_others_may_have_changed(
    start_etcd: StartEtcd, network: Network
) -> None:
    etcd = start_etcd(network=network)
    with Cluster(etcd, 2, network=network) as cluster:
        try:
            async with asyncio.timeout(180):
                await cut_off_one(cluster, network, etcd.members[0].name)
        finally:
            cluster.show()


async def cut_off_one(cluster: Cluster, network: Network, etcd: str) -> None:
    cluster.sidecar(agent=AGENT)
    await cluster.settled(2)
    alone, other = cluster.replicas
    async with AsyncExitStack() as stack:

        async def client(*replicas: Any, kind: Kind = Kind.CLIENT) -> Any:
            addresses = [replica.address for replica in replicas]
            made = cluster.client(kind=kind, address=addresses, timeout=PATIENCE, patience=PATIENCE)
            return await stack.enter_async_context(made)

        async def at_alone(name: str, kind: Kind) -> grpc.aio.Channel:
            return await stack.enter_async_context(channel(alone.address, cluster.ca.issue(kind, name)))

        both, elsewhere = await client(alone, other), await client(other)
        operator = await client(other, kind=Kind.OPERATOR)
        raw = await at_alone("raw", Kind.OPERATOR)
        context: Any = context_service_pb2_grpc.ContextServiceStub(raw)
        registry: Any = registry_service_pb2_grpc.RegistryServiceStub(raw)
        dismissed: Any = context_service_pb2_grpc.ContextServiceStub(await at_alone("dismissed", Kind.CLIENT))
        get = context_service_pb2.GetEntryRequest(key=KEY)
        await cluster.attached(both, AGENT)
        written = await both.put_entry(KEY, 1)
        # What is held on its way to the store may arrive in the end, and be in vain then.
        put = context_service_pb2.PutEntryRequest(request_id="r", key=KEY, expected_revision=written.revision)
        put.value.inline = b"3"
        assert await refused(dismissed.GetEntry(get, timeout=30)) == ""
        values = await stack.enter_async_context(aclosing(both.watch_entries(KEY, from_revision=written.revision)))
        agents = await stack.enter_async_context(aclosing(both.watch_agents()))
        assert (await anext(values)).put.key == KEY and (await anext(agents)).name == AGENT
        entries = aiter(context.WatchEntries(context_service_pb2.WatchEntriesRequest()))
        states = aiter(registry.WatchAgents(registry_service_pb2.WatchAgentsRequest()))
        await asyncio.gather(anext(entries), anext(states))

        network.part(alone.name, etcd)
        # Before anybody knows: what waits for the store is not left to its deadline, and whoever watches is told.
        begun = [context.GetEntry(get, timeout=300), dismissed.PutEntry(put, timeout=300), rest(entries), rest(states)]
        await elsewhere.put_entry(KEY, 2)
        await operator.suspend_agent(AGENT)
        await operator.revoke_certificates("client", "dismissed", cause="it is gone")
        assert await asyncio.gather(*map(refused, begun)) == ["NOT_SERVING"] * 4
        assert await refused(dismissed.GetEntry(get, timeout=30)) == "NOT_SERVING"
        methods = [method for method in Image.load().methods.values() if method.listener in PUBLIC]
        said = {method.path: await refused(asked(raw, method)) for method in methods if method.path not in ANSWERED}
        assert len(said) > 30 and set(said.values()) == {"NOT_SERVING"}, said

        # Who knows of the other one as well goes on there.
        assert entry_value(await both.get_entry(KEY)) == 2
        assert entry_value((await anext(values)).put) == 2
        assert (await both.get_agent(AGENT)).state == SUSPENDED
        async for agent in agents:
            if agent.state == SUSPENDED:
                break

        network.heal()

        async def serves() -> bool:
            try:
                found = await context.GetEntry(get, timeout=30)
            except grpc.aio.AioRpcError as error:
                assert reason_of(error) == "NOT_SERVING"
                return False
            assert found.entry.value.inline == b"2"
            return True

        await eventually(serves)
        found = await registry.GetAgent(registry_service_pb2.GetAgentRequest(name=AGENT), timeout=30)
        assert found.agent.state == SUSPENDED
        assert await refused(dismissed.GetEntry(get, timeout=30)) == "CERTIFICATE_REVOKED"


async def rest(watch: AsyncIterator[Any]) -> None:
    """A watch to its end."""
    async for _ in watch:
        pass


async def refused(call: Awaitable[Any]) -> str:
    """Why a call is refused; nothing when it is answered."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    return ""


async def asked(raw: Any, method: Method) -> None:
    """A method, with a request that says nothing."""
    if method.request_streaming and method.response_streaming:
        await rest(aiter(raw.stream_stream(method.path)(iter((b"",)), timeout=30)))
    elif method.request_streaming:
        await raw.stream_unary(method.path)(iter((b"",)), timeout=30)
    elif method.response_streaming:
        await rest(aiter(raw.unary_stream(method.path)(b"", timeout=30)))
    else:
        await raw.unary_unary(method.path)(b"", timeout=30)
