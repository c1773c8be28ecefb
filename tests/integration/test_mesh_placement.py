"""Who gets a task: versions, labels, cost, schemas, priority, operators, and what happens while nobody is there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import failure_pb2, registry_pb2, run_pb2
from antiphon.v1.run_service_pb2 import ExplainTaskResponse

from tests.harness import AGENT, Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def who(client: Client, capability: str = "work.who@1", **options: Any) -> dict[str, Any]:
    run = await client.submit(one_task(capability, **options), wait=True)
    found: dict[str, Any] = output_of(run)["t"]
    return found


async def reason(client: Client, run: run_pb2.Run) -> str:
    return (await client.get_task(run.run_id, "t")).reason


async def test_no_start_order_a_task_waits_visibly_for_an_agent_that_is_not_there_yet(bare: Mesh) -> None:
    async with bare.client() as client:
        run = await client.submit(one_task("work.echo@1", "patience"))
        assert run.warnings == ["nobody offers work.echo@1 yet; tasks that need it wait"]
        explained = await client.explain(run.run_id, "t")
        assert explained.task.state == run_pb2.TASK_STATE_READY
        assert explained.task.reason == "waits for an agent that offers work.echo@1"
        assert explained.pending.summary == "nobody offers work.echo@1; start an agent that does"
        bare.sidecar()
        assert output_of(await client.wait(run.run_id)) == {"t": "patience"}


async def test_a_task_that_nobody_takes_in_time_fails_as_no_agent(client: Client) -> None:
    run = await client.submit(one_task("work.unheard@1", schedule_timeout=timedelta(milliseconds=200)), wait=True)
    assert (run.state, run.failure.kind) == (run_pb2.RUN_STATE_FAILED, failure_pb2.FAILURE_KIND_NO_AGENT)


async def test_versions_of_a_capability_are_chosen_by_range(client: Client, mesh: Mesh) -> None:
    for number, version in enumerate(("2.1", "2.4", "3")):
        mesh.sidecar(f"v{number}", only="work.who", version=version)
    for number in range(3):
        await mesh.attached(client, f"v{number}")
    for requirement, expected in {
        "work.who@=2.1": {"2.1"},
        "work.who@2.2": {"2.4"},
        "work.who@2": {"2.1", "2.4"},
        "work.who@>=2.2,<4": {"2.4", "3"},
        "work.who@3": {"3"},
        "work.who@1": {"1"},
    }.items():
        assert (await who(client, requirement))["version"] in expected, requirement
    run = await client.submit(one_task("work.who@4"))
    assert "work.who@4" in await reason(client, run)
    await client.cancel(run.run_id)


async def explained_by(client: Client, run: run_pb2.Run, reasons: set[str]) -> ExplainTaskResponse:
    """Why its task waits, once the agents of earlier tests are no longer expected back and these are all reasons."""

    async def told() -> ExplainTaskResponse | None:
        explained = await client.explain(run.run_id, "t")
        return explained if {refusal.reason for refusal in explained.pending.refusals} == reasons else None

    explained: ExplainTaskResponse = await eventually(told)
    return explained


async def test_constraints_are_kept_and_what_fails_them_is_explained(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("europe", labels={"region": "eu", "gpu": "yes"}, only="work.who,work.echo", cost=5)
    mesh.sidecar("asia", labels={"region": "asia"}, only="work.who,work.echo", cost=1)
    await mesh.attached(client, "europe")
    await mesh.attached(client, "asia")
    assert (await who(client, agent_labels={"region": "eu"}))["agent"] == "europe"
    assert (await who(client, agent_labels={"region": "asia"}))["agent"] == "asia"
    assert (await who(client, agent_labels={"region": "eu", "gpu": "yes"}))["agent"] == "europe"
    assert (await who(client, agent_labels={"region": "asia"}, max_cost=1.5))["agent"] == "asia"
    run = await client.submit(one_task("work.who@1", agent_labels={"region": "eu"}, max_cost=1.5))
    explained = await explained_by(client, run, {"constraint", "cost"})
    assert explained.task.state == run_pb2.TASK_STATE_READY
    assert explained.pending.considered == 3
    await client.cancel(run.run_id)


async def test_a_placement_is_recorded_with_its_reasons(client: Client) -> None:
    run = await client.submit(one_task("work.who@1"), wait=True)
    (attempt,) = [one async for one in client.list_attempts(run.run_id, "t")]
    decision = attempt.decision
    assert attempt.agent == "worker" and decision.chosen == attempt.instance
    assert decision.capability == "work.who@1"
    assert decision.policy.permit and "dev.flow" in decision.policy.policies
    assert decision.summary


async def test_the_second_of_two_agents_with_conflicting_schemas_is_refused_with_the_difference(
    client: Client, mesh: Mesh
) -> None:
    script = mesh.path("liar.py")
    script.write_text(
        "from antiphon import Agent\nagent = Agent('liar')\n"
        "@agent.capability('work.double@1')\ndef double(value: str) -> str:\n    return value\nagent.run()\n"
    )
    liar = mesh.sidecar("liar", command=(AGENT[0], str(script)))
    await eventually(lambda: "conflict" in liar.said().lower() or "another schema" in liar.said())
    assert "integer" in liar.said() and "string" in liar.said() and "worker" in liar.said()
    run = await client.submit(one_task("work.double@1", 4), wait=True)
    assert output_of(run) == {"t": 8}


async def test_of_tasks_that_wait_for_one_slot_the_higher_priority_goes_first(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("single", concurrency=1, version="5")
    await mesh.attached(client, "single")
    gate = mesh.path("gate")
    first = await client.submit(one_task("work.hold@5", str(gate)))
    await eventually(lambda: any(e.attempt_id.startswith(first.run_id) for e in journal_of(mesh.journal)))
    low = await client.submit(one_task("work.echo@5", priority=1))
    later = await client.submit(one_task("work.echo@5", priority=1))
    high = await client.submit(one_task("work.echo@5", priority=1), priority=5)
    highest = await client.submit(one_task("work.echo@5", priority=9))
    assert (await client.get_task(low.run_id, "t")).state == run_pb2.TASK_STATE_READY
    gate.touch()
    runs = [highest, high, low, later]
    for run in runs:
        assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    begun = [e.attempt_id.partition("/")[0] for e in journal_of(mesh.journal) if e.event == "begun"]
    assert sorted(runs, key=lambda run: begun.index(run.run_id)) == runs


async def test_an_agent_never_has_more_at_work_than_its_concurrency(client: Client, mesh: Mesh) -> None:
    mesh.sidecar("narrow", concurrency=2, prefetch=3, version="6")
    await mesh.attached(client, "narrow")
    graph = Graph("many")
    graph.task("each", "work.sleep@6", for_each="input")
    assert output_of(await client.submit(graph, [0.002] * 60, wait=True))["each"] == [0.002] * 60
    open_now = most = 0
    for entry in journal_of(mesh.journal):
        if entry.agent == "narrow":
            open_now += 1 if entry.event == "begun" else -1
            most = max(most, open_now)
    assert most == 2


async def test_a_suspended_agent_gets_nothing_until_it_is_resumed(client: Client, mesh: Mesh) -> None:
    async with mesh.operator() as operator:
        suspended = await operator.suspend_agent("worker")
        assert suspended.state == registry_pb2.AGENT_STATE_SUSPENDED
        run = await client.submit(one_task("work.echo@1", "later"))
        explained = await explained_by(client, run, {"suspended"})
        assert explained.task.state == run_pb2.TASK_STATE_READY
        assert (await operator.resume_agent("worker")).state == registry_pb2.AGENT_STATE_ACTIVE
        assert output_of(await client.wait(run.run_id)) == {"t": "later"}


async def test_a_draining_agent_finishes_what_it_has_and_gets_no_more(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    held = await client.submit(one_task("work.hold@1", str(gate)))
    await eventually(lambda: any(e.attempt_id.startswith(held.run_id) for e in journal_of(mesh.journal)))
    async with mesh.operator() as operator:
        assert (await operator.drain_agent("worker")).state == registry_pb2.AGENT_STATE_DRAINING
        waiting = await client.submit(one_task("work.echo@1", "later"))
        gate.touch()
        assert output_of(await client.wait(held.run_id)) == {"t": "released"}
        assert (await client.get_task(waiting.run_id, "t")).state == run_pb2.TASK_STATE_READY
        await operator.resume_agent("worker")
        assert output_of(await client.wait(waiting.run_id)) == {"t": "later"}


async def test_two_instances_of_an_agent_share_its_work_and_one_may_die(client: Client, mesh: Mesh) -> None:
    pair = [mesh.sidecar("pair", version="7", concurrency=2, prefetch=0) for _ in range(2)]
    await mesh.attached(client, "pair", instances=2)
    graph = Graph("shared")
    graph.task("each", "work.who@7", for_each="input", retry=[Retry(["LOST"], backoff=timedelta(milliseconds=10))])
    run = await client.submit(graph, list(range(100)), wait=True)
    assert len({one["pid"] for one in output_of(run)["each"]}) == 2
    pair[0].kill_agent()
    run = await client.submit(graph, list(range(20)), wait=True)
    assert len(output_of(run)["each"]) == 20
