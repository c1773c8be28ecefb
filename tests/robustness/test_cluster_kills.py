"""kill -9 and SIGTERM of replicas, sidecars and agents at random moments under load, judged by what everybody recorded.

ANTIPHON_SEED=N runs one seed of one's own.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from datetime import timedelta

import pytest

from tests.harness import journal_of
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.robustness.history import Submission, breaches, read_records
from tests.robustness.traffic import load, person

pytest_plugins = ("tests.harness.etcd_fixtures",)

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.long_form) for seed in range(2, 5))]
if "ANTIPHON_SEED" in os.environ:
    SEEDS = [int(os.environ["ANTIPHON_SEED"])]
KILLS = 5
LOAD = 3
PATIENCE = timedelta(seconds=150)


async def strike(cluster: Cluster, dice: random.Random) -> str:
    """Ends one of them, and starts again what nobody else does."""
    victim = dice.choice(["agent", "sidecar", "crash", "crash", "restart"])
    replica = dice.choice(cluster.replicas)
    if victim == "agent":
        dice.choice(cluster.sidecars).kill_agent()
    elif victim == "sidecar":
        await asyncio.to_thread(dice.choice(cluster.sidecars).restart)
    elif victim == "crash":
        replica.kill9()
        await asyncio.sleep(dice.choice([0.0, 1.0, 6.0]))  # before and after its lease has ended
        await asyncio.to_thread(replica.start)
    else:
        assert await asyncio.to_thread(replica.term) == 0
        await asyncio.to_thread(replica.start)
    return victim


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.proves("orchestrator dies", "sidecar dies", "agent process dies")
async def test_whatever_is_killed_every_run_ends_once_and_nothing_finished_runs_again(
    seed: int, etcd_current: Etcd
) -> None:
    print(f"ANTIPHON_SEED={seed}")
    dice = random.Random(seed)
    with Cluster(etcd_current, 3) as cluster:
        try:
            await storm(cluster, dice)
        finally:
            cluster.show()


async def storm(cluster: Cluster, dice: random.Random) -> None:
    for _ in range(2):
        cluster.sidecar(concurrency=8)
    submissions: list[Submission] = []
    stop, done = asyncio.Event(), asyncio.Event()
    struck: Counter[str] = Counter()
    async with cluster.client(timeout=timedelta(seconds=60)) as client:
        await cluster.attached(client, instances=2)
        async with asyncio.timeout(PATIENCE.total_seconds()), asyncio.TaskGroup() as group:
            group.create_task(person(client, done))  # who dies thrice, and once alone, waits for one
            loads = [
                group.create_task(load(client, random.Random(dice.random()), submissions, stop)) for _ in range(LOAD)
            ]
            for _ in range(KILLS):
                await asyncio.sleep(dice.uniform(0, 1.0))
                struck[await strike(cluster, dice)] += 1
            stop.set()
            await asyncio.wait(loads)
            done.set()
        records = await read_records(client, submissions)
    found = breaches(submissions, records, journal_of(cluster.journal))
    print(f"{len(submissions)} submissions, {len(records)} runs, struck {dict(struck)}")
    assert not found, "\n".join(found[:20])
