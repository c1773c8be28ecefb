"""What the loss of a replica costs, and the orderly end of each, as the agent's journal tells.

The journal says when which task was worked on, and whether any of them was twice. Nothing the product says of itself is
counted, apart from who owned which shard before.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter

from . import workload
from .cluster import Cluster, Replica

_LIMIT = 300.0
_LOOK = 0.02
IN_FLIGHT = 64


class NotTakenOver(Exception):
    """What was lost did not go on in time."""


async def takeover(cluster: Cluster, runs: int) -> dict[str, float]:
    """SIGKILL of a replica with `runs` live in the cluster, all of them with a task that ends in that moment.

    Keys: live_runs, lost_runs (those of the replica), owned_s (from the kill until each of its shards has another
    owner), first_progress_s (until a task of one of its runs follows), all_progress_s (until that is so for each of its
    shards), done_s (until the last task of all runs was worked on), repeated (tasks that were worked on twice).
    """
    mesh = cluster.mesh
    graph = workload.reference(workload.held())
    async with mesh.client.submitter() as submitter:
        answers = [await submitter.submit(graph, workload.INPUT) for _ in range(runs)]
        run_ids = {(await answer).run_id for answer in answers}
    victim, shards = await _victim(cluster)
    lost = {run_id for run_id in run_ids if _shard(run_id) in shards}
    if not lost:
        raise NotTakenOver(f"no run of {runs} fell to {victim.name}; take more")
    killed = time.time()
    await victim.end(signal.SIGKILL)
    cluster.gate.touch()
    owned = asyncio.create_task(_owned(cluster, shards, victim.address))
    try:
        follow = await _followed(cluster, run_ids)
        owned_at = await owned
    finally:
        owned.cancel()
    first = {shard: min(follow[run] for run in lost if _shard(run) == shard) for shard in map(_shard, lost)}
    return {
        "live_runs": runs,
        "lost_runs": len(lost),
        "owned_s": owned_at - killed,
        "first_progress_s": min(first.values()) - killed,
        "all_progress_s": max(first.values()) - killed,
        "done_s": max(follow.values()) - killed,
        "repeated": cluster.repeated(),
    }


async def rolling_restart(cluster: Cluster, seconds: float) -> dict[str, float]:
    """SIGTERM and a new start of each replica in turn, with chains in flight all the while.

    Keys: before_tasks_per_s and during_tasks_per_s, ratio, seconds (of all restarts), failed_calls, repeated. What the
    first failed call said goes to stderr.
    """
    graph = workload.reference(workload.chain())
    over = asyncio.Event()
    failures: list[BaseException] = []
    async with cluster.mesh.client.submitter(IN_FLIGHT) as submitter:

        async def keep_submitting() -> None:
            while not over.is_set():
                try:
                    workload.check(await (await submitter.submit(graph, workload.INPUT, wait=True)))
                except Exception as error:  # counted, whatever it is: none is promised
                    failures.append(error)

        callers = [asyncio.create_task(keep_submitting()) for _ in range(IN_FLIGHT)]
        try:
            await asyncio.sleep(seconds / 4)
            begun = time.time()
            await asyncio.sleep(seconds)
            await _worked_since(cluster, begun)  # a machine may be too slow for the window
            restarting = time.time()
            for replica in cluster.replicas:
                await replica.end(signal.SIGTERM)
                await replica.start()
            ended = time.time()
        finally:
            over.set()
            await asyncio.gather(*callers)
    if failures:
        print(f"a call failed: {failures[0]!r}", file=sys.stderr, flush=True)
    worked = [moment for moment, _, _ in cluster.worked()]
    before = sum(begun <= moment < restarting for moment in worked) / (restarting - begun)
    during = sum(restarting <= moment < ended for moment in worked) / (ended - restarting)
    return {
        "before_tasks_per_s": before,
        "during_tasks_per_s": during,
        "ratio": during / before,
        "seconds": ended - restarting,
        "failed_calls": len(failures),
        "repeated": cluster.repeated(),
    }


async def _worked_since(cluster: Cluster, begun: float) -> None:
    async with asyncio.timeout(_LIMIT):
        while not any(moment >= begun for moment, _, _ in cluster.worked()):  # noqa: ASYNC110 - another process's journal
            await asyncio.sleep(_LOOK)


def _shard(run_id: str) -> int:
    return int(run_id[1:5], 16)


async def _victim(cluster: Cluster) -> tuple[Replica, set[int]]:
    """The replica with the most shards, and those."""
    status = await cluster.operator.get_cluster()
    owner, _ = Counter(shard.replica_id for shard in status.shards).most_common(1)[0]
    address = next(replica.address for replica in status.replicas if replica.replica_id == owner)
    shards = {shard.shard for shard in status.shards if shard.replica_id == owner}
    return next(replica for replica in cluster.replicas if replica.address == address), shards


async def _owned(cluster: Cluster, shards: set[int], gone: str) -> float:
    """When each of these shards has an owner that is there."""
    async with asyncio.timeout(_LIMIT):
        while True:
            status = await cluster.operator.get_cluster()
            there = {replica.replica_id for replica in status.replicas if replica.address != gone}
            if all(shard.replica_id in there for shard in status.shards if shard.shard in shards):
                return time.time()
            await asyncio.sleep(_LOOK)


async def _followed(cluster: Cluster, run_ids: set[str]) -> dict[str, float]:
    """When the second task of each run was worked on, once that is so for all of them. Raises NotTakenOver."""
    end = time.monotonic() + _LIMIT
    while True:
        # Read no faster than it pays: the journal grows by two lines a run.
        worked = cluster.worked()
        found = {
            key.partition("/")[0]: moment for moment, capability, key in reversed(worked) if capability == "echo@1"
        }
        if run_ids <= found.keys():
            return {run_id: found[run_id] for run_id in run_ids}
        if time.monotonic() > end:
            raise NotTakenOver(f"{len(run_ids - found.keys())} of {len(run_ids)} runs do not go on")
        await asyncio.sleep(0.2)
