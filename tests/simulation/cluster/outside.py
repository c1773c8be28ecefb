"""Clock and chance of the real code: in this process they come from the world that is being played.

The modules ask `time`, `random` and `secrets` as any program does. Here each of them finds something else under that
name, so that nothing of the product has to know that it can be simulated. Install once in a process of its own.
"""

from __future__ import annotations

import random
import secrets
import sys
from types import ModuleType
from typing import Any

from antiphon_orchestrator.admission import evaluator
from antiphon_orchestrator.cluster import gathering, membership, routing
from antiphon_orchestrator.placement import fleet
from antiphon_orchestrator.shards import host
from antiphon_orchestrator.shards.shard import Shard

from tests.simulation.cluster.loop import PROCESS, SimulatedLoop

START = 1_700_000_000.0
"""When every world begins, in seconds since 1970."""

_TIMED: tuple[ModuleType, ...] = (evaluator, gathering, membership, routing, host, fleet)

_OURS = ("antiphon_orchestrator", "antiphon_sidecar")


class Outside:
    """The world that is played now, as the modules see it: stands for `time`, and makes what stands for `secrets`."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop()
        self.rng = random.Random(0)
        self._tick = 0.0
        self._worked = 0.0

    def begin(self, loop: SimulatedLoop, rng: random.Random) -> None:
        """Another world."""
        self.loop = loop
        self.rng.seed(rng.getrandbits(64))
        self._tick = rng.choice([0.0, 0.0005, 0.003])

    def monotonic(self) -> float:
        return self.loop.now

    def monotonic_ns(self) -> int:
        return int(self.loop.now * 1e9)

    def time_ns(self) -> int:
        process = PROCESS.get()
        offset = process.clock_offset if process is not None else 0.0
        return int((START + self.loop.now + offset) * 1e6) * 1000

    def token_bytes(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    def token_hex(self, size: int) -> str:
        return self.rng.randbytes(size).hex()

    def working(self) -> float:
        """Seconds as a turn measures its work by: from one look to the next some go by, or none."""
        self._worked += self._tick
        return self._worked


OUTSIDE = Outside()


def install() -> None:
    """Puts it in the place of clock and chance."""
    for module in _TIMED:
        _replace(module, "time", OUTSIDE)
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in _OURS]:
        if vars(module).get("random") is random:
            _replace(module, "random", OUTSIDE.rng)
        if vars(module).get("secrets") is secrets:
            _replace(module, "secrets", OUTSIDE)
    # A turn ends when it has worked for long enough, which here is chance as well.
    Shard.take_turn.__defaults__ = (OUTSIDE.working,)


def _replace(module: ModuleType, name: str, with_this: Any) -> None:
    assert hasattr(module, name), f"{module.__name__} does not use {name} any more"
    setattr(module, name, with_this)
