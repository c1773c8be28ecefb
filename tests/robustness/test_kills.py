"""kill -9 of agents, sidecars and the orchestrator at random moments under load, judged by what everybody recorded.

ANTIPHON_SEED=N runs one seed of one's own; the seed decides who is killed and when, and what is submitted.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from antiphon import Client, Graph, Retry, SubmitOptions, Submitter, ref
from antiphon.v1 import run_pb2

from tests.harness import Mesh, journal_of
from tests.robustness.history import Submission, breaches, read_record

SEEDS = [int(os.environ["ANTIPHON_SEED"])] if "ANTIPHON_SEED" in os.environ else [1, 2, 3]
KILLS = 5
LOAD = 4
PATIENCE = timedelta(seconds=90)
RULE = Retry(
    ["LOST", "TRANSIENT"], max_attempts=50, backoff=timedelta(milliseconds=20), max_backoff=timedelta(seconds=1)
)


def graphs(dice: random.Random) -> tuple[Graph, Any]:
    """A graph and its input: a chain, a fan-out, or a call between agents; each in steps of some milliseconds."""
    pause = dice.choice([0.0, 0.005, 0.05, 0.2])
    kind = dice.choice(["chain", "fan", "call"])
    graph = Graph(kind, output=ref("tasks.last.output"))
    if kind == "chain":
        graph.task("first", "work.sleep@1", input=pause, retry=[RULE])
        graph.task("second", "work.fail@1", input={"kind": "transient", "times": 1}, needs=["first"], retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["second"], retry=[RULE])
    elif kind == "fan":
        graph.task("each", "work.sleep@1", for_each="[0, 1, 2, 3, 4, 5]", input=pause, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["each"], retry=[RULE])
    else:
        graph.task("first", "work.sleep@1", input=pause, retry=[RULE])
        how = {"capability": "work.echo@1", "input": ref("input"), "call_id": "c"}
        graph.task("last", "work.call@1", input=how, needs=["first"], retry=[RULE])
    return graph, dice.randrange(1_000_000)


async def load(client: Client, dice: random.Random, submissions: list[Submission], stop: asyncio.Event) -> None:
    """Submit one run after the other until told to stop, some of them twice, by calls and by stream."""
    async with client.submitter() as submitter, asyncio.TaskGroup() as group:
        while not stop.is_set():
            graph, value = graphs(dice)
            submission = Submission(f"{dice.getrandbits(64):016x}", value)
            submissions.append(submission)
            for way in dice.choice(WAYS):
                group.create_task(way(client, submitter, graph, submission))
            await asyncio.sleep(dice.uniform(0, 0.15))


async def by_call(client: Client, _: Submitter, graph: Graph, submission: Submission) -> None:
    options: SubmitOptions = {"request_id": submission.request_id, "wait": True}
    submission.answers.append(await client.submit(graph, submission.expected, timeout=PATIENCE, **options))


async def by_stream(_: Client, submitter: Submitter, graph: Graph, submission: Submission) -> None:
    answer = await submitter.submit(graph, submission.expected, request_id=submission.request_id, wait=True)
    submission.answers.append(await answer)


WAYS = [(by_call,), (by_stream,), (by_call, by_stream), (by_call, by_call)]


async def strike(mesh: Mesh, dice: random.Random) -> str:
    """Kill one of them, and start again what nobody else does."""
    victim = dice.choice(["agent", "sidecar", "orchestrator"])
    if victim == "agent":
        dice.choice(mesh.sidecars).kill_agent()
    elif victim == "sidecar":
        await asyncio.to_thread(dice.choice(mesh.sidecars).restart)
    else:
        mesh.orchestrator.kill9()
        await asyncio.sleep(dice.choice([0.0, 0.5]))
        await asyncio.to_thread(mesh.orchestrator.start)
    return victim


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_is_killed_every_run_ends_once_and_nothing_finished_runs_again(seed: int) -> None:
    print(f"ANTIPHON_SEED={seed}")
    dice = random.Random(seed)
    with Mesh() as mesh:
        try:
            await storm(mesh, dice)
        finally:
            mesh.show()


async def storm(mesh: Mesh, dice: random.Random) -> None:
    for _ in range(2):
        mesh.sidecar(concurrency=8)
    submissions: list[Submission] = []
    stop = asyncio.Event()
    async with mesh.client(timeout=timedelta(seconds=30)) as client:
        await mesh.attached(client, instances=2)
        async with asyncio.timeout(PATIENCE.total_seconds()), asyncio.TaskGroup() as group:
            for _ in range(LOAD):
                group.create_task(load(client, random.Random(dice.random()), submissions, stop))
            struck: Counter[str] = Counter()
            for _ in range(KILLS):
                await asyncio.sleep(dice.uniform(0, 1.0))
                struck[await strike(mesh, dice)] += 1
            stop.set()
        run_ids = {run.run_id for submission in submissions for run in submission.answers}
        records = [await read_record(client, run_id) for run_id in sorted(run_ids)]
        children = [run.run_id async for run in client.list_runs() if run.parent_attempt_id]
        records += [await read_record(client, run_id) for run_id in children]
    journal = journal_of(mesh.journal)
    found = breaches(submissions, records, journal)
    print(f"{len(submissions)} submissions, {len(records)} runs, {len(journal)} lines of agents, struck {dict(struck)}")
    assert not found, "\n".join(found[:20])
    for submission in submissions:
        for run in submission.answers:
            assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run
            assert run.output.inline == str(submission.expected).encode()
