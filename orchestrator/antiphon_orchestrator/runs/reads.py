"""Shared context as the expressions of graphs see it: read once for a task, with the rights of the run's principal.

What was found goes into the run's record before anything is made of it, so that a recovery never reads again. A store
that is away is waited for as long as the run may last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from antiphon.v1 import context_pb2
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Clock

from .. import telemetry
from ..api.errors import ApiError
from ..context import SharedContext, Standing
from ..engine.events import OUTPUT, Found
from ..engine.failure import Failure, FailureKind
from ..engine.plan import Read
from ..engine.run import Run
from ..shards import inputs as i
from ..shards.turn import principal_kind
from ..store.port import StoreUnavailable

log = telemetry.logger("context")

WORKERS = 16
"""Runs that are read for at once."""

MOST_BYTES = 256 * 1024
"""Most that the expressions of one task can read: it stands in the record of the run."""

AGAIN = timedelta(seconds=0.5)
"""Time between two tries to reach the store."""


class _Asked(NamedTuple):
    shard: int
    run: Run
    tasks: Sequence[int]


class ContextReads:
    """Implements shards.turn.Reader. `answer` hands an input to a shard; set before anything runs.

    Its queue needs no bound of its own: a run is in it once for each time that tasks of it become ready to read.
    """

    def __init__(self, shared: SharedContext, clock: Clock, now: Callable[[], int]) -> None:
        self._shared = shared
        self._clock = clock
        self._now = now
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue()
        self.answer: Callable[[int, i.Input], None] = lambda shard, item: None

    def read(self, shard: int, run: Run, tasks: Sequence[int]) -> None:
        """See `Reader.read`."""
        self._queue.put_nowait(_Asked(shard, run, tasks))

    async def run(self) -> None:
        """Reads until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(), name="context for expressions")

    async def _work(self) -> None:
        while True:
            asked = await self._queue.get()
            plan = asked.run.plan
            values: dict[Read, Found | Failure] = {}
            found: list[tuple[int, tuple[Found, ...] | Failure]] = []
            for task in asked.tasks:
                reads = plan.output_reads if task == OUTPUT else plan.tasks[task].reads
                found.append((task, await self._find(asked.run, reads, values)))
            self.answer(asked.shard, i.ContextFound(asked.run.run_id, found))

    async def _find(
        self, run: Run, reads: Sequence[Read], values: dict[Read, Found | Failure]
    ) -> tuple[Found, ...] | Failure:
        """What one task reads; tasks that become ready together see the same `values`."""
        found: list[Found] = []
        size = 0
        for read in reads:
            if read not in values:
                values[read] = await self._value(run, read)
            value = values[read]
            if isinstance(value, Failure):
                return value
            size += len(value.value or b"")
            found.append(value)
        if size > MOST_BYTES:
            message = f"its expressions read {size} bytes of shared context; {MOST_BYTES} is the most"
            return Failure(FailureKind.INVALID_INPUT, message, retryable=False)
        return tuple(found)

    async def _value(self, run: Run, read: Read) -> Found | Failure:
        who = _standing(run)
        scope = context_pb2.ContextScope()
        if read.scope == "run":
            scope.run_id = ""  # its own, whatever it is called
        elif read.scope == "graph":
            scope.graph = ""
        while True:
            try:
                revision, value = await self._shared.value(who, scope, read.key)
            except StoreUnavailable as error:
                if self._now() >= run.submitted.deadline_time:
                    return Failure(FailureKind.TIMEOUT, f"shared context could not be read: {error}", retryable=False)
                log.warning("context_not_read", run_id=run.run_id, cause=str(error))
                await self._clock.sleep(AGAIN)
            except ApiError as error:
                denied = error.reason == ErrorReason.ERROR_REASON_POLICY_DENIED
                kind = FailureKind.POLICY if denied else FailureKind.INVALID_INPUT
                message = f"context.{read.scope}[{read.key!r}] cannot be read: {error}"
                return Failure(kind, message, error.metadata.get("decision_id", ""), retryable=False)
            else:
                return Found(read.scope, read.key, revision, value.SerializeToString() if revision else None)


def _standing(run: Run) -> Standing:
    """The run's principal, for whom a run's own scope and graph are those of the outermost run that led to it."""
    submitted = run.submitted
    root = submitted.delegation[0].partition("/")[0] if submitted.delegation else run.run_id
    return Standing(
        submitted.principal,
        principal_kind(submitted.principal),
        submitted.namespace,
        run_id=run.run_id,
        root_run_id=root,
        graph=submitted.graph_name,
    )
