"""Graphs through the whole line: fan-outs, joins, failures, retries, time limits, cancels; every part a process."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import pytest
from antiphon import Client, Compensate, Graph, Retry, any_of, at_least, index, item, output_of, ref
from antiphon.v1 import failure_pb2, run_pb2

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

OnFailure = Literal["skip", "continue"]
BRIEFLY = timedelta(milliseconds=10)
SOON = timedelta(milliseconds=300)


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


def fan_out(**options: Any) -> Graph:
    """A list, a member for each of its items, and a join that counts the members' outputs."""
    graph = Graph("fan", output={"kept": ref("tasks.join.output")})
    graph.task("list", "work.echo@1", input=ref("input"))
    graph.task("each", "work.fail@1", for_each=ref("tasks.list.output"), input=item, **options)
    graph.task("join", "work.echo@1", input=ref("tasks.each.output"))
    return graph


def states(tasks: list[run_pb2.Task]) -> dict[str, str]:
    return {
        task.key.task_id + (f"[{task.key.member}]" if task.key.member else ""): run_pb2.TaskState.Name(
            task.state
        ).removeprefix("TASK_STATE_")
        for task in tasks
    }


async def tasks_of(client: Client, run: run_pb2.Run) -> dict[str, str]:
    return states([task async for task in client.list_tasks(run.run_id)])


async def test_a_run_whose_work_is_done_has_succeeded_whatever_of_it_fits_its_output(client: Client) -> None:
    given = await client.upload_payload(b'"' + b"x" * 100_000 + b'"')
    graph = Graph("large")
    graph.task("whole", "work.bytes@1", input=ref("input"), compensate=Compensate("work.echo@1"))
    graph.task("small", "work.echo@1", input=1)
    run = await client.submit(graph, given, wait=True)
    assert (run.state, output_of(run)) == (run_pb2.RUN_STATE_SUCCEEDED, {"small": 1, "whole": None})
    (warning,) = run.warnings
    assert "null for what these tasks answered: whole (is kept by reference; pass it whole)" in warning
    assert (await client.get_task(run.run_id, "whole")).output.blob.digest
    assert await tasks_of(client, run) == {"small": "SUCCEEDED", "whole": "SUCCEEDED"}, "nothing is undone"
    graph = Graph("passed", output="${tasks.whole.output}")
    graph.task("whole", "work.bytes@1", input=ref("input"))
    run = await client.submit(graph, given, wait=True)
    assert run.output.blob.digest and not run.warnings


async def test_a_chain_hands_its_outputs_on(client: Client) -> None:
    graph = Graph("chain", output=ref("tasks.c.output"))
    graph.task("a", "work.double@1", input=ref("input"))
    graph.task("b", "work.double@1", input=ref("tasks.a.output"))
    graph.task("c", "work.double@1", input=ref("tasks.b.output"))
    run = await client.submit(graph, 5, wait=True)
    assert output_of(run) == 40
    assert run.totals.succeeded == run.totals.total == 3


async def test_a_fan_out_of_two_hundred_joins_in_the_order_of_its_list(client: Client) -> None:
    graph = Graph("wide", output=ref("tasks.join.output"))
    graph.task("list", "work.echo@1", input=ref("input"))
    graph.task("each", "work.double@1", for_each=ref("tasks.list.output"), input=item)
    graph.task("join", "work.echo@1", input={"doubled": ref("tasks.each.output")})
    run = await client.submit(graph, list(range(200)), wait=True)
    assert output_of(run) == {"doubled": [2 * n for n in range(200)]}
    assert run.totals.succeeded == run.totals.total == 202  # members are counted, and not what consists of them
    pages = [task async for task in client.list_tasks(run.run_id, page_size=50)]
    assert len(pages) == 203
    assert [task.key.member for task in pages if task.key.task_id == "each"] == list(range(201))


async def test_an_empty_fan_out_joins_at_once(client: Client) -> None:
    run = await client.submit(fan_out(), [], wait=True)
    assert output_of(run) == {"kept": []}


async def test_members_know_their_place_and_may_be_skipped_together(client: Client) -> None:
    graph = Graph("places", output=ref("tasks.each.output"))
    graph.task("each", "work.echo@1", for_each=ref("input"), input={"value": item, "place": index})
    graph.task("never", "work.echo@1", for_each=ref("input"), when="size(input) > 9")
    run = await client.submit(graph, ["x", "y"], wait=True)
    assert output_of(run) == [{"value": "x", "place": 0}, {"value": "y", "place": 1}]
    assert (await tasks_of(client, run))["never"] == "SKIPPED"


FAILING = [{"kind": "permanent", "times": 0}, {"kind": "permanent"}, {"kind": "permanent", "times": 0}]


