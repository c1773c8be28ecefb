"""Two replicas: whichever one is called, the answer is that of the whole; and nobody is believed to be a replica who is
none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon import Client, Graph, RunNotFound, output_of, ref
from antiphon.mesh.v1 import mesh_service_pb2, mesh_service_pb2_grpc
from antiphon.v1 import registry_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Kind

from tests.harness import LIMIT, eventually
from tests.harness.authority import DOMAIN, Ca
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.raw import channel, reason_of

pytest_plugins = ("tests.harness.etcd_fixtures",)

PATIENCE = timedelta(seconds=60)


@pytest.fixture(scope="module")
def cluster(etcd_current: Etcd) -> Iterator[Cluster]:
    with Cluster(etcd_current, 2) as cluster:
        cluster.sidecar(concurrency=8, prefetch=0)
        asyncio.run(cluster.settled(2))
        yield cluster
        cluster.show()


def echo(capability: str = "work.echo@1") -> Graph:
    graph = Graph("echo", output=ref("tasks.t.output"))
    graph.task("t", capability, input=ref("input"))
    return graph


def each(cluster: Cluster) -> tuple[Client, Client]:
    one, other = (cluster.client(address=replica.address) for replica in cluster.replicas)
    return one, other


async def test_what_one_replica_was_told_every_replica_knows(cluster: Cluster) -> None:
    one, other = each(cluster)
    async with one, other:
        await cluster.attached(one)
        submitted = [await one.submit(echo(), n, labels={"of": "calls"}) for n in range(12)]
        for run in submitted:
            for client in (one, other):
                ended = await client.wait(run.run_id, timeout=PATIENCE)
                assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
                assert (await client.get_run(run.run_id)).event_seq == ended.event_seq
                assert (await client.explain(run.run_id, "t")).task.key.task_id == "t"
                assert [task.key.task_id async for task in client.list_tasks(run.run_id)] == ["t"]
                assert len([attempt async for attempt in client.list_attempts(run.run_id, "t")]) == 1
        wanted = {run.run_id for run in submitted}
        for client in (one, other):
            listed = [run.run_id async for run in client.list_runs(labels={"of": "calls"}, page_size=5)]
            assert len(listed) == len(set(listed)) == 12 and set(listed) == wanted


async def test_runs_that_wait_for_a_signal_are_listed_by_every_replica(cluster: Cluster) -> None:
    graph = Graph("waits")
    graph.wait("a", signal="go")
    one, other = each(cluster)
    async with one, other:
        runs = [(await one.submit(graph, labels={"of": "waits"})).run_id for _ in range(12)]
        for client in (one, other):
            found = client.list_runs(labels={"of": "waits"}, waiting_for_signal=True, page_size=5)
            listed = [(run.run_id, list(run.awaited_signals)) async for run in found]
            assert sorted(listed) == [(run_id, ["go"]) for run_id in sorted(runs)]
        for run_id in runs:
            await one.signal(run_id, "go")
            await one.wait(run_id, timeout=PATIENCE)
        for client in (one, other):
            assert [run async for run in client.list_runs(labels={"of": "waits"}, waiting_for_signal=True)] == []


async def test_the_same_request_at_two_replicas_at_once_is_one_run(cluster: Cluster) -> None:
    one, other = each(cluster)
    async with one, other:
        for n in range(8):
            runs = await asyncio.gather(
                *(c.submit(echo(), n, request_id=f"twice-{n}", wait=True) for c in (one, other))
            )
            assert len({run.run_id for run in runs}) == 1
            assert [output_of(run) for run in runs] == [n, n]


async def test_a_stream_of_submissions_reaches_the_shards_of_both(cluster: Cluster) -> None:
    shards = await cluster.settled(2)
    for client in each(cluster):
        async with client, client.submitter() as submitter:
            answers = [await submitter.submit(echo(), n, wait=True) for n in range(100)]
            runs = await asyncio.gather(*answers)
            assert [output_of(run) for run in runs] == list(range(100))
            assert {cluster.owner(shards, run.run_id).address for run in runs} == set(shards)


async def test_a_request_id_that_comes_twice_on_one_stream_is_answered_twice_wherever_its_shard_is(
    cluster: Cluster,
) -> None:
    await cluster.settled(2)
    batch = run_service_pb2.SubmitRunsRequest()
    for n in range(16):
        batch.submissions.add(request_id=f"again-{n // 2}").inline.CopyFrom(echo().to_proto())
    async with channel(cluster.replicas[0].address, cluster.ca.issue(Kind.CLIENT, "raw")) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        stream = stub.SubmitRuns()
        await stream.write(batch)
        await stream.done_writing()
        async with asyncio.timeout(LIMIT):
            answers = [result async for response in stream for result in response.results]
    assert len(answers) == 16 and len({answer.run.run_id for answer in answers}) == 8


async def test_a_call_that_waits_at_another_replica_ends_when_its_caller_is_revoked(cluster: Cluster) -> None:
    await cluster.settled(2)
    one, _ = each(cluster)
    thief, olga = cluster.ca.issue(Kind.CLIENT, "thief"), cluster.client("olga", kind=Kind.OPERATOR)
    async with one, olga, channel(cluster.replicas[0].address, thief) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        calls = []
        for n in range(8):
            request = run_service_pb2.SubmitRunRequest(request_id=f"waits-{n}", wait=True)
            request.inline.CopyFrom(echo("work.nobody@1").to_proto())
            calls.append(stub.SubmitRun(request, timeout=300))

        async def submitted() -> bool:
            return sum([run.principal.endswith("/thief") async for run in one.list_runs()]) == 8

        await eventually(submitted)
        await olga.revoke_certificates("client", "thief", cause="her laptop was stolen")
        for waiting in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await waiting
            assert reason_of(refused.value) == "CERTIFICATE_REVOKED"


async def test_a_run_is_cancelled_through_the_replica_that_does_not_own_it(cluster: Cluster) -> None:
    shards = await cluster.settled(2)
    one, other = each(cluster)
    async with one, other:
        run = await one.submit(echo("nobody.offers@1"), 1)
        stranger = one if cluster.owner(shards, run.run_id) is cluster.replicas[1] else other
        assert (await stranger.cancel(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED


async def test_a_run_of_another_namespace_is_not_shown_across_replicas_either(cluster: Cluster) -> None:
    one, _ = each(cluster)
    async with one:
        runs = [await one.submit(echo(), n) for n in range(4)]
    for replica in cluster.replicas:
        async with cluster.client(namespace="team-b", address=replica.address) as stranger:
            for run in runs:
                with pytest.raises(RunNotFound):
                    await stranger.get_run(run.run_id)


async def test_an_agent_that_one_replica_suspends_gets_no_work_of_the_other(cluster: Cluster) -> None:
    async with cluster.client(kind=Kind.OPERATOR, address=cluster.replicas[0].address) as operator:
        one, other = each(cluster)
        async with one, other:
            await operator.suspend_agent("worker")
            try:

                async def seen() -> bool:
                    agent = await other.get_agent("worker")
                    return agent.state == registry_pb2.AGENT_STATE_SUSPENDED

                await eventually(seen)
                runs = [await other.submit(echo("work.pid@1"), n) for n in range(6)]
                states = {(await one.get_run(run.run_id)).totals.running for run in runs}
                assert states == {0}
            finally:
                await operator.resume_agent("worker")
            for run in runs:
                await one.cancel(run.run_id)


async def test_an_agent_shows_the_slots_of_all_replicas(cluster: Cluster) -> None:
    for client in each(cluster):
        async with client:

            async def whole() -> bool:
                agent = await client.get_agent("worker")  # noqa: B023 - awaited before the next one
                return [instance.slots for instance in agent.instances] == [8]

            await eventually(whole)


async def test_an_audit_checkpoint_covers_what_every_replica_has_committed(cluster: Cluster) -> None:
    async with cluster.client(kind=Kind.OPERATOR, namespace="system", address=cluster.replicas[0].address) as auditor:
        before = {head.chain: head.last_seq for head in (await auditor.get_audit_checkpoint()).heads}
        one, _ = each(cluster)
        async with one:
            runs = [await one.submit(echo(), n, wait=True) for n in range(16)]
        after = {head.chain: head.last_seq for head in (await auditor.get_audit_checkpoint()).heads}
        for run in runs:
            chain = f"shard-{run.run_id[1:5]}"
            assert after[chain] >= before.get(chain, 0) + 2


def large(name: str) -> registry_pb2.AgentDescription:
    """Of eight such agents with an instance each a page is full, and of nine without."""
    description = registry_pb2.AgentDescription(name=name, concurrency=4)
    for number in (1, 2):
        schema = f'{{"description":"{"x" * 32_620}"}}'
        description.capabilities.add(
            name=f"{name}.c{number}", version="1", input_schema=schema, output_schema=schema, description="y" * 189
        )
    short = (1 << 20) // 8 - description.ByteSize()
    assert 60 < short < 80  # beyond this 47 bytes are said of an agent, and 52 of an instance
    return description


async def test_a_page_of_large_agents_ends_early_and_has_the_instances_of_both(cluster: Cluster) -> None:
    names = {f"large-{number:02}" for number in range(36)}
    pem = cluster.ca.issue(Kind.SIDECAR, "raw", agents=["*"], capabilities=["*"])
    one, other = each(cluster)
    async with one, other, channel(cluster.replicas[1].address, pem) as line:
        stub: Any = mesh_service_pb2_grpc.MeshServiceStub(line)
        stream = stub.Attach()
        hello = mesh_service_pb2.AttachRequest()
        hello.hello.incarnation, hello.hello.generation, hello.hello.protocol_version = "feedfacefeedface", 1, 1
        await stream.write(hello)
        for name in sorted(names):
            request = mesh_service_pb2.AttachRequest()
            request.agents.add(present=large(name))
            await stream.write(request)
        for client in (one, other):

            async def there(client: Client = client) -> bool:
                return {agent.name async for agent in client.list_agents(page_size=5)} >= names

            await eventually(there)
            agents = [agent async for agent in client.list_agents(page_size=500)]
            found = [(agent.name, len(agent.instances)) for agent in agents if agent.name in names]
            assert found == [(name, 1) for name in sorted(names)]
        offered = [one.capability.name async for one in other.list_capabilities(page_size=500)]
        assert [name for name in offered if name.startswith("large-")] == sorted(
            f"{name}.c{number}" for name in names for number in (1, 2)
        )
        stream.cancel()


async def call(
    cluster: Cluster, pem: tuple[bytes, bytes, bytes], caller: str, run_id: str, replica: int = 0
) -> grpc.StatusCode:
    """The status of GetRun that claims to be passed on."""
    key, chain, bundle = pem
    options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
    credentials = grpc.ssl_channel_credentials(bundle, key, chain)
    forwarded = mesh_service_pb2.ForwardedCall(caller=caller).SerializeToString()
    async with grpc.aio.secure_channel(cluster.replicas[replica].address, credentials, options) as channel:
        ask = channel.unary_unary("/antiphon.v1.RunService/GetRun", None, None)
        request = run_service_pb2.GetRunRequest(run_id=run_id).SerializeToString()
        try:
            await ask(request, timeout=10, metadata=(("antiphon-forwarded-bin", forwarded),))
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_only_an_orchestrator_is_believed_whose_call_it_passes_on(cluster: Cluster) -> None:
    shards = await cluster.settled(2)
    async with each(cluster)[0] as client:
        run = await client.submit(echo(), 1, wait=True)
    owner = cluster.replicas.index(cluster.owner(shards, run.run_id))
    alice = f"spiffe://{DOMAIN}/ns/team-a/client/alice"
    replica = cluster.ca.issue(Kind.ORCHESTRATOR, "replica", namespace="system")
    assert await call(cluster, replica, alice, run.run_id, owner) is grpc.StatusCode.OK
    # Passed on once already, so the other one does not pass it on again.
    assert await call(cluster, replica, alice, run.run_id, 1 - owner) is grpc.StatusCode.UNAVAILABLE
    for kind in (Kind.CLIENT, Kind.OPERATOR, Kind.SIDECAR):
        pem = cluster.ca.issue(kind, "mallory")
        assert await call(cluster, pem, alice, run.run_id, owner) is grpc.StatusCode.PERMISSION_DENIED
    for nobody in (
        f"spiffe://{DOMAIN}/ns/team-a/sidecar/s1",
        f"spiffe://{DOMAIN}/ns/system/orchestrator/other",
        "spiffe://elsewhere.test/ns/team-a/client/alice",
    ):
        assert await call(cluster, replica, nobody, run.run_id, owner) is grpc.StatusCode.PERMISSION_DENIED
    assert await call(cluster, replica, "alice", run.run_id, owner) is grpc.StatusCode.UNAUTHENTICATED
    foreign = Ca(cluster.path("foreign")).issue(Kind.ORCHESTRATOR, "replica", namespace="system")
    refused = await call(cluster, (foreign[0], foreign[1], replica[2]), alice, run.run_id, owner)
    assert refused is grpc.StatusCode.UNAVAILABLE
