"""W1 to W4 with one to three orchestrators on etcd, in turns with an embedded store; then crashes, restarts, a crowd.

Ratios are those of neighbours in time, since machines change their pace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import attach, identity, mesh, takeover, w1, w2, w3, w4
from .cluster import Cluster, Services, services
from .process import cpu
from .report import Results


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Seconds are those of each round; `environ` is that of the servers."""

    environ: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[int, ...] = (1, 2, 3)
    rounds: int = 3
    seconds: float = 5.0
    sequential: int = 300
    level: int = 256
    runs: int = 10_000
    sidecars: int = 1_000


QUICK = Plan(replicas=(2,), rounds=1, seconds=0.4, sequential=5, level=32, runs=40, sidecars=8)
"""Shows that it works, in seconds."""


async def measure(plan: Plan, folder: Path, say: Callable[[str], None]) -> Results:
    """Key cluster: by number of replicas W1 to W4, and takeover, rolling, attach. `folder`: empty."""
    results: Results = {}
    beside = _identities(folder / "embedded")
    alone = mesh.running(beside, plan.environ, agent=mesh.HELD_AGENT)
    async with services(plan.environ) as there, alone as embedded:
        for replicas in plan.replicas:
            place = _identities(folder / f"etcd-{replicas}")
            async with there.running(place, replicas) as cluster:
                say(f"{replicas} on etcd")
                found = results[str(replicas)] = await _side_by_side(plan, embedded, cluster, there)
                cluster.mesh.check()
                found["repeated"] = cluster.repeated()
                if replicas == max(plan.replicas):
                    say("rolling restart")
                    results["rolling"] = await takeover.rolling_restart(cluster, plan.seconds)
                    say("attach")
                    one = cluster.replicas[0]
                    results["attach"] = await attach.measure(place, one.child, one.address, plan.sidecars)
                    say("takeover")
                    results["takeover"] = await takeover.takeover(cluster, plan.runs)
    return {"cluster": results}


async def _side_by_side(plan: Plan, embedded: mesh.Mesh, cluster: Cluster, there: Services) -> Results:
    found: Results = {"W4": w4.idle(cluster.mesh)}
    found["W1"] = await w1.measure(cluster.mesh, plan.sequential)
    found["W1"]["embedded_p50_ms"] = (await w1.measure(embedded, plan.sequential))["p50_ms"]
    pairs = []
    for number in range(plan.rounds):
        if number % 2:
            beyond = await _w2(plan, cluster.mesh, there)
            here = await _w2(plan, embedded, None)
        else:
            here = await _w2(plan, embedded, None)
            beyond = await _w2(plan, cluster.mesh, there)
        pairs.append((here, beyond))
    found["W2"] = {key: median(beyond[key] for _, beyond in pairs) for key in pairs[0][1]}
    found["W2"] |= {f"embedded_{key}": median(here[key] for here, _ in pairs) for key in pairs[0][0]}
    found["W2"]["ratio"] = median(beyond["tasks_per_s"] / here["tasks_per_s"] for here, beyond in pairs)
    found["W3"] = await w3.measure(cluster.mesh, plan.seconds)
    return found


async def _w2(plan: Plan, one: mesh.Mesh, there: Services | None) -> dict[str, float]:
    """W2, and the CPU that a task takes of all orchestrators, and of etcd where there is one, in µs."""
    pids = {"orchestrators": [child.pid for name, child in one.children.items() if name.startswith("orchestrator")]}
    if there is not None:
        pids["etcd"] = [there.etcd.members[0].pid]
    before = {name: sum(map(cpu, those)) for name, those in pids.items()}
    result = await w2.by_stream(one, plan.level, plan.seconds)
    tasks = result["tasks_per_s"] * plan.seconds * (1 + w2.WARM_UP)
    return result | {f"{name}_us": (sum(map(cpu, those)) - before[name]) / tasks * 1e6 for name, those in pids.items()}


def _identities(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    identity.make(folder)
    return folder
