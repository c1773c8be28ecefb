"""Runs whose tasks are looked at again, each for its timer and its place: somebody holds them, lets them go on or has a
task taken up, or their shard has a new owner.

A run may have a hundred thousand tasks, and the loop they are on keeps a lease. So some are looked at at once, and each
turn goes on where the last one stopped. What a task may do is decided by its own state and its run's, so one that is
not reached yet begins nothing it may not; one that is held by then, or has begun, is found as it is.
"""

from __future__ import annotations

import sys
from itertools import islice

from ..engine.run import Run, Task
from .turn import Entry

AT_ONCE = 256
"""Tasks that are looked at between two looks at the time."""


class Looking:
    """How far each of these runs has been looked through."""

    def __init__(self) -> None:
        self._behind: dict[str, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._behind)

    def begin(self, run: Run, index: int = 0) -> list[Task]:
        """The first tasks of a run from this one on; one that is looked through goes on, if it has not come so far."""
        start = (index - 1, sys.maxsize)
        self._behind[run.run_id] = min(start, self._behind.get(run.run_id, start))
        return self._some(run)

    def go_on(self, runs: dict[str, Entry]) -> tuple[Entry, list[Task]] | None:
        """The next tasks of one of these runs; None when it is not here any more."""
        run_id = next(iter(self._behind))
        entry = runs.get(run_id)
        if entry is None:
            del self._behind[run_id]
            return None
        return entry, self._some(entry.run)

    def _some(self, run: Run) -> list[Task]:
        tasks = list(islice(run.tasks_behind(*self._behind[run.run_id]), AT_ONCE))
        if len(tasks) < AT_ONCE:
            del self._behind[run.run_id]
        else:
            self._behind[run.run_id] = (tasks[-1].plan.index, tasks[-1].member)
        return tasks
