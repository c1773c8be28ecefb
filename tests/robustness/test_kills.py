"""kill -9 of agents, sidecars and the orchestrator at random moments under load, judged by what everybody recorded.

ANTIPHON_SEED=N runs one seed of one's own; the seed decides who is killed and when, and what is submitted.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from datetime import timedelta

import pytest

from tests.harness import Mesh, journal_of
from tests.robustness.history import Submission, breaches, read_records
from tests.robustness.traffic import load, person

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.long_form) for seed in range(2, 7))]
if "ANTIPHON_SEED" in os.environ:
    SEEDS = [int(os.environ["ANTIPHON_SEED"])]
KILLS = 5
LOAD = 4
PATIENCE = timedelta(seconds=90)


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
@pytest.mark.proves("orchestrator dies", "sidecar dies", "agent process dies")
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
    stop, done = asyncio.Event(), asyncio.Event()
    async with mesh.client(timeout=timedelta(seconds=30)) as client:
        await mesh.attached(client, instances=2)
        async with asyncio.timeout(PATIENCE.total_seconds()), asyncio.TaskGroup() as group:
            group.create_task(person(client, done))  # who dies thrice, and once alone, waits for one
            loads = [
                group.create_task(load(client, random.Random(dice.random()), submissions, stop)) for _ in range(LOAD)
            ]
            struck: Counter[str] = Counter()
            for _ in range(KILLS):
                await asyncio.sleep(dice.uniform(0, 1.0))
                struck[await strike(mesh, dice)] += 1
            stop.set()
            await asyncio.wait(loads)
            done.set()
        records = await read_records(client, submissions)
    journal = journal_of(mesh.journal)
    found = breaches(submissions, records, journal)
    print(f"{len(submissions)} submissions, {len(records)} runs, {len(journal)} lines of agents, struck {dict(struck)}")
    assert not found, "\n".join(found[:20])
