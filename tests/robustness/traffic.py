"""Seeded traffic: graphs of several kinds, submitted by calls and by stream, waited for or watched, some of them twice.

Who submits notes the request and each answer (`history.py`). A call that fails ends the test: whatever is broken
meanwhile, clients of the SDK get their answers within PATIENCE.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from antiphon import (
    Client,
    Compensate,
    Graph,
    Hedge,
    Quorum,
    Retry,
    RetryableError,
    RunEnded,
    SubmitOptions,
    Submitter,
    TaskStateConflict,
    Until,
    ref,
)
from antiphon.v1 import run_pb2

from tests.harness import eventually
from tests.robustness.history import ONCE, UNDONE, Submission

PATIENCE = timedelta(seconds=150)
IN_FLIGHT = 30
"""Submissions of one loop that may be under way: while nothing is answered, none are added."""
SELDOM = 0.1
"""Of those tasks that could take their agent with them, so many do: whatever the agent does beside is lost, too."""
RULE = Retry(
    ["LOST", "TRANSIENT"], max_attempts=50, backoff=timedelta(milliseconds=20), max_backoff=timedelta(seconds=1)
)


ANYWHERE = ("chain", "fan", "call", "diamond", "choice")
"""What one agent can do, of whatever kind the mesh is."""

KINDS = (
    *ANYWHERE,
    *("loop", "quorum", "hedge", "reuse", "answer", "beneath", "undone", "wait", "signal", "limited", ONCE, "deadly"),
)
"""With two agents, with what is `registered` and `limited`, and with a `person`."""

LIMIT = """
@id("storm.limit")
@obligation("limit")
@rate("50/s")
@concurrent("6")
permit (principal, action == Action::"dispatch", resource)
when { resource.name == "work.double" };
"""
_PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"


def registered() -> list[Graph]:
    """The graphs that tasks of the traffic run: one answers its input, the other fails and is undone."""
    inner = Graph("storm.inner", version="1", output=ref("tasks.b.output"))
    inner.task("a", "work.echo@1", input=ref("input"), retry=[RULE])
    inner.task("b", "work.echo@1", input=ref("tasks.a.output"), retry=[RULE])
    undone = Graph(UNDONE, version="1")
    back = Compensate("work.echo@1", retry=[RULE])
    undone.task("a", "work.echo@1", input=ref("input"), retry=[RULE], compensate=back)
    undone.task("b", "work.echo@1", input=ref("tasks.a.output"), retry=[RULE], compensate=back)
    undone.task("c", "work.fail@1", input={"kind": "permanent"}, needs=["b"], retry=[RULE])
    return [inner, undone]


async def limited(operator: Client) -> None:
    """Brings into force, with the policies of development, that few attempts of one kind are out at once."""
    files = {path.name: path.read_text() for path in _PROFILE.iterdir()} | {"storm.cedar": LIMIT}
    await operator.activate_policies(files, expected_epoch=(await operator.get_policy()).epoch)


async def person(client: Client, done: asyncio.Event) -> None:
    """Looks after what waits for a person until the traffic is over: says that what may be done only once was done,
    and has what was set aside, for a storm kills whoever is suspected, tried again."""
    while not done.is_set():
        with suppress(RetryableError):
            async for run in client.list_runs(waiting_for_person=True):
                await _see_to(client, run.run_id)
        await asyncio.sleep(0.5)


async def _see_to(client: Client, run_id: str) -> None:
    async for task in client.list_tasks(run_id):
        with suppress(RunEnded, TaskStateConflict):
            if task.state == run_pb2.TASK_STATE_ESCALATED:
                await client.resolve(run_id, task.key.task_id, task.key.member, output=0, reason="the bank has it")
            elif task.state == run_pb2.TASK_STATE_QUARANTINED:
                await client.retry(run_id, task.key.task_id, task.key.member, reason="it was the storm")


def graphs(dice: random.Random, kinds: Sequence[str]) -> tuple[Graph, Any]:
    """A graph and its input, a number that is its output, too; each task takes some milliseconds."""
    pause = dice.choice([0.0, 0.005, 0.05, 0.2])
    kind = dice.choice(kinds)
    if kind == "deadly" and dice.random() > SELDOM:
        kind = "chain"
    graph = Graph(kind, output=ref("tasks.last.output"))
    if kind == "chain":
        graph.task("first", "work.sleep@1", input=pause, retry=[RULE])
        graph.task("second", "work.fail@1", input={"kind": "transient", "times": 1}, needs=["first"], retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["second"], retry=[RULE])
    elif kind == "fan":
        graph.task("each", "work.sleep@1", for_each="[0, 1, 2, 3, 4, 5]", input=pause, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["each"], retry=[RULE])
    elif kind == "diamond":
        graph.task("first", "work.echo@1", input=ref("input"), retry=[RULE])
        for side in ("left", "right"):
            graph.task(side, "work.sleep@1", input=pause, needs=["first"], retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("tasks.first.output"), needs=["left", "right"], retry=[RULE])
    elif kind == "choice":
        graph.task("first", "work.echo@1", input=ref("input"), retry=[RULE])
        graph.task("odd", "work.sleep@1", when="tasks.first.output % 2 == 1", input=pause, retry=[RULE])
        graph.task("lost", "work.fail@1", input={"kind": "permanent"}, on_failure="continue")
        graph.task("last", "work.echo@1", input=ref("tasks.first.output"), retry=[RULE])
    elif kind == "loop":
        lap = {"lap": ref("iteration"), "of": ref("input")}
        until = Until("iteration >= 3", max_iterations=4)
        graph.task("laps", "work.echo@1", input=lap, until=until, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("tasks.laps.output.lap == 3 ? input : -1"), retry=[RULE])
    elif kind == "quorum":
        quorum = Quorum(2, of=2, distinct="instance")
        graph.task("vote", "work.echo@1", input=ref("input"), quorum=quorum, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("tasks.vote.output"), retry=[RULE])
    elif kind == "hedge":
        hedge = Hedge(timedelta(milliseconds=50), share=0.5)
        graph.task("first", "work.sleep@1", input=pause, hedge=hedge, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["first"], retry=[RULE])
    elif kind == "reuse":
        kept = timedelta(seconds=30)
        graph.task("known", "work.pure@1", input=ref("input % 4"), cache=kept, retry=[RULE])
        same = ref("tasks.known.output.value == input % 4 ? input : -1")
        graph.task("last", "work.echo@1", input=same, retry=[RULE])
    elif kind == "answer":
        steps = [{"id": "x", "capability": "work.echo@1", "input": ref("input"), "tries": 50}]
        graph.task("plan", "work.plan@1", input=steps, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("tasks.plan.output.x"), retry=[RULE])
    elif kind == "beneath":
        graph.sub_run("inner", "storm.inner@1", input=ref("input"))
        graph.task("last", "work.echo@1", input=ref("tasks.inner.output"), retry=[RULE])
    elif kind == "undone":
        graph.sub_run("failing", f"{UNDONE}@1", input=ref("input"), on_failure="continue")
        graph.task("last", "work.echo@1", input=ref("input"), needs=["failing"], retry=[RULE])
    elif kind == "limited":
        graph.task("each", "work.double@1", for_each="[1, 2, 3]", input=ref("item"), retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("tasks.each.output == [2, 4, 6] ? input : -1"), retry=[RULE])
    elif kind == ONCE:
        graph.task("pay", "work.sleep@1", input=pause, at_most_once=True)
        graph.task("last", "work.echo@1", input=ref("input"), needs=["pay"], retry=[RULE])
    elif kind == "deadly":
        graph.task("first", "work.die@1", input=1, retry=[RULE])
        graph.task("last", "work.echo@1", input=ref("input"), needs=["first"], retry=[RULE])
    elif kind == "wait":
        graph.wait("pause", time=timedelta(seconds=pause))
        graph.task("last", "work.echo@1", input=ref("input"), needs=["pause"], retry=[RULE])
    elif kind == "signal":
        graph.wait("go", signal="go")
        graph.task("last", "work.echo@1", input=ref("tasks.go.output"), retry=[RULE])
    else:
        graph.task("first", "work.sleep@1", input=pause, retry=[RULE])
        how = {"capability": "work.echo@1", "input": ref("input"), "call_id": "c"}
        graph.task("last", "work.call@1", input=how, needs=["first"], retry=[RULE])
    return graph, dice.randrange(1_000_000)


async def load(
    client: Client,
    dice: random.Random,
    submissions: list[Submission],
    stop: asyncio.Event,
    kinds: Sequence[str] = ANYWHERE,
) -> None:
    """Submit one run after the other until told to stop, some of them twice, by calls and by stream."""
    free = asyncio.Semaphore(IN_FLIGHT)
    async with client.submitter() as submitter, asyncio.TaskGroup() as group:
        while not stop.is_set():
            await free.acquire()
            graph, value = graphs(dice, kinds)
            submission = Submission(f"{dice.getrandbits(64):016x}", value)
            submissions.append(submission)
            # Whoever only waits cannot send what is waited for.
            ways = (by_watch,) if graph.to_proto().name == "signal" else dice.choice(WAYS)
            both = group.create_task(_all(way(client, submitter, graph, submission) for way in ways))
            both.add_done_callback(lambda _: free.release())
            await asyncio.sleep(dice.uniform(0, 0.15))


async def by_call(client: Client, _: Submitter, graph: Graph, submission: Submission) -> None:
    options: SubmitOptions = {"request_id": submission.request_id, "wait": True}
    submission.answers.append(await client.submit(graph, submission.expected, timeout=PATIENCE, **options))


async def by_stream(_: Client, submitter: Submitter, graph: Graph, submission: Submission) -> None:
    answer = await submitter.submit(graph, submission.expected, request_id=submission.request_id, wait=True)
    submission.answers.append(await answer)


async def by_watch(client: Client, _: Submitter, graph: Graph, submission: Submission) -> None:
    async def submitted() -> run_pb2.Run | None:
        with suppress(RetryableError):  # a single call gives up after some seconds; its request id makes it one run
            return await client.submit(graph, submission.expected, request_id=submission.request_id)
        return None

    run = await eventually(submitted, limit=PATIENCE.total_seconds())
    if graph.to_proto().name == "signal":
        await _told(lambda: client.signal(run.run_id, "go", submission.expected, request_id="go"))
    elif int(submission.request_id, 16) % 4 == 0:
        await _told(lambda: client.pause(run.run_id))
        await _told(lambda: client.resume(run.run_id))
    seen: list[int] = []
    submission.watched.append(seen)
    async for event in client.watch(run.run_id):
        if event.event_seq:  # progress has no number
            seen.append(event.event_seq)
    submission.answers.append(await client.wait(run.run_id, timeout=PATIENCE))


async def _told(ask: Callable[[], Awaitable[object]]) -> None:
    """Asks something of a run until there is an answer, which may be that it has ended."""

    async def told() -> bool:
        with suppress(RetryableError):
            with suppress(RunEnded):
                await ask()
            return True
        return False

    await eventually(told, limit=PATIENCE.total_seconds())


WAYS = [(by_call,), (by_stream,), (by_watch,), (by_call, by_stream), (by_call, by_watch), (by_call, by_call)]


async def _all(ways: Iterable[Coroutine[None, None, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for way in ways:
            group.create_task(way)
