"""The order of a graph's tasks: cycles, depth and dependents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

MAX_REPORTED_CYCLES = 20


def cycles(needs: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Cycles in the order of the flow, each beginning with its lowest task; empty when there is none.

    Each cycle found loses one edge before the next search, so that separate mistakes are reported separately.
    """
    left = {task: set(before) for task, before in needs.items()}
    found: list[list[int]] = []
    while len(found) < MAX_REPORTED_CYCLES:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            ring: list[int] = error.args[1][:-1]  # each is a predecessor of the next
            start = ring.index(min(ring))
            ring = ring[start:] + ring[:start]
            found.append(ring)
            left[ring[0]].discard(ring[-1])
        else:
            break
    return found


def depths(needs: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """The longest path from a root to each task; the graph has no cycles."""
    depth: dict[int, int] = {}
    for task in TopologicalSorter(needs).static_order():
        depth[task] = max((depth[need] + 1 for need in needs[task]), default=0)
    return depth
