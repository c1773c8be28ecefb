"""Three orchestrators on one etcd: what is about all of them is right wherever it is asked, also while shards move."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from antiphon import ClaimHeld, Client, EntryConflict, Graph, entry_value, output_of, ref
from antiphon.v1 import registry_pb2, run_pb2
from antiphon_certs import Kind

from tests.harness import eventually, journal_of
from tests.harness.cluster import SHARDS, Cluster
from tests.harness.etcd import Etcd

pytest_plugins = ("tests.harness.etcd_fixtures",)

AGENT = (sys.executable, "-m", "tests.harness.context_agent")
PATIENCE = timedelta(seconds=60)


@pytest.fixture(scope="module")
def cluster(etcd_current: Etcd) -> Iterator[Cluster]:
    with Cluster(etcd_current, 3) as cluster:
        cluster.sidecar(concurrency=8)
        cluster.sidecar("team", command=AGENT)
        asyncio.run(cluster.settled(3))
        yield cluster
        cluster.show()


@pytest_asyncio.fixture
async def clients(cluster: Cluster) -> AsyncIterator[list[Client]]:
    """One client of each replica, which knows no other."""
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(cluster.client(address=replica.address, timeout=PATIENCE))
            for replica in cluster.replicas
        ]
        for client in made:
            await cluster.attached(client)
            await cluster.attached(client, "team")
        yield made


def echo(capability: str = "work.echo@1") -> Graph:
    graph = Graph("echo", output=ref("tasks.t.output"))
    graph.task("t", capability, input=ref("input"))
    return graph


def steps(*them: dict[str, Any]) -> Graph:
    graph = Graph("team", output=ref("tasks.t.output"))
    graph.task("t", "team.script@1", input=list(them))
    return graph


# Shared context.


async def test_a_lost_claim_is_told_to_its_holder_by_whichever_replica_ends_it(
    cluster: Cluster, clients: list[Client]
) -> None:
    shards = await cluster.settled(3)
    runs: list[run_pb2.Run] = []
    while len({cluster.owner(shards, run.run_id).address for run in runs}) < 3 or len(runs) < 6:
        name = f"slow-{len(runs)}"
        never = str(cluster.path("never"))
        # It would find out by itself after an hour, and hold it for ever.
        held = {"do": "claimed", "name": name, "ttl": 1, "renew": False, "until": never}
        runs.append(await clients[len(runs) % 3].submit(steps(held), timeout=PATIENCE))
    for run in runs:
        assert output_of(await clients[0].wait(run.run_id, timeout=PATIENCE)) == ["lost"]


async def test_a_claim_that_is_given_up_in_time_is_lost_by_nobody(clients: list[Client]) -> None:
    held = {"do": "claimed", "name": "brief", "ttl": 60}
    fences = [output_of(await client.submit(steps(held, held), wait=True)) for client in clients]
    numbers = [fence for pair in fences for fence in pair]
    assert numbers == sorted(set(numbers)), "each holder has a greater fence than the one before"


async def test_of_all_that_write_on_several_replicas_each_revision_has_one_winner(clients: list[Client]) -> None:
    """Counting up by compare: what was lost or made twice would show in the sum."""
    rounds = 12
    await clients[0].put_entry("counter", 0)

    async def count(client: Client) -> None:
        for _ in range(rounds):
            while True:
                entry = await client.get_entry("counter")
                with suppress(EntryConflict):
                    await client.put_entry("counter", entry_value(entry) + 1, expected_revision=entry.revision)
                    break

    _, first = await clients[0].snapshot_entries("counter")
    seen: list[list[tuple[int, int]]] = [[] for _ in clients]

    async def watch(place: int) -> None:
        async for event in clients[place].watch_entries("counter", from_revision=first):
            seen[place].append((event.put.revision, entry_value(event.put)))
            if entry_value(event.put) == 3 * rounds:
                return

    async with asyncio.timeout(PATIENCE.total_seconds()):
        await asyncio.gather(*map(count, clients), *(watch(place) for place in range(3)))
    for client in clients:
        assert entry_value(await client.get_entry("counter")) == 3 * rounds
    assert seen[0] == seen[1] == seen[2]
    told = [value for _, value in seen[0]]
    assert told[-3 * rounds :] == list(range(1, 3 * rounds + 1)), "every replica tells the same, in one order"


async def test_only_one_of_all_replicas_gives_a_claim(clients: list[Client]) -> None:
    inside: list[int] = []
    fences: list[int] = []

    async def hold(place: int) -> None:
        for _ in range(4):
            async with clients[place].claim("turns", wait=PATIENCE) as claim:
                inside.append(place)
                fences.append(claim.claim.fence)
                with pytest.raises(ClaimHeld):
                    async with clients[(place + 1) % 3].claim("turns"):
                        pytest.fail("it is held")
                assert inside == [place]
                inside.pop()

    await asyncio.gather(*map(hold, range(3)))
    assert len(fences) == 12 and fences == sorted(set(fences))


# What is shown.


async def test_whoever_watches_agents_sees_them_as_all_replicas_do_and_sees_them_go(
    cluster: Cluster, clients: list[Client]
) -> None:
    shown: list[list[registry_pb2.Agent]] = [[] for _ in clients]

    async def watch(place: int) -> None:
        async for agent in clients[place].watch_agents():
            if agent.name == "visitor":
                shown[place].append(agent)

    watching = [asyncio.create_task(watch(place)) for place in range(3)]
    try:
        visitor = cluster.sidecar("visitor", concurrency=7, prefetch=0, version="9")

        def whole() -> bool:
            return all(part and [one.slots for one in part[-1].instances] == [7] for part in shown)

        await eventually(whole)
        cluster.dismiss(visitor)
        await eventually(lambda: all(part[-1].state == registry_pb2.AGENT_STATE_GONE for part in shown))
        assert all(not part[-1].instances for part in shown)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def test_a_decision_is_explained_wherever_it_was_made(cluster: Cluster) -> None:
    made: set[str] = set()
    for place, replica in enumerate(cluster.replicas):
        async with cluster.client(f"asks-{place}", address=replica.address, timeout=PATIENCE) as client:
            await client.submit(echo("nobody.offers@1"), 1)
    for replica in cluster.replicas:
        async with cluster.client("explains", address=replica.address, timeout=PATIENCE) as client:
            names = [f"client/asks-{place}" for place in range(3)]
            for name in names:
                found = [one async for one in client.list_decisions(principal=name, action="submit")]
                assert found and all(one.decision.permit for one in found)
                by_id = [one async for one in client.list_decisions(decision_id=found[0].decision.decision_id)]
                assert {one.principal for one in by_id} == {found[0].principal}
            whole = [one async for one in client.list_decisions(action="submit")]
            paged = [one async for one in client.list_decisions(action="submit", page_size=1)]
            assert [(one.principal, one.create_time) for one in paged] == [(o.principal, o.create_time) for o in whole]
            times = [one.create_time.ToMicroseconds() for one in whole]
            assert times == sorted(times, reverse=True)
            made |= {one.decision.decision_id for one in whole}
    assert len(made) >= 3


async def test_an_agent_that_works_on_one_thing_at_a_time_serves_three_replicas(
    cluster: Cluster, clients: list[Client]
) -> None:
    shards = await cluster.settled(3)
    single = cluster.sidecar("single", concurrency=1, prefetch=0, version="7")
    graph = echo("work.echo@7")
    runs: list[run_pb2.Run] = []
    while len(runs) < 30 or len({cluster.owner(shards, run.run_id).address for run in runs}) < 3:
        runs.append(await clients[len(runs) % 3].submit(graph, len(runs), timeout=PATIENCE))
    for n, run in enumerate(runs):
        assert output_of(await clients[0].wait(run.run_id, timeout=PATIENCE)) == n
    running = 0
    for entry in journal_of(cluster.journal):
        if entry.agent == "single":
            running += 1 if entry.event == "begun" else -1
            assert running <= 1, "two at once"
    cluster.dismiss(single)


# While shards move, and when a replica is gone. Last: what is there afterwards is not what the others began with.


class Traffic:
    """What goes on while a replica leaves and another one comes; every answer is checked as it comes."""

    def __init__(self, cluster: Cluster, standing: set[str]) -> None:
        self.cluster = cluster
        self.standing = standing
        self.over = asyncio.Event()
        self.lists = self.checkpoints = 0
        self.answers: dict[str, asyncio.Future[run_pb2.Run]] = {}

    async def lists_them(self, client: Client, page_size: int) -> None:
        """Runs that wait all the time are in every list, each once, whatever moves."""
        while not self.over.is_set():
            found = [run.run_id async for run in client.list_runs(labels={"of": "moves"}, page_size=page_size)]
            assert len(found) == len(set(found)), "a run was listed twice"
            assert set(found) == self.standing, "a run was missed"
            self.lists += 1
            await asyncio.sleep(0.05)  # else shards would wait for the lists

    async def checks_audit(self, auditor: Client) -> None:
        """A checkpoint covers what was committed before it was asked for."""
        number = 0
        async with self.cluster.client("audited", timeout=PATIENCE) as client:
            while not self.over.is_set():
                number += 1
                run = await client.submit(echo(), number, wait=True, timeout=PATIENCE)
                checkpoint = await auditor.get_audit_checkpoint()
                chain = f"shard-{run.run_id[1:5]}"
                found = [one async for one in auditor.list_audit_records(chain, newest_first=True)]
                (head,) = (head for head in checkpoint.heads if head.chain == chain)
                ends = [one.seq for one in found if one.action == "end" and one.resource.endswith(run.run_id)]
                assert ends and ends[0] <= head.last_seq
                self.checkpoints += 1

    async def streams(self, client: Client, name: str) -> None:
        number = 0
        async with client.submitter() as submitter:
            while not self.over.is_set():
                request_id = f"{name}-{number}"
                self.answers[request_id] = await submitter.submit(echo(), number, wait=True, request_id=request_id)
                number += 1
                await asyncio.sleep(0.02)
            await asyncio.gather(*(self.answers[f"{name}-{n}"] for n in range(number)))


async def test_while_shards_move_no_list_misses_a_run_and_no_submission_is_lost_or_made_twice(
    cluster: Cluster, clients: list[Client]
) -> None:
    waiting = echo("nobody.ever@1")
    submitted = [await clients[0].submit(waiting, n, labels={"of": "moves"}) for n in range(2 * SHARDS)]
    traffic = Traffic(cluster, {run.run_id for run in submitted})
    leaver = cluster.replicas[2]
    address = cluster.replicas[0].address
    auditor = cluster.client(kind=Kind.OPERATOR, namespace="system", address=address, timeout=PATIENCE)
    async with auditor, asyncio.TaskGroup() as group:
        for number, client in enumerate(clients[:2]):
            group.create_task(traffic.lists_them(client, 20 + number * 100))
            group.create_task(traffic.streams(client, f"stream-{number}"))
        group.create_task(traffic.checks_audit(auditor))
        assert await asyncio.to_thread(leaver.term, 60.0) == 0
        await cluster.settled(2)
        await asyncio.to_thread(leaver.start)
        await cluster.settled(3)
        traffic.over.set()
    print(f"{traffic.lists} lists, {traffic.checkpoints} checkpoints, {len(traffic.answers)} submissions by stream")
    assert traffic.lists and traffic.checkpoints
    runs = {request_id: future.result() for request_id, future in traffic.answers.items()}
    for request_id, run in runs.items():
        assert output_of(run) == int(request_id.rpartition("-")[2])
    assert len({run.run_id for run in runs.values()}) == len(runs)
    done = [entry.idempotency_key for entry in journal_of(cluster.journal) if entry.event == "done"]
    assert len(done) == len(set(done)), "a task that was done was done again"
    for request_id in list(runs)[::20]:  # whoever asks again gets the run that there is
        number = int(request_id.rpartition("-")[2])
        again = await clients[1].submit(echo(), number, wait=True, request_id=request_id)
        assert again.run_id == runs[request_id].run_id


async def test_a_watch_of_agents_goes_on_at_another_replica_when_its_own_is_killed(cluster: Cluster) -> None:
    shown: dict[str, registry_pb2.Agent] = {}

    async def watch(client: Client) -> None:
        async for agent in client.watch_agents():
            shown[agent.name] = agent

    victim, other = cluster.replicas[2], cluster.replicas[0]
    async with cluster.client(address=[victim.address, other.address], patience=PATIENCE) as client:
        watching = asyncio.create_task(watch(client))
        try:
            await eventually(lambda: "worker" in shown)
            victim.kill9()
            cluster.sidecar("late", concurrency=2, prefetch=0, version="11")
            await eventually(lambda: "late" in shown and [one.slots for one in shown["late"].instances] == [2])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
