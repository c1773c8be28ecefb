"""Runs beneath tasks on a real mesh: graphs that run graphs, agents that answer with one, and what is seen of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antiphon import Client, Graph, GraphInvalid, output_of, ref
from antiphon.v1 import failure_pb2, graph_pb2, run_pb2
from google.protobuf.json_format import ParseDict

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)


def above(graph: str, input: Any = None) -> Graph:
    made = Graph("above")
    made.sub_run("below", graph, input=input)
    made.task("after", "work.echo@1", input={"got": ref("tasks.below.output")})
    return made


def below(name: str, capability: str, version: str = "1") -> Graph:
    made = Graph(name, version=version)
    made.task("work", capability, input=ref("input"))
    return made


async def test_a_graph_runs_a_graph_and_both_say_so(client: Client) -> None:
    await client.register_graph(below("both", "work.echo@1", "1"))
    await client.register_graph(below("both", "work.who@1", "2"))
    run = await client.submit(above("both@1", "hello"), wait=True)
    assert output_of(run) == {"after": {"got": {"work": "hello"}}}
    task = await client.get_task(run.run_id, "below")
    assert (task.graph, task.child_count, task.attempt_count) == ("both@1", 1, 0)
    child = await client.get_run(task.children[0].run_id)
    assert (child.graph_name, child.graph_version, child.principal) == ("both", "1", run.principal)
    assert child.parent_attempt_id == f"{run.run_id}/below/0/0"
    assert child.child_kind == run_pb2.CHILD_KIND_GRAPH
    assert {child.run_id, run.run_id} <= {found.run_id async for found in client.list_runs()}
    newest = await client.submit(above("both"), wait=True)
    assert output_of(newest)["after"]["got"]["work"]["principal"] == run.principal, "the newest version asks who it is"
    assert [found.run_id async for found in client.list_runs(graph="both@1")] == [child.run_id]
    assert len([found async for found in client.list_runs(graph="both")]) == 2
    assert [found async for found in client.list_runs(graph="both@3")] == []


async def test_an_agent_answers_with_a_graph_and_goes_on_to_its_next_task(client: Client) -> None:
    steps = [
        {"id": "a", "capability": "work.echo@1", "input": 1},
        {"id": "b", "capability": "work.echo@1", "input": "${tasks.a.output + 1}"},
        {"id": "c", "capability": "work.echo@1", "input": "${input.by}", "needs": ["b"]},
    ]
    graph = Graph("one")
    graph.task("t", "work.plan@1", input=json.loads(json.dumps(steps).replace("${", "$${")))
    run = await client.submit(graph, wait=True)
    assert output_of(run) == {"t": {"c": f"{run.run_id}/t/0/1"}}
    task = await client.get_task(run.run_id, "t")
    assert [(child.kind, child.name, child.attempt) for child in task.children] == [
        (run_pb2.CHILD_KIND_ANSWER, "steps", 1)
    ]
    child = await client.get_run(task.children[0].run_id)
    assert (child.graph_name, child.parent_attempt_id) == ("one", f"{run.run_id}/t/0/1")
    events = [update async for update in client.watch(run.run_id)]
    assert any(event.child.run_id == child.run_id for event in events)


async def test_a_graph_with_mistakes_is_a_failure_that_names_each(client: Client) -> None:
    steps = [
        {"id": "a", "capability": "work.echo@1", "needs": ["nobody"]},
        {"id": "a", "capability": "no such thing"},
    ]
    graph = Graph("one")
    graph.task("t", "work.plan@1", input=steps)
    run = await client.submit(graph, wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT and run.failure.code == "GRAPH_INVALID"
    for said in ("has 3 mistakes", "tasks[0].needs[0]: ", "tasks[1].id: ", "tasks[1].capability: "):
        assert said in run.failure.message
    graph = Graph("one")
    graph.task("t", "work.plan@1", input=[{"id": "no id", "capability": "work.echo@1"}])
    run = await client.submit(graph, wait=True)
    assert "tasks[0].id: " in run.failure.message, (
        "rules of fields hurt the attempt alone, not the stream of its sidecar"
    )


NESTED = "input"
for _ in range(20):
    NESTED = f"[1].map(x, {NESTED})"


async def test_no_graph_that_an_agent_answers_ends_the_orchestrator(client: Client, mesh: Mesh) -> None:
    graph = Graph("one")
    graph.task("t", "work.write@1", input=ref("input"))
    for hostile, said in (
        ({"forEach": NESTED}, "tasks[0].for_each: is nested too deeply"),
        ({"input": "\"${'\\ud800'}\""}, "tasks[0].input: ${'\\ud800'} holds half of a surrogate pair"),
        ({"input": '{"\\ud800": "${"}'}, "tasks[0].input: /\\ud800: the ${ at character 1 has no closing }"),
    ):
        steps = {"name": "steps", "tasks": [{"id": "a", "capability": "work.echo@1", **hostile}]}
        run = await client.submit(graph, steps, wait=True)
        assert run.failure.code == "GRAPH_INVALID" and said in run.failure.message
        inline = ParseDict(steps, graph_pb2.Graph())
        with pytest.raises(GraphInvalid) as refused:
            await client.submit(inline)
        assert said in str(refused.value)
    assert mesh.orchestrator.alive


async def test_a_graph_that_nobody_registered_fails_its_task(client: Client) -> None:
    run = await client.submit(above("nowhere@7"), wait=True)
    assert list(run.warnings) == ["the graph nowhere@7 is not registered yet; tasks that run it fail"]
    assert run.failure.code == "GRAPH_NOT_FOUND"
    assert "the graph nowhere@7 is not registered in this namespace" in run.failure.message


async def test_a_sub_run_goes_on_after_a_crash_of_the_orchestrator(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    await client.register_graph(below("held", "work.hold@1"))
    run = await client.submit(above("held", str(gate)))
    await eventually(lambda: sum(e.event == "begun" for e in journal_of(mesh.journal) if "hold" in e.capability))
    mesh.orchestrator.restart()
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"after": {"got": {"work": "released"}}}
    child = (await client.get_task(run.run_id, "below")).children[0].run_id
    assert (await client.get_task(child, "work")).attempt_count == 1


async def test_a_cancel_goes_down_and_stops_the_agent(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("never")
    await client.register_graph(below("stopped", "work.hold@1"))
    run = await client.submit(above("stopped", str(gate)))

    async def begun() -> bool:
        task = await client.get_task(run.run_id, "below")
        return bool(task.children) and (await client.get_run(task.children[0].run_id)).totals.running == 1

    await eventually(begun)
    await client.cancel(run.run_id)
    child = (await client.get_task(run.run_id, "below")).children[0].run_id
    assert (await client.wait(child)).state == run_pb2.RUN_STATE_CANCELLED


async def test_a_failure_far_below_says_the_way_to_it(client: Client) -> None:
    graph = Graph("one")
    graph.task("t", "work.plan@1", input=[{"id": "a", "capability": "work.plan@1", "input": []}])
    run = await client.submit(graph, wait=True)
    assert run.failure.code == "GRAPH_INVALID", "an empty graph is none"
    assert "task t: run r" in run.failure.message and ": task a: the graph that" in run.failure.message
