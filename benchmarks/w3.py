"""W3: one task, then a hundred at once, then one that joins them; runs per second with a few in flight."""

from __future__ import annotations

import asyncio
import time

from . import workload
from .mesh import Mesh

IN_FLIGHT = 8
_WARM_UP = 0.25


async def measure(mesh: Mesh, seconds: float) -> dict[str, float]:
    """Key runs_per_s."""
    graph = workload.reference(workload.fan_out())
    opens = time.perf_counter() + seconds * _WARM_UP
    closes = opens + seconds
    ended: list[float] = []
    async with mesh.client.submitter(IN_FLIGHT) as submitter:

        async def keep_submitting() -> None:
            while time.perf_counter() < closes:
                trace = workload.traceparent()
                run = await (await submitter.submit(graph, workload.INPUT, wait=True, traceparent=trace))
                workload.check(run)
                now = time.perf_counter()
                if opens <= now <= closes or (now > closes and not ended):
                    ended.append(now)

        await asyncio.gather(*(keep_submitting() for _ in range(IN_FLIGHT)))
    return {"runs_per_s": len(ended) / (max(ended) - opens)}
