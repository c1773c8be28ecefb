"""W2: chains of ten tasks with a number of runs in flight, submitted by one stream or by unary calls.

A run's duration is counted from the moment its submission is handed to the client until its result is there. The first
part of the time warms up and is not counted; tasks per second are those of runs that ended in the rest.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from antiphon.v1.run_pb2 import Run

from . import workload
from .mesh import Mesh
from .statistic import percentile_ms

LEVELS = (1, 32, 256, 1000)
WARM_UP = 0.25


@dataclass(slots=True)
class _Window:
    """Collects runs that end between `opens` and `closes` (perf_counter seconds)."""

    opens: float
    closes: float
    durations: list[float] = field(default_factory=list)
    last: float = 0.0

    def ended(self, begun: float, run: Run) -> None:
        workload.check(run)
        now = time.perf_counter()
        # On a machine too slow for the window, the first run that ends after it is better than none.
        if self.opens <= now <= self.closes or (now > self.closes and not self.durations):
            self.durations.append(now - begun)
            self.last = now

    def result(self) -> dict[str, float]:
        """Keys tasks_per_s, run_p50_ms, run_p99_ms."""
        return {
            "tasks_per_s": len(self.durations) * workload.CHAIN / (self.last - self.opens),
            "run_p50_ms": percentile_ms(self.durations, 0.5),
            "run_p99_ms": percentile_ms(self.durations, 0.99),
        }


def _window(seconds: float) -> _Window:
    now = time.perf_counter()
    return _Window(now + seconds * WARM_UP, now + seconds * (1 + WARM_UP))


async def by_stream(mesh: Mesh, in_flight: int, seconds: float, capability: str = workload.PYTHON) -> dict[str, float]:
    """Through `Client.submitter`, as many callers as runs in flight."""
    graph = workload.reference(workload.chain(capability=capability))
    window = _window(seconds)
    async with mesh.client.submitter(in_flight) as submitter:

        async def keep_submitting() -> None:
            while (begun := time.perf_counter()) < window.closes:
                trace = workload.traceparent()
                answer = await submitter.submit(graph, workload.INPUT, wait=True, traceparent=trace)
                window.ended(begun, await answer)

        await asyncio.gather(*(keep_submitting() for _ in range(in_flight)))
    return window.result()


async def by_calls(mesh: Mesh, in_flight: int, seconds: float) -> dict[str, float]:
    """Through `Client.submit`, as many callers as runs in flight."""
    graph = workload.reference(workload.chain())
    window = _window(seconds)

    async def keep_submitting() -> None:
        while (begun := time.perf_counter()) < window.closes:
            run = await mesh.client.submit(graph, workload.INPUT, wait=True, traceparent=workload.traceparent())
            window.ended(begun, run)

    await asyncio.gather(*(keep_submitting() for _ in range(in_flight)))
    return window.result()
