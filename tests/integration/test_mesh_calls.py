"""Calls from agent to agent: they carry on whose behalf, do not block their own callers, and are made once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import run_pb2

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def test_a_call_carries_principal_chain_and_trace_of_its_caller(client: Client) -> None:
    run = await client.submit(one_task("work.call@1", {"capability": "work.who@1"}), wait=True)
    callee = output_of(run)["t"]
    assert callee["principal"] == run.principal
    assert callee["delegation"] == [f"{run.run_id}/t/0/1"]
    assert callee["traceparent"].split("-")[1] == run.traceparent.split("-")[1]


async def test_the_run_of_a_call_names_the_attempt_that_made_it(client: Client) -> None:
    run = await client.submit(one_task("work.call@1", {"capability": "work.who@1"}), wait=True)
    child = await client.get_run(output_of(run)["t"]["attempt_id"].partition("/")[0])
    assert child.parent_attempt_id == f"{run.run_id}/t/0/1"
    assert child.state == run_pb2.RUN_STATE_SUCCEEDED
    for parent in (run.run_id, child.parent_attempt_id):
        assert [one.run_id async for one in client.list_runs(parent=parent)] == [child.run_id]
    assert [one async for one in client.list_runs(parent=child.run_id)] == []


async def test_parent_and_child_on_one_agent_with_one_place_do_not_block_each_other(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("single", concurrency=1, version="5")
    await mesh.attached(client, "single")
    deep = {"capability": "work.call@5", "input": {"capability": "work.call@5", "input": {"capability": "work.who@5"}}}
    runs = [await client.submit(one_task("work.call@5", deep)) for _ in range(3)]
    for run in runs:
        ended = await client.wait(run.run_id, timeout=timedelta(seconds=10))
        assert len(output_of(ended)["t"]["delegation"]) == 3


async def test_the_same_call_of_a_later_attempt_is_answered_from_the_record(client: Client, mesh: Mesh) -> None:
    how = {"capability": "work.who@1", "call_id": "mine", "fail_after": 2}
    rule = Retry(["TRANSIENT"], max_attempts=3, backoff=timedelta(milliseconds=10))
    run = await client.submit(one_task("work.call@1", how, retry=[rule]), wait=True)
    callee = output_of(run)["t"]
    assert (await client.get_task(run.run_id, "t")).attempt_count == 3
    assert callee["delegation"] == [f"{run.run_id}/t/0/1"]
    made = [e for e in journal_of(mesh.journal) if e.event == "begun" and e.attempt_id == callee["attempt_id"]]
    assert len(made) == 1


async def test_a_call_that_failed_is_made_anew_by_a_later_attempt_also_when_it_is_archived(client: Client) -> None:
    failing = {"capability": "work.fail@1", "input": {"kind": "permanent"}, "strict": True}
    run = await client.submit(one_task("work.call@1", failing, on_failure="escalate"))

    async def asks(attempts: int) -> bool:
        task = await client.get_task(run.run_id, "t")
        return task.state == run_pb2.TASK_STATE_ESCALATED and task.attempt_count == attempts

    async def made() -> list[run_pb2.Run]:
        return [one async for one in client.list_runs(parent=run.run_id)]

    await eventually(lambda: asks(1))
    (first,) = await made()
    # What an archive has is no longer counted by the shard, and lists of it hold no totals.
    await eventually(lambda: _archived(client, run.run_id))
    await client.retry(run.run_id, "t")
    await eventually(lambda: asks(2))
    again = [one for one in await made() if one.run_id != first.run_id]
    assert [one.parent_attempt_id for one in again] == [f"{run.run_id}/t/0/2"]
    await client.cancel(run.run_id)


async def _archived(client: Client, parent: str) -> bool:
    return all([not one.totals.total async for one in client.list_runs(parent=parent)])


async def test_a_call_made_before_a_crash_of_the_orchestrator_is_answered_after_it(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.call@1", {"capability": "work.hold@1", "input": str(gate)}))
    await eventually(lambda: sum(e.event == "begun" for e in journal_of(mesh.journal) if "hold" in e.capability))
    mesh.orchestrator.restart()
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    assert (await client.get_task(run.run_id, "t")).attempt_count == 1


async def test_calls_that_nest_without_end_are_refused(client: Client) -> None:
    run = await client.submit(one_task("work.recurse@1", 1), wait=True)
    assert output_of(run)["t"] == {"depth": 17, "code": "CALL_TOO_DEEP"}  # 16 attempts above it, and no more


async def test_a_call_that_goes_round_with_the_same_input_is_refused_at_once(client: Client) -> None:
    run = await client.submit(one_task("work.recurse@1", -1), wait=True)
    assert output_of(run)["t"] == {"depth": -1, "code": "CALL_REPEATED"}
    task = await client.get_task(run.run_id, "t")
    assert not task.children, "it was not begun"


async def test_calls_are_in_the_record_of_their_task(client: Client) -> None:
    run = await client.submit(one_task("work.call@1", {"capability": "work.who@1", "call_id": "mine"}), wait=True)
    task = await client.get_task(run.run_id, "t")
    assert [(child.name, child.call_id, child.attempt) for child in task.children] == [("work.who@1", "mine", 1)]
    assert output_of(run)["t"]["attempt_id"].startswith(task.children[0].run_id)


async def test_a_call_to_nobody_ends_with_its_timeout_and_the_caller_is_told(client: Client) -> None:
    run = await client.submit(one_task("work.call@1", {"capability": "work.unheard@1", "timeout": 0.3}), wait=True)
    assert "deadline" in output_of(run)["t"]["failed"]


async def test_a_failed_call_tells_its_caller_why(client: Client) -> None:
    how = {"capability": "work.fail@1", "input": {"kind": "permanent"}}
    run = await client.submit(one_task("work.call@1", how), wait=True)
    assert output_of(run)["t"]["failed"] == "asked-for"


async def test_a_capability_that_makes_no_sense_is_refused(client: Client) -> None:
    run = await client.submit(one_task("work.call@1", {"capability": "No Such Thing"}), wait=True)
    assert output_of(run)["t"]["failed"] == "REQUEST_INVALID"
