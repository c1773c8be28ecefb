"""Tasks that several agents do, and results that are used again; every part a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from antiphon import Client, Graph, Hedge, Quorum, output_of, ref
from antiphon.v1 import failure_pb2, run_pb2

from tests.harness import Mesh, eventually
from tests.harness.journal import Entry, journal_of

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Mesh]:
    """A mesh with three agents, one of them with two instances."""
    with Mesh() as mesh:
        for name in ("worker", "second", "third", "worker"):
            mesh.sidecar(name)
        yield mesh
        mesh.show()


@pytest_asyncio.fixture
async def client(crowd: Mesh) -> AsyncIterator[Client]:
    async with crowd.client() as client:
        await crowd.attached(client, instances=2)
        for name in ("second", "third"):
            await crowd.attached(client, name)
        yield client


def who(quorum: Quorum) -> Graph:
    """Asks several agents who they are."""
    graph = Graph("who", output=ref("tasks.who.output"))
    graph.task("who", "work.who@1", quorum=quorum)
    return graph


async def members(client: Client, run: run_pb2.Run) -> list[run_pb2.Task]:
    return [task async for task in client.list_tasks(run.run_id, include_payloads=True) if task.key.member]


def at(mesh: Mesh, run: run_pb2.Run, event: str) -> list[Entry]:
    return [entry for entry in journal_of(mesh.journal) if entry.event == event and run.run_id in entry.attempt_id]


async def test_agents_that_differ_are_asked_and_the_first_answer_that_enough_agree_on_is_used(client: Client) -> None:
    run = await client.submit(who(Quorum(2, of=3, condition="output.version == other.version")), wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    told = (await client.explain(run.run_id, "who")).task
    (group,) = told.agreement.groups
    assert len(group.members) == 2
    ended = {
        member: (await client.explain(run.run_id, "who", member)).attempts[-1].end_time.ToNanoseconds()
        for member in group.members
    }
    assert ended[told.agreement.chosen] == min(ended.values())
    attempts = [
        attempt
        for member in await members(client, run)
        for attempt in (await client.explain(run.run_id, "who", member.key.member)).attempts
    ]
    assert len({attempt.agent for attempt in attempts}) == len(attempts) == 3
    assert output_of(run)["attempt_id"].split("/")[2] == str(told.agreement.chosen)


async def test_agents_that_disagree_make_no_quorum_and_the_record_says_who_said_what(client: Client) -> None:
    run = await client.submit(who(Quorum(2, of=3, condition="output.agent == other.agent")), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_NO_QUORUM
    assert "2 of 3 must agree; answers that agree: 1, 1, 1" in run.failure.message
    told = (await client.explain(run.run_id, "who")).task
    assert sorted(list(group.members) for group in told.agreement.groups) == [[1], [2], [3]]
    answers = [member.output.inline for member in await members(client, run)]
    assert all(any(f'"agent":"{name}"'.encode() in answer for answer in answers) for name in ("second", "third"))


async def test_a_slow_agent_is_overtaken_by_a_second_instance_and_told_to_stop(
    client: Client, crowd: Mesh, tmp_path: Path
) -> None:
    graph = Graph("race", output=ref("tasks.race.output"))
    graph.task("race", "work.race@1", input=str(tmp_path / "never"), hedge=Hedge(timedelta(milliseconds=50)))
    run = await client.submit(graph, wait=True)
    assert output_of(run) == "member 2"

    async def stopped() -> bool:
        return bool(at(crowd, run, "cancelled"))

    await eventually(stopped)
    begun = at(crowd, run, "begun")
    assert len({entry.pid for entry in begun}) == 2 and len({entry.idempotency_key for entry in begun}) == 1
    told = (await client.explain(run.run_id, "race")).task
    assert (told.agreement.chosen, told.agreement.cancelled) == (2, 1)


async def test_a_result_is_used_again_by_other_runs_and_nobody_is_asked(client: Client, crowd: Mesh) -> None:
    graph = Graph("pure", output=ref("tasks.pure.output"))
    graph.task("pure", "work.pure@1", input=ref("input"), cache=DAY)
    first = await client.submit(graph, {"number": 7}, wait=True)
    again = await client.submit(graph, {"number": 7}, wait=True)
    assert output_of(again) == output_of(first) and not at(crowd, again, "begun")
    told = (await client.explain(again.run_id, "pure")).task
    assert told.reused.origin_attempt_id == f"{first.run_id}/pure/0/1"
    assert told.reused.decision.policy.permit and told.reused.release.permit
    events = [event async for event in client.watch(again.run_id)]
    assert [event.origin_attempt_id for event in events if event.origin_attempt_id] == [f"{first.run_id}/pure/0/1"]
    other = await client.submit(graph, {"number": 8}, wait=True)
    assert output_of(other)["attempt_id"].startswith(other.run_id)


async def test_what_is_not_declared_so_is_neither_hedged_nor_used_again(client: Client) -> None:
    graph = Graph("not", version="1")
    graph.task("a", "work.echo@1", hedge=Hedge(DAY))
    graph.task("b", "work.race@1", cache=DAY)
    found = await client.validate_graph(graph)
    assert [(mistake.field, mistake.message) for mistake in found.mistakes] == [
        ("tasks[0].hedge", "no agent that offers work.echo@1 now declares it idempotent, and hedge needs that"),
        ("tasks[1].cache", "no agent that offers work.race@1 now declares it pure, and cache needs that"),
    ]
