"""What people do with runs that are under way, and graphs that wait for them; every part a process."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from antiphon import (
    Client,
    Compensate,
    Graph,
    GraphInvalid,
    RequestIdReused,
    RunEnded,
    RunNotFound,
    SignalNotExpected,
    TaskNotFound,
    TaskStateConflict,
    Until,
    output_of,
    ref,
)
from antiphon.v1 import failure_pb2, run_pb2
from antiphon_certs import Kind

from tests.harness import Mesh, eventually

pytest_plugins = ("tests.harness.fixtures",)

LONG = timedelta(hours=1)


async def state_of(client: Client, run: run_pb2.Run, task_id: str, member: int = 0) -> str:
    task = await client.get_task(run.run_id, task_id, member)
    return run_pb2.TaskState.Name(task.state).removeprefix("TASK_STATE_")


async def reaches(client: Client, run: run_pb2.Run, task_id: str, state: str, member: int = 0) -> None:
    async def look() -> bool:
        return await state_of(client, run, task_id, member) == state

    await eventually(look)


def approval() -> Graph:
    """Waits for a person, who says what the last task is given."""
    graph = Graph("approval", output=ref("tasks.publish.output"))
    graph.task("write", "work.echo@1", input=ref("input"))
    graph.wait("approved", signal="approved", needs=["write"], deadline=LONG)
    graph.task(
        "publish", "work.echo@1", input={"text": ref("tasks.write.output"), "by": ref("tasks.approved.output.by")}
    )
    return graph


async def test_a_signal_is_the_output_of_the_task_that_waits_for_it(client: Client) -> None:
    run = await client.submit(approval(), "draft")
    await reaches(client, run, "approved", "WAITING")
    told = await client.explain(run.run_id, "approved")
    assert told.task.reason == "waits for signal approved"
    answer = await client.signal(run.run_id, "approved", {"by": "olga"})
    assert answer.key.task_id == "approved"
    assert output_of(await client.wait(run.run_id)) == {"text": "draft", "by": "olga"}
    signals = [event async for event in client.watch(run.run_id) if event.signal]
    assert [event.signal for event in signals] == ["approved"]


async def test_runs_that_wait_for_a_signal_are_listed_with_its_name_also_after_a_restart(
    client: Client, mesh: Mesh
) -> None:
    labels = {"set": "signals"}

    async def listed(**wanted: bool) -> list[tuple[str, list[str]]]:
        found = client.list_runs(labels=labels, page_size=2, **wanted)
        return [(run.run_id, list(run.awaited_signals)) async for run in found]

    asks = Graph("asks")
    asks.task("a", "work.fail@1", input={"kind": "permanent"}, on_failure="escalate")
    runs = [await client.submit(approval(), n, labels=labels) for n in range(5)]
    for run in runs:
        await reaches(client, run, "approved", "WAITING")
    asking = await client.submit(asks, labels=labels)
    await reaches(client, asking, "a", "ESCALATED")
    await client.signal(runs[2].run_id, "approved", {"by": "olga"})
    await client.wait(runs[2].run_id)
    expected = [(run.run_id, ["approved"]) for run in reversed(runs) if run is not runs[2]]
    for restarted in (False, True):
        if restarted:
            mesh.orchestrator.restart()
        assert await listed(waiting_for_signal=True) == expected
        assert await listed(waiting_for_person=True) == [(asking.run_id, [])]
        assert await listed(waiting_for_person=True, waiting_for_signal=True) == [(asking.run_id, []), *expected]
        assert (await client.get_run(runs[0].run_id)).awaited_signals == ["approved"]
    await client.cancel(runs[0].run_id)
    assert await listed(waiting_for_signal=True) == expected[:-1]


async def test_a_signal_that_comes_early_survives_a_crash_and_is_one_however_often_it_is_sent(
    client: Client, mesh: Mesh
) -> None:
    graph = Graph("early", output=ref("tasks.b.output"))
    graph.wait("a", signal="first")
    graph.wait("b", signal="second", needs=["a"])
    run = await client.submit(graph)
    for _ in range(2):
        answer = await client.signal(run.run_id, "second", "kept", request_id="one")
        assert not answer.HasField("key")
    with pytest.raises(RequestIdReused):
        await client.signal(run.run_id, "second", "other", request_id="one")
    mesh.orchestrator.kill9()
    mesh.orchestrator.start()
    await client.signal(run.run_id, "first")
    assert output_of(await client.wait(run.run_id)) == "kept"
    # Archived, the run still knows it.
    answer = await client.signal(run.run_id, "second", "kept", request_id="one")
    assert answer.key.task_id == "b"
    with pytest.raises(RunEnded):
        await client.signal(run.run_id, "second", "another")


async def test_what_nobody_waits_for_and_whoever_may_not_are_refused(client: Client, mesh: Mesh) -> None:
    run = await client.submit(approval(), "draft")
    with pytest.raises(SignalNotExpected, match="approve; its graph knows approved"):
        await client.signal(run.run_id, "approve")
    async with mesh.client("eve", namespace="other") as stranger:
        with pytest.raises(RunNotFound):
            await stranger.signal(run.run_id, "approved")
    async with mesh.client("olga", kind=Kind.OPERATOR) as operator:
        await operator.signal(run.run_id, "approved", {"by": "operator"})
    assert output_of(await client.wait(run.run_id)) == {"text": "draft", "by": "operator"}


async def test_a_task_waits_for_a_time_or_until_a_moment(client: Client) -> None:
    graph = Graph("times", output=[ref("tasks.time.state"), ref("tasks.moment.state"), ref("tasks.past.state")])
    graph.wait("time", time=timedelta(milliseconds=30))
    graph.wait("moment", moment="timestamp(input.at)")
    graph.wait("past", moment="timestamp(input.at) - duration('24h')")
    soon = datetime.now(UTC) + timedelta(milliseconds=100)
    run = await client.submit(graph, {"at": soon.isoformat()}, wait=True)
    assert output_of(run) == ["SUCCEEDED"] * 3
    assert run.end_time.ToDatetime(UTC) >= soon


async def test_a_wait_that_is_too_long_is_a_timeout_of_its_task(client: Client) -> None:
    graph = Graph("late", output=ref("tasks.after.output"))
    graph.wait("go", signal="go", deadline=timedelta(milliseconds=50), on_failure="continue")
    graph.task("after", "work.echo@1", input={"why": ref("tasks.go.failure.kind")})
    run = await client.submit(graph, wait=True)
    assert output_of(run) == {"why": "TIMEOUT"}


async def test_a_loop_works_on_what_it_made_before_until_its_condition_holds(client: Client) -> None:
    graph = Graph("doubling", output={"made": ref("tasks.grow.output")})
    start = "previous == null ? input : previous"
    graph.task(
        "grow", "work.double@1", input=ref(start), until=Until("output >= 100 && iteration > 1", max_iterations=10)
    )
    run = await client.submit(graph, 3, wait=True)
    assert output_of(run) == {"made": 192}
    node, *iterations = [task async for task in client.list_tasks(run.run_id, include_payloads=True)]
    assert node.member_count == 6
    assert [int(task.output.inline) for task in iterations] == [6, 12, 24, 48, 96, 192]
    began = [event.member_count async for event in client.watch(run.run_id) if event.member_count]
    assert began == [1, 2, 3, 4, 5, 6]


async def test_a_loop_that_never_holds_is_bounded(client: Client) -> None:
    graph = Graph("endless")
    graph.task("grow", "work.echo@1", until=Until("false", max_iterations=3))
    run = await client.submit(graph, wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert (run.failure.kind, run.failure.code) == (failure_pb2.FAILURE_KIND_PERMANENT, "ITERATIONS_EXHAUSTED")


async def test_a_paused_run_waits_for_its_resumption_also_after_a_crash(client: Client, mesh: Mesh) -> None:
    graph = Graph("held", output=ref("tasks.b.output"))
    graph.wait("a", signal="go")
    graph.task("b", "work.echo@1", input="done", needs=["a"])
    run = await client.submit(graph)
    for _ in range(2):
        assert (await client.pause(run.run_id, "look first")).state == run_pb2.RUN_STATE_PAUSED
    await client.signal(run.run_id, "go")
    held = (await client.get_run(run.run_id)).paused
    assert (held.principal, held.reason) == (run.principal, "look first")
    assert run.create_time.ToNanoseconds() < held.create_time.ToNanoseconds()
    mesh.orchestrator.kill9()
    mesh.orchestrator.start()
    assert (await client.get_run(run.run_id)).paused == held
    paused = [one.run_id async for one in client.list_runs(states=[run_pb2.RUN_STATE_PAUSED])]
    assert paused == [run.run_id]
    assert (await state_of(client, run, "a"), await state_of(client, run, "b")) == ("SUCCEEDED", "PENDING")
    resumed = await client.resume(run.run_id)
    assert (resumed.state, resumed.HasField("paused")) == (run_pb2.RUN_STATE_RUNNING, False)
    assert output_of(await client.wait(run.run_id)) == "done"
    with pytest.raises(RunEnded):
        await client.pause(run.run_id)
    seen = [event.run_state async for event in client.watch(run.run_id) if event.run_state]
    assert seen == [1, 5, 1, 2]


async def test_who_asked_for_the_end_of_a_run_is_told_while_it_ends_and_when_it_is_archived(
    client: Client, mesh: Mesh
) -> None:
    graph = Graph("cut")
    graph.wait("a", signal="go")
    run = await client.submit(graph)
    assert not run.HasField("cancelled")
    asked = (await client.cancel(run.run_id, "no longer needed")).cancelled
    assert (asked.principal, asked.reason) == (run.principal, "no longer needed")
    assert run.create_time.ToNanoseconds() < asked.create_time.ToNanoseconds()
    mesh.orchestrator.restart()
    ended = await client.get_run(run.run_id)
    assert (ended.state, ended.cancelled) == (run_pb2.RUN_STATE_CANCELLED, asked)


async def test_a_task_that_nobody_wants_any_more_is_cancelled_with_its_attempt_and_what_needs_it(
    client: Client,
) -> None:
    graph = Graph("part", output={"kept": ref("tasks.kept.output")})
    graph.task("slow", "work.sleep@1", input=3600)
    graph.task("after", "work.echo@1", input=ref("tasks.slow.output"))
    graph.task("kept", "work.echo@1", input=1)
    run = await client.submit(graph)
    await reaches(client, run, "slow", "RUNNING")
    task = await client.cancel_task(run.run_id, "slow", dependents=True, reason="not needed")
    assert task.state == run_pb2.TASK_STATE_CANCELLED and "not needed" in task.reason
    assert output_of(await client.wait(run.run_id)) == {"kept": 1}
    attempts = [attempt async for attempt in client.list_attempts(run.run_id, "slow")]
    assert [attempt.state for attempt in attempts] == [run_pb2.ATTEMPT_STATE_CANCELLED]
    assert await state_of(client, run, "after") == "CANCELLED"


async def test_a_failed_task_is_tried_again_by_hand_while_its_run_goes_on(client: Client) -> None:
    graph = Graph("again", output=ref("tasks.after.output"))
    graph.task("bad", "work.fail@1", input={"kind": "permanent", "times": 1})
    graph.task("after", "work.echo@1", input={"tries": ref("tasks.bad.output")})
    graph.wait("open", signal="enough")
    run = await client.submit(graph)
    await reaches(client, run, "after", "SKIPPED")
    await client.retry(run.run_id, "bad", reason="mended")
    await reaches(client, run, "after", "SUCCEEDED")
    with pytest.raises(TaskStateConflict):
        await client.retry(run.run_id, "after")
    with pytest.raises(TaskNotFound):
        await client.retry(run.run_id, "nobody")
    await client.signal(run.run_id, "enough")
    ended = await client.wait(run.run_id)
    assert output_of(ended) == {"tries": 2}
    with pytest.raises(RunEnded):
        await client.retry(run.run_id, "bad")


async def test_a_task_that_escalates_waits_for_the_answer_of_a_person(client: Client) -> None:
    graph = Graph("asks", output=[ref("tasks.a.output"), ref("tasks.b.state"), ref("tasks.c.output")])
    graph.task("a", "work.fail@1", input={"kind": "permanent"}, on_failure="escalate")
    graph.task("b", "work.echo@1", needs=["a"])
    graph.task("c", "work.fail@1", input={"kind": "permanent", "times": 1}, on_failure="escalate")
    run = await client.submit(graph)
    for task_id in ("a", "c"):
        await reaches(client, run, task_id, "ESCALATED")
    assert (await client.get_run(run.run_id)).totals.escalated == 2
    assert run.run_id in [one.run_id async for one in client.list_runs(waiting_for_person=True)]
    for _ in range(2):
        task = await client.resolve(run.run_id, "a", output=7)
    assert task.state == run_pb2.TASK_STATE_SUCCEEDED and "client/alice" in task.reason
    with pytest.raises(TaskStateConflict):
        await client.resolve(run.run_id, "a", failure="too late")
    await client.retry(run.run_id, "c")
    assert output_of(await client.wait(run.run_id)) == [7, "SUCCEEDED", 2]
    assert run.run_id not in [one.run_id async for one in client.list_runs(waiting_for_person=True)]


async def test_work_that_is_done_at_most_once_is_not_offered_again_after_a_loss(client: Client) -> None:
    graph = Graph("once", output=ref("tasks.pay.state"))
    graph.task("pay", "work.die@1", input=1, at_most_once=True)
    run = await client.submit(graph)
    await reaches(client, run, "pay", "ESCALATED")
    assert len([attempt async for attempt in client.list_attempts(run.run_id, "pay")]) == 1
    await client.resolve(run.run_id, "pay", failure="it was not paid, says the bank")
    ended = await client.wait(run.run_id)
    assert ended.failure.kind == failure_pb2.FAILURE_KIND_LOST
    assert "says the bank" in ended.failure.message


def saga() -> Graph:
    graph = Graph("saga")
    graph.task("room", "work.echo@1", input="room 7", compensate=Compensate("work.echo@1"))
    graph.task(
        "seat",
        "work.echo@1",
        input="seat 9",
        needs=["room"],
        compensate=Compensate("work.fail@1", {"kind": "transient", "times": 1, "was": ref("tasks.seat.output")}),
    )
    graph.task("pay", "work.fail@1", input={"kind": "permanent"}, needs=["seat"])
    return graph


async def test_what_a_failed_run_did_is_undone_the_last_first_with_retries_of_its_own(client: Client) -> None:
    run = await client.submit(saga(), wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED and "task pay" in run.failure.message
    tasks = {task.key.task_id: task async for task in client.list_tasks(run.run_id, include_payloads=True)}
    assert [task.compensates for task in tasks.values()] == ["", "", "", "room", "seat"]
    assert tasks["room.compensate"].input.inline == b'"room 7"'
    assert tasks["seat.compensate"].attempt_count == 2
    undone = [tasks[f"{name}.compensate"].end_time.ToNanoseconds() for name in ("seat", "room")]
    assert undone == sorted(undone)


async def test_a_run_that_succeeds_shows_nothing_of_what_would_undo_it(client: Client) -> None:
    graph = Graph("fine")
    graph.task("room", "work.echo@1", input=7, compensate=Compensate("work.echo@1"))
    run = await client.submit(graph, wait=True)
    assert run.totals.total == run.totals.succeeded == 1
    assert [task.key.task_id async for task in client.list_tasks(run.run_id)] == ["room"]
    assert output_of(run) == {"room": 7}


async def test_a_crash_in_the_middle_of_undoing_undoes_nothing_twice_and_drops_nothing(
    client: Client, mesh: Mesh
) -> None:
    graph = Graph("crash")
    graph.task("a", "work.echo@1", input=1, compensate=Compensate("work.echo@1"))
    graph.task("b", "work.echo@1", input=2, needs=["a"], compensate=Compensate("work.echo@2"))
    graph.wait("open", signal="go", needs=["b"])
    run = await client.submit(graph)
    await reaches(client, run, "open", "WAITING")
    ending = asyncio.create_task(client.cancel(run.run_id, "not any more"))
    await reaches(client, run, "b.compensate", "READY")
    mesh.orchestrator.kill9()
    mesh.orchestrator.start()
    assert await state_of(client, run, "b.compensate") == "READY"
    mesh.sidecar("second", only="work.echo", version="2")
    ended = await client.wait(run.run_id)
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    assert await state_of(client, run, "a.compensate") == "SUCCEEDED"
    await asyncio.gather(ending, return_exceptions=True)  # the crash, or its own time limit, may have ended the call
    assert (await client.cancel(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED


async def test_what_people_did_is_in_the_audit(client: Client, mesh: Mesh) -> None:
    graph = Graph("audited")
    graph.wait("a", signal="go")
    graph.wait("b", signal="stop")
    run = await client.submit(graph)
    await client.pause(run.run_id, "look")
    await client.resume(run.run_id)
    await client.signal(run.run_id, "go")
    await client.cancel_task(run.run_id, "b")
    await client.wait(run.run_id)
    async with mesh.operator() as operator:
        chains = [head.chain for head in (await operator.get_audit_checkpoint()).heads]
        records = [record for chain in chains async for record in operator.list_audit_records(chain)]
    mine = [record.action for record in records if record.resource.endswith(run.run_id)]
    assert mine == ["submit", "pause", "resume", "signal", "cancel_task", "end"]


async def test_graphs_that_make_no_sense_are_refused_with_every_mistake(client: Client) -> None:
    graph = Graph("mistaken")
    graph.task("a", "", until=Until("output", max_iterations=3), for_each="[1]")
    graph.wait("b", moment="previous")
    with pytest.raises(GraphInvalid) as caught:
        await client.submit(graph)
    assert {violation.field for violation in caught.value.violations} == {
        "graph.tasks[0].capability",
        "graph.tasks[0].until",
        "graph.tasks[1].wait.moment",
    }


async def test_whoever_waits_for_as_many_runs_as_it_may_can_cancel_them_all_the_same() -> None:
    with Mesh("--api-caller-streams", "3") as mesh:
        async with mesh.client() as client:
            graph = Graph("waits")
            graph.wait("never", signal="never")
            waiting = [asyncio.create_task(client.submit(graph, wait=True)) for _ in range(3)]

            async def all_wait() -> bool:
                return len([run async for run in client.list_runs()]) == 3

            await eventually(all_wait)
            for run in [run async for run in client.list_runs()]:
                told = await client.cancel(run.run_id)
                assert told.state == run_pb2.RUN_STATE_CANCELLED
            assert {run.state for run in await asyncio.gather(*waiting)} == {run_pb2.RUN_STATE_CANCELLED}