async def test_a_failed_member_fails_the_run(client: Client) -> None:
    run = await client.submit(fan_out(), FAILING, wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert run.failure.kind == failure_pb2.FAILURE_KIND_PERMANENT
    assert "each" in run.failure.message and run.failure.code == "asked-for"
    found = await tasks_of(client, run)
    assert (found["each[2]"], found["each"], found["join"]) == ("FAILED", "FAILED", "SKIPPED")


@pytest.mark.parametrize("on_failure", ["skip", "continue"])
async def test_a_failed_member_may_leave_a_hole_in_the_list(client: Client, on_failure: OnFailure) -> None:
    run = await client.submit(fan_out(on_failure=on_failure), FAILING, wait=True)
    assert output_of(run) == {"kept": [1, None, 1]}
    found = await tasks_of(client, run)
    assert (found["each[2]"], found["each"], found["join"]) == ("FAILED", "SUCCEEDED", "SUCCEEDED")
    assert run.totals.failed == 1


async def test_a_failed_task_may_leave_its_dependents_skipped(client: Client) -> None:
    graph = Graph("skips", output={"after": ref("tasks.after.state")})
    graph.task("bad", "work.fail@1", input={"kind": "permanent"}, on_failure="skip")
    graph.task("after", "work.echo@1", needs=["bad"])
    graph.task("other", "work.echo@1")
    run = await client.submit(graph, wait=True)
    assert output_of(run) == {"after": "SKIPPED"}


async def test_a_failed_task_may_let_its_dependents_go_on_and_tell_them_why(client: Client) -> None:
    graph = Graph("goes-on", output=ref("tasks.after.output"))
    graph.task("bad", "work.fail@1", input={"kind": "permanent"}, on_failure="continue")
    graph.task("after", "work.echo@1", input={"out": ref("tasks.bad.output"), "why": ref("tasks.bad.failure")})
    run = await client.submit(graph, wait=True)
    assert output_of(run) == {"out": None, "why": {"kind": "PERMANENT", "message": "permanent"}}


@pytest.mark.parametrize(
    ("join", "failing", "state"),
    [
        (None, 1, "SKIPPED"),
        (any_of(), 2, "SUCCEEDED"),
        (any_of(), 3, "SKIPPED"),
        (at_least(2), 1, "SUCCEEDED"),
        (at_least(2), 2, "SKIPPED"),
    ],
)
async def test_a_join_starts_when_its_rule_is_met_and_is_skipped_when_it_cannot_be(
    client: Client, join: Any, failing: int, state: str
) -> None:
    graph = Graph("join", output="joined")
    for number in range(3):
        graph.task(
            f"n{number}",
            "work.fail@1",
            input={"kind": "permanent", "times": 1 if number < failing else 0},
            on_failure="skip",
        )
    graph.task("join", "work.echo@1", needs=["n0", "n1", "n2"], join=join)
    run = await client.submit(graph, wait=True)
    assert (await tasks_of(client, run))["join"] == state
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_any_of_does_not_wait_for_the_slow_ones(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    graph = Graph("first", output=ref("tasks.join.state"))
    graph.task("quick", "work.echo@1", input=1)
    graph.task("slow", "work.hold@1", input=str(gate))
    graph.task("join", "work.echo@1", needs=["quick", "slow"], join=any_of())
    run = await client.submit(graph)

    async def joined() -> bool:
        return (await tasks_of(client, run))["join"] == "SUCCEEDED"

    await eventually(joined)
    assert (await tasks_of(client, run))["slow"] == "RUNNING"
    gate.touch()
    assert (await client.wait(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_transient_failures_are_tried_again_with_pauses_and_the_same_idempotency_key(
    client: Client, mesh: Mesh
) -> None:
    rule = Retry(["TRANSIENT"], max_attempts=4, backoff=timedelta(milliseconds=40), multiplier=2)
    run = await client.submit(one_task("work.fail@1", {"kind": "transient", "times": 3}, retry=[rule]), wait=True)
    assert output_of(run) == {"t": 4}
    attempts = [attempt async for attempt in client.list_attempts(run.run_id, "t")]
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4]
    pauses = [
        (later.offer_time.ToDatetime() - earlier.end_time.ToDatetime()).total_seconds()
        for earlier, later in pairwise(attempts)
    ]
    for pause, longest in zip(pauses, (0.04, 0.08, 0.16), strict=True):
        assert pause >= longest / 2
    mine = [entry for entry in journal_of(mesh.journal) if entry.attempt_id.startswith(run.run_id)]
    assert {entry.idempotency_key for entry in mine} == {f"{run.run_id}/t/0"}
    assert [entry.event for entry in mine] == ["begun", "failed"] * 3 + ["begun", "done"]


async def test_tries_are_bounded_and_the_last_failure_is_the_run_s(client: Client) -> None:
    rule = Retry(["TRANSIENT"], max_attempts=2, backoff=BRIEFLY)
    run = await client.submit(one_task("work.fail@1", {"kind": "transient"}, retry=[rule]), wait=True)
    assert (run.state, run.failure.kind) == (run_pb2.RUN_STATE_FAILED, failure_pb2.FAILURE_KIND_TRANSIENT)
    assert (await client.get_task(run.run_id, "t")).attempt_count == 2


async def test_permanent_failures_are_not_tried_again(client: Client) -> None:
    run = await client.submit(one_task("work.fail@1", {"kind": "permanent"}), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_PERMANENT
    assert (await client.get_task(run.run_id, "t")).attempt_count == 1


async def test_an_attempt_that_takes_too_long_ends_as_timeout_and_its_agent_is_told(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task("work.hold@1", str(mesh.path("never")), timeout=SOON), wait=True)
    assert (run.state, run.failure.kind) == (run_pb2.RUN_STATE_FAILED, failure_pb2.FAILURE_KIND_TIMEOUT)
    await eventually(lambda: ("cancelled", f"{run.run_id}/t/0/1") in seen(mesh))


def seen(mesh: Mesh) -> set[tuple[str, str]]:
    return {(entry.event, entry.attempt_id) for entry in journal_of(mesh.journal)}


async def test_the_deadline_of_a_run_ends_it_and_tells_the_agent(client: Client, mesh: Mesh) -> None:
    graph = one_task("work.hold@1", str(mesh.path("never")))
    run = await client.submit(graph, deadline=SOON, wait=True)
    assert (run.state, run.failure.kind) == (run_pb2.RUN_STATE_FAILED, failure_pb2.FAILURE_KIND_TIMEOUT)
    # The sidecar, which was told the same moment, may have been quicker.
    assert "deadline" in run.failure.message or "timeout" in run.failure.message
    await eventually(lambda: ("cancelled", f"{run.run_id}/t/0/1") in seen(mesh))


async def test_the_deadline_of_a_task_includes_its_retries(client: Client) -> None:
    rule = Retry(["TRANSIENT"], max_attempts=100, backoff=timedelta(milliseconds=100), multiplier=1)
    graph = one_task("work.fail@1", {"kind": "transient"}, retry=[rule], deadline=timedelta(milliseconds=350))
    run = await client.submit(graph, wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert 2 <= (await client.get_task(run.run_id, "t")).attempt_count <= 7


async def test_cancelling_a_run_ends_it_and_tells_the_agent(client: Client, mesh: Mesh) -> None:
    graph = Graph("cancel")
    graph.task("held", "work.hold@1", input=str(mesh.path("never")))
    graph.task("after", "work.echo@1", needs=["held"])
    run = await client.submit(graph)
    await eventually(lambda: ("begun", f"{run.run_id}/held/0/1") in seen(mesh))
    ended = await client.cancel(run.run_id, "changed my mind")
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    await eventually(lambda: ("cancelled", f"{run.run_id}/held/0/1") in seen(mesh))
    assert await tasks_of(client, run) == {"held": "CANCELLED", "after": "CANCELLED"}
    assert "changed my mind" in (await client.get_task(run.run_id, "held")).reason
    again = await client.cancel(run.run_id)
    assert (again.state, again.event_seq) == (ended.state, ended.event_seq)


async def test_an_output_that_comes_after_the_cancel_changes_nothing(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.stubborn@1", str(gate)))
    await eventually(lambda: ("begun", f"{run.run_id}/t/0/1") in seen(mesh))
    await client.cancel(run.run_id)
    told = gate.with_name(gate.name + ".told")
    await eventually(told.exists)
    gate.touch()
    await eventually(lambda: ("done", f"{run.run_id}/t/0/1") in seen(mesh))
    after = await client.submit(one_task("work.echo@1", "later"), wait=True)
    assert output_of(after) == {"t": "later"}
    assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED


async def test_progress_reaches_a_watcher_who_asks_for_it(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))
    async for event in client.watch(run.run_id, include_progress=True):
        if event.HasField("progress"):
            assert (event.progress.fraction, event.progress.message, event.event_seq) == (0.5, "holding", 0)
            gate.touch()
    assert (await client.get_run(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_dying_agent_fails_its_attempt_as_lost_and_the_task_is_tried_again(client: Client) -> None:
    rule = Retry(["LOST"], max_attempts=3, backoff=BRIEFLY)
    run = await client.submit(one_task("work.die@1", 1, retry=[rule]), wait=True)
    assert output_of(run) == {"t": 2}
    first, second = [attempt async for attempt in client.list_attempts(run.run_id, "t")]
    assert (first.state, first.failure.kind) == (run_pb2.ATTEMPT_STATE_LOST, failure_pb2.FAILURE_KIND_LOST)
    assert second.state == run_pb2.ATTEMPT_STATE_SUCCEEDED
