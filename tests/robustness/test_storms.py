"""A cluster on three members of etcd under traffic, one thing broken after the other, judged by what everybody saw.

Traffic, faults and rules: `traffic.py`, `storms.py`, `history.py`, `linearizable.py`. ANTIPHON_SEED=N runs one seed of
one's own in place of those of the last test.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness.etcd import StartEtcd
from tests.harness.network import Network
from tests.robustness.storms import DISKS, FAULTS, LEADER, PARTITIONS, PROCESSES, Blow, storm

SEEDS = [int(os.environ["ANTIPHON_SEED"])] if "ANTIPHON_SEED" in os.environ else range(1, 7)
BLOWS = 5
OF_PARTITIONS = list(PARTITIONS)

Strike = Callable[[int, Sequence[Blow]], Awaitable[None]]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def strike(start_etcd: StartEtcd, network: Network, porcupine: Path) -> Strike:
    async def strike(seed: int, blows: Sequence[Blow]) -> None:
        await storm(seed, blows, start_etcd, network, porcupine)

    return strike


def each(names: Iterable[str], seconds: float = 8) -> list[Blow]:
    """Long enough for leases to end and shards to move, and then so short that nobody has noticed."""
    return [Blow(name, length) for name in names for length in (seconds, 0.5)]


@pytest.mark.proves(
    "partition, each side",
    "leader of the store lost or stalled",
    "shared context, whatever breaks",
    "runs beneath tasks, whatever breaks",
    "several agents for one task, whatever breaks",
    "undoing, whatever breaks",
)
async def test_a_cluster_in_a_storm_keeps_its_promises(strike: Strike) -> None:
    await strike(
        1,
        [
            Blow("leader of the store from its members, there", 5),
            Blow("replica from sidecars and replicas", 2),
            Blow("replica from store, both", 6),
        ],
    )


@pytest.mark.long_form
@pytest.mark.proves("partition, each side", "shared context, whatever breaks")
@pytest.mark.parametrize("names", [OF_PARTITIONS[n::4] for n in range(4)], ids=range(1, 5))
async def test_partitions_of_one_and_of_two_ways_accept_one_outcome_of_a_task(strike: Strike, names: list[str]) -> None:
    await strike(2, each(names))


@pytest.mark.long_form
@pytest.mark.proves("leader of the store lost or stalled")
async def test_leaders_of_the_store_that_die_or_stall_are_replaced(strike: Strike) -> None:
    await strike(3, each(LEADER))


@pytest.mark.long_form
@pytest.mark.proves("quorum of the store lost")
async def test_a_quorum_that_is_lost_and_comes_back(strike: Strike) -> None:
    await strike(4, each(["quorum lost"]))


@pytest.mark.long_form
@pytest.mark.proves("disk full under the store")
async def test_full_disks_under_one_and_under_all_members(strike: Strike) -> None:
    await strike(5, [Blow(name, 6) for name in DISKS])


@pytest.mark.long_form
@pytest.mark.proves("process pause", "orchestrator dies", "sidecar dies", "agent process dies")
async def test_processes_that_die_stall_or_restart(strike: Strike) -> None:
    await strike(6, [Blow(name, 8) for name in PROCESSES])


@pytest.mark.long_form
@pytest.mark.proves("rolling restart")
async def test_rolling_restarts_under_traffic_fail_no_call(strike: Strike) -> None:
    await strike(7, [Blow("replicas restarted in turn", 1), Blow("replicas restarted in turn", 0)])


@pytest.mark.long_form
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_breaks_in_whatever_order(strike: Strike, seed: int) -> None:
    dice = random.Random(seed)
    await strike(
        seed,
        [Blow(dice.choice(list(FAULTS)), dice.uniform(0.2, 9), dice.uniform(0, 2)) for _ in range(BLOWS)],
    )
