"""The workflow patterns of docs/patterns.md: each graph in examples/patterns runs on one mesh, all at once."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from antiphon import Client, load_graph, output_of
from antiphon.v1 import run_pb2

from tests.harness import Mesh, eventually

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples/patterns"
AGENTS = ("stepper", "second", "third")


@dataclass(frozen=True)
class Pattern:
    """What a graph is given, what is done to its run (task, state to wait for, act, what), and its output, None
    for a run that fails."""

    output: Any
    input: Any = None
    steps: tuple[tuple[str, str, str, Any], ...] = ()


PATTERNS = {
    "sequence": Pattern("one two"),
    "parallel_split": Pattern({"left": "left seed", "right": "right seed"}),
    "synchronization": Pattern({"both": ["left", "right"]}),
    "exclusive_choice": Pattern({"small": "SKIPPED", "large": "large"}, {"amount": 250}),
    "simple_merge": Pattern("paid by cash", {"pay": "cash"}),
    "multi_choice": Pattern({"mail": "mail", "call": None, "post": "post"}, {"by": ["mail", "post"]}),
    "first_of": Pattern("went on", steps=(("go_on", "SUCCEEDED", "signal", "elsewhere"),)),
    "n_of_m": Pattern("enough"),
    "quorum": Pattern("all say 42", 41),
    "quorum_each": Pattern(["all say 2", "all say 3"], {"numbers": [1, 2]}),
    "hedge": Pattern("found"),
    "cache": Pattern([8, 8], {"number": 7}),
    "multi_instance": Pattern({"greet": ["hello Ada, 0", "hello Grace, 1"]}, {"names": ["Ada", "Grace"]}),
    "tolerant_instances": Pattern([1, None, 3], {"numbers": [1, -2, 3]}),
    "map_reduce": Pattern([30, 40], {"numbers": [1, 2]}),
    "loop": Pattern(4),
    "feedback_loop": Pattern(8, {"start": 4}),
    "deferred_choice": Pattern(
        {"approve": "SKIPPED", "reject": "rejected"},
        steps=(("decision", "WAITING", "signal", ("decided", {"approve": False})),),
    ),
    "persistent_trigger": Pattern(
        "early",
        steps=(
            ("approved", "PENDING", "signal", ("approved", "early")),
            ("ready", "WAITING", "signal", "ready"),
        ),
    ),
    "timer": Pattern("SUCCEEDED", {"opening": "2026-01-01T09:00:00Z"}),
    "timeout_fallback": Pattern("no answer, TIMEOUT"),
    "milestone": Pattern("SUCCEEDED", {"ship": False}),
    "human_approval": Pattern(
        "draft, approved by olga", steps=(("approval", "WAITING", "signal", ("approved", {"by": "olga"})),)
    ),
    "escalation": Pattern("nine", {}, (("opening", "ESCALATED", "resolve", "nine"),)),
    "saga": Pattern(None),
    "fallback": Pattern("done all the same"),
    "optional_branch": Pattern({"main": "main", "of_extra": "SKIPPED"}),
    "cancel_task": Pattern(
        {"go_on": "without it", "slow": "CANCELLED"},
        steps=(("slow", "WAITING", "cancel", False), ("quick", "WAITING", "signal", "quick")),
    ),
    "cancel_region": Pattern(
        {"inside": "CANCELLED", "outside": "outside"}, steps=(("gate", "WAITING", "cancel", True),)
    ),
    "sub_run": Pattern("below they said one two"),
    "recursion": Pattern(10, {"n": 4}),
    "dynamic_decomposition": Pattern({"all": {"step1": "a", "step2": "b"}, "first": "a"}, {"texts": ["a", "b"]}),
    "at_most_once": Pattern("it was done", steps=(("transfer", "ESCALATED", "resolve", "it was done"),)),
}


@pytest.fixture(scope="module")
def patterns_mesh() -> Iterator[Mesh]:
    """A mesh with the agent of the examples, under three names."""
    with Mesh() as mesh:
        for name in AGENTS:
            mesh.sidecar(name, command=(sys.executable, str(FOLDER / "agent.py")))
        yield mesh
        mesh.show()


@pytest_asyncio.fixture
async def client(patterns_mesh: Mesh) -> AsyncIterator[Client]:
    async with patterns_mesh.client() as client:
        for name in AGENTS:
            await patterns_mesh.attached(client, name)
        yield client


async def play(client: Client, name: str, pattern: Pattern) -> run_pb2.Run:
    loaded = load_graph(FOLDER / f"{name}.yaml")
    assert not loaded.mistakes
    run_id = (await client.submit(loaded.graph, pattern.input)).run_id
    for task_id, state, act, what in pattern.steps:

        async def reached(task_id: str = task_id, state: str = state) -> bool:
            return (await client.get_task(run_id, task_id)).state == run_pb2.TaskState.Value(f"TASK_STATE_{state}")

        await eventually(reached, limit=60)
        if act == "signal":
            await client.signal(run_id, *(what if isinstance(what, tuple) else (what,)))
        elif act == "resolve":
            await client.resolve(run_id, task_id, output=what)
        else:
            await client.cancel_task(run_id, task_id, dependents=what)
    return await client.wait(run_id)


REGISTERED = ("sequence", "recursion", "quorum")
"""Graphs that others run by their names."""


async def test_every_pattern_does_what_it_is_there_for(client: Client) -> None:
    for name in REGISTERED:
        await client.register_graph(load_graph(FOLDER / f"{name}.yaml").graph)
    runs = await asyncio.gather(*(play(client, name, pattern) for name, pattern in PATTERNS.items()))
    for (name, pattern), run in zip(PATTERNS.items(), runs, strict=True):
        if pattern.output is None:
            assert run.state == run_pb2.RUN_STATE_FAILED, name
        else:
            assert output_of(run) == pattern.output, name
    saga = dict(zip(PATTERNS, runs, strict=True))["saga"]
    cache = dict(zip(PATTERNS, runs, strict=True))["cache"]
    again = (await client.explain(cache.run_id, "again")).task
    assert again.reused.origin_attempt_id == f"{cache.run_id}/first/0/1" and again.attempt_count == 0
    undone = [task async for task in client.list_tasks(saga.run_id, include_payloads=True) if task.compensates]
    assert [(task.compensates, task.output.inline) for task in undone] == [
        ("room", b'"cancel room 7"'),
        ("seat", b'"seat 9"'),
    ]


def test_every_graph_of_the_folder_is_played_and_is_on_the_page() -> None:
    there = {path.stem for path in FOLDER.glob("*.yaml")}
    assert there == set(PATTERNS)
    page = (ROOT / "docs/patterns.md").read_text()
    assert set(re.findall(r"examples/patterns/(\w+)\.yaml", page)) == there
