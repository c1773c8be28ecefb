"""Traffic on a cluster while something is broken, and what everybody recorded, judged.

A fault is a context: within it the thing is broken, after it it is mended. Each is told its dice and decides whom it
strikes. Faults are held for a time, which is the fault itself and not a wait for something.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tests.harness import journal_of
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.network import ANY, Network, Way
from tests.robustness.history import Submission, breaches, by_a_person, read_records
from tests.robustness.linearizable import Operation, faults, share
from tests.robustness.traffic import KINDS, PATIENCE, limited, load, person, registered

LOADS, SHARERS = 3, 3


@dataclass
class Stage:
    """What there is to break. `dice` decide who is struck."""

    cluster: Cluster
    etcd: Etcd
    network: Network
    dice: random.Random

    def replica(self) -> str:
        return self.dice.choice(self.cluster.replicas).name

    def sidecar(self) -> str:
        return self.dice.choice(self.cluster.sidecars).name


Fault = Callable[[Stage], AbstractContextManager[object]]


@contextmanager
def parted(network: Network, one: str, other: str, how: str) -> Iterator[None]:
    """`both` ways, or only what is said `there` (by the one) or `back`."""
    if how in ("both", "there"):
        network.cut(one, other, Way.HOLD)
    if how in ("both", "back"):
        network.cut(other, one, Way.HOLD)
    try:
        yield
    finally:
        network.heal()


def sidecar_from_replica(how: str) -> Fault:
    return lambda on: parted(on.network, on.sidecar(), on.replica(), how)


def replica_from_replica(how: str) -> Fault:
    def fault(on: Stage) -> AbstractContextManager[object]:
        one, other = on.dice.sample(on.cluster.replicas, 2)
        return parted(on.network, one.name, other.name, how)

    return fault


def replica_from_sidecars_and_replicas(on: Stage) -> AbstractContextManager[object]:
    """Nobody hears it any more but the store."""
    return parted(on.network, ANY, on.replica(), "both")


@contextmanager
def replica_from_store(on: Stage, how: str) -> Iterator[None]:
    replica = on.replica()
    for member in on.etcd.members:
        if how in ("both", "there"):
            on.network.cut(replica, member.name, Way.HOLD)
        if how in ("both", "back"):
            on.network.cut(member.name, replica, Way.HOLD)
    try:
        yield
    finally:
        on.network.heal()


@contextmanager
def leader_from_members(on: Stage, how: str) -> Iterator[None]:
    leader = on.etcd.members[on.etcd.leader()].name
    for member in on.etcd.members:
        if member.name != leader:
            if how in ("both", "there"):
                on.network.cut(leader, member.name, Way.HOLD)
            if how in ("both", "back"):
                on.network.cut(member.name, leader, Way.HOLD)
    try:
        yield
    finally:
        on.network.heal()


@contextmanager
def leader_killed(on: Stage) -> Iterator[None]:
    leader = on.etcd.leader()
    on.etcd.kill(leader)
    try:
        yield
    finally:
        on.etcd.restart(leader)


@contextmanager
def leader_stalled(on: Stage) -> Iterator[None]:
    leader = on.etcd.leader()
    on.etcd.stop(leader)
    try:
        yield
    finally:
        on.etcd.cont(leader)


@contextmanager
def quorum_lost(on: Stage) -> Iterator[None]:
    lost = on.dice.sample(range(len(on.etcd.members)), 2)
    for n in lost:
        on.etcd.kill(n)
    try:
        yield
    finally:
        for n in lost:
            on.etcd.restart(n, wait=False)
        for n in lost:
            on.etcd.wait_for(n)


@contextmanager
def disks_full(on: Stage, members: int) -> Iterator[None]:
    """So many members cannot write another byte, and end for it, as etcd does; mended, they are started again."""
    full = on.dice.sample(range(len(on.etcd.members)), members)
    for n in full:
        on.etcd.fill_disk(n)
    for n in full:
        on.etcd.members[n].end()
    try:
        yield
    finally:
        for n in full:
            on.etcd.restart(n, wait=False)
        for n in full:
            on.etcd.wait_for(n)


@contextmanager
def replica_stopped(on: Stage) -> Iterator[None]:
    replica = on.dice.choice(on.cluster.replicas)
    replica.stall()
    try:
        yield
    finally:
        replica.send(signal.SIGCONT)


@contextmanager
def replica_killed(on: Stage) -> Iterator[None]:
    replica = on.dice.choice(on.cluster.replicas)
    replica.kill9()
    try:
        yield
    finally:
        replica.start()


@contextmanager
def replica_restarted(on: Stage) -> Iterator[None]:
    replica = on.dice.choice(on.cluster.replicas)
    assert replica.term() == 0
    try:
        yield
    finally:
        replica.start()


@contextmanager
def replicas_restarted_in_turn(on: Stage) -> Iterator[None]:
    """As an operator brings in a new version: the next one when the last one serves."""
    for replica in on.cluster.replicas:
        assert replica.term() == 0
        replica.start()
    yield


@contextmanager
def sidecar_killed(on: Stage) -> Iterator[None]:
    sidecar = on.dice.choice(on.cluster.sidecars)
    sidecar.kill9()
    try:
        yield
    finally:
        sidecar.start()


@contextmanager
def agent_killed(on: Stage) -> Iterator[None]:
    on.dice.choice(on.cluster.sidecars).kill_agent()
    yield


PARTITIONS: dict[str, Fault] = {
    **{f"sidecar from replica, {how}": sidecar_from_replica(how) for how in ("both", "there", "back")},
    **{f"replica from replica, {how}": replica_from_replica(how) for how in ("both", "there")},
    "replica from sidecars and replicas": replica_from_sidecars_and_replicas,
    "replica from store, both": lambda on: replica_from_store(on, "both"),
    "replica from store, there": lambda on: replica_from_store(on, "there"),
    "replica from store, back": lambda on: replica_from_store(on, "back"),
    "leader of the store from its members, both": lambda on: leader_from_members(on, "both"),
    "leader of the store from its members, there": lambda on: leader_from_members(on, "there"),
    "leader of the store from its members, back": lambda on: leader_from_members(on, "back"),
}
LEADER: dict[str, Fault] = {"leader killed": leader_killed, "leader stalled": leader_stalled}
QUORUM: dict[str, Fault] = {"quorum lost": quorum_lost}
DISKS: dict[str, Fault] = {
    "one disk full": lambda on: disks_full(on, 1),
    "all disks full": lambda on: disks_full(on, 3),
}
PROCESSES: dict[str, Fault] = {
    "replica stopped": replica_stopped,
    "replica killed": replica_killed,
    "replica restarted": replica_restarted,
    "replicas restarted in turn": replicas_restarted_in_turn,
    "sidecar killed": sidecar_killed,
    "agent killed": agent_killed,
}
FAULTS = {**PARTITIONS, **LEADER, **QUORUM, **DISKS, **PROCESSES}


@dataclass(frozen=True)
class Blow:
    """One fault of a storm: which, for how many seconds, and how long nothing is broken before it."""

    name: str
    seconds: float
    before: float = 0.5


async def storm(
    seed: int, blows: Sequence[Blow], start_etcd: Callable[..., Etcd], network: Network, judge: Path
) -> None:
    """A cluster with traffic, struck by one blow after the other; fails with every breach of every rule."""
    print(f"ANTIPHON_SEED={seed}", *blows, sep="\n  ")
    dice = random.Random(seed)
    etcd = await asyncio.to_thread(start_etcd, nodes=3, network=network)
    with Cluster(etcd, 3, network=network) as cluster:
        try:
            for _ in range(2):
                cluster.sidecar(concurrency=8)
            await weather(Stage(cluster, etcd, network, dice), blows, judge)
        finally:
            cluster.show()
            for member in etcd.members:
                member.show()


async def weather(on: Stage, blows: Sequence[Blow], judge: Path) -> None:
    submissions: list[Submission] = []
    history: list[Operation] = []
    stop, done = asyncio.Event(), asyncio.Event()
    cluster, dice = on.cluster, on.dice
    async with cluster.operator() as operator:
        await limited(operator)
    async with cluster.client(timeout=timedelta(seconds=60), patience=PATIENCE) as client:
        await cluster.attached(client, instances=2)
        for graph in registered():
            await client.register_graph(graph)
        async with asyncio.timeout(2 * PATIENCE.total_seconds()), asyncio.TaskGroup() as group:
            group.create_task(person(client, done))
            loads = [
                group.create_task(load(client, random.Random(dice.random()), submissions, stop, KINDS))
                for _ in range(LOADS)
            ]
            for number in range(SHARERS):
                group.create_task(share(client, number, random.Random(dice.random()), history, stop))
            for blow in blows:
                await asyncio.sleep(blow.before)
                fault = await asyncio.to_thread(FAULTS[blow.name], on)
                await asyncio.to_thread(fault.__enter__)
                try:
                    await asyncio.sleep(blow.seconds)
                finally:
                    await asyncio.to_thread(fault.__exit__, None, None, None)
            stop.set()
            await asyncio.wait(loads)
            done.set()
        records = await read_records(client, submissions)
    outcomes = Counter(f"{operation.kind} {operation.outcome}" for operation in history)
    looked_after = Counter(record.run.graph_name for record in records for _ in by_a_person(record))
    print(f"{len(submissions)} submissions, {len(records)} runs, entries: {dict(outcomes)}", dict(looked_after))
    found = breaches(submissions, records, journal_of(cluster.journal)) + faults(judge, history)
    assert not found, "\n".join(found[:20])
