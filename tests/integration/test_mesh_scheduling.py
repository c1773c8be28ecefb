"""Limits of policy and breakers of instances over real processes: what they hold back, and what people see of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from antiphon import Client, Graph, Retry
from antiphon.v1 import registry_pb2, run_pb2

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"
LIMITED = """
@id("quota")
@obligation("limit")
{limit}
permit (principal, action == Action::"dispatch", resource)
when {{ resource.name == "{capability}" }};
"""


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.operator() as made:
        yield made
        await activate(made)


async def activate(operator: Client, *more: str) -> None:
    files = {path.name: path.read_text() for path in PROFILE.iterdir()}
    files |= {f"more{number}.cedar": text for number, text in enumerate(more)}
    await operator.activate_policies(files, expected_epoch=(await operator.get_policy()).epoch)


def graph(capability: str, members: int) -> Graph:
    made = Graph("many")
    made.task("t", capability, for_each=str(list(range(members))), input="${input}")
    return made


def begun(mesh: Mesh, run: run_pb2.Run) -> int:
    return sum(e.event == "begun" and e.attempt_id.startswith(run.run_id) for e in journal_of(mesh.journal))


async def test_no_more_attempts_are_out_than_a_limit_lets_until_it_is_lifted(
    mesh: Mesh, client: Client, operator: Client
) -> None:
    await activate(operator, LIMITED.format(limit='@concurrent("2") @per("capability")', capability="work.hold"))
    gate = mesh.path("gate")
    run = await client.submit(graph("work.hold@1", 6), str(gate))
    await eventually(lambda: begun(mesh, run) == 2)

    async def waits() -> str | None:
        for member in range(1, 7):
            told = await client.explain(run.run_id, "t", member)
            if told.pending.summary.startswith("policy quota"):
                return told.pending.summary
        return None

    summary = await eventually(waits)
    assert summary == "policy quota limits it: 2 of 2 attempts are out; 4 tasks wait"
    assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_RUNNING
    assert begun(mesh, run) == 2
    await activate(operator)
    await eventually(lambda: begun(mesh, run) == 6)
    gate.touch()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_what_a_rate_holds_back_goes_by_itself_as_time_goes_by(
    mesh: Mesh, client: Client, operator: Client
) -> None:
    await activate(operator, LIMITED.format(limit='@rate("20/s") @burst("1")', capability="work.echo"))
    run = await client.submit(graph("work.echo@1", 12), 1, wait=True)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    attempts = [
        one for member in range(1, 13) async for one in client.list_attempts(run.run_id, "t", member)
    ]  # fmt: skip
    assert {"limit(quota,rate=20/s,burst=1)"} == {text for one in attempts for text in one.decision.policy.obligations}
    offered = sorted(one.offer_time.ToNanoseconds() for one in attempts)
    # Not how quick it is: what must not be, eleven more than the burst before eleven tokens came.
    assert offered[-1] - offered[0] >= 10 * 1_000_000_000 / 20


async def test_an_instance_that_fails_again_and_again_gets_nothing_for_a_while_and_everybody_sees_why(
    mesh: Mesh, client: Client
) -> None:
    mesh.sidecar("flaky", version="7")
    await mesh.attached(client, "flaky")
    failing = Graph("failing")
    once = [Retry(["TRANSIENT"], max_attempts=1)]
    how = {"kind": "transient"}
    failing.task("t", "work.fail@7", for_each=str([0] * 12), input=how, retry=once, on_failure="continue")
    await client.submit(failing, wait=True)

    async def opened() -> registry_pb2.Instance | None:
        (one,) = (await client.get_agent("flaky")).instances
        return one if one.breaker.openings else None

    one = await eventually(opened)
    assert "attempts failed, the last one with TRANSIENT" in one.breaker.reason
    good = await asyncio.gather(*(client.submit(graph("work.echo@7", 1), 1, wait=True) for _ in range(3)))
    assert {run.state for run in good} == {run_pb2.RUN_STATE_SUCCEEDED}
    (one,) = (await client.get_agent("flaky")).instances
    assert one.breaker.state == registry_pb2.BREAKER_STATE_CLOSED
