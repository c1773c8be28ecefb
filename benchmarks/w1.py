"""W1: runs of one task, one after another, from submission to result: what an idle mesh adds to one call."""

from __future__ import annotations

import time

from . import workload
from .mesh import Mesh
from .statistic import percentile_ms


async def measure(mesh: Mesh, runs: int, capability: str = workload.PYTHON) -> dict[str, float]:
    """Keys p50_ms and p99_ms."""
    graph = workload.reference(workload.chain(1, capability))
    samples = []
    for number in range(runs + runs // 10):
        begun = time.perf_counter()
        run = await mesh.client.submit(graph, workload.INPUT, wait=True, traceparent=workload.traceparent())
        if number >= runs // 10:
            samples.append(time.perf_counter() - begun)
        workload.check(run)
    return {"p50_ms": percentile_ms(samples, 0.5), "p99_ms": percentile_ms(samples, 0.99)}
