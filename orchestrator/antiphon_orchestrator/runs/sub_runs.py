"""Registered graphs for tasks that run them: looked up when such a task begins, and admitted as a client's run is.

A store that is away is waited for as long as the run may last; the task's own schedule_timeout ends that earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from antiphon_certs import Clock

from .. import telemetry
from ..admission import GraphInvalid, SchemaSet
from ..audit import AuditLog
from ..engine.events import RunSubmitted
from ..engine.failure import Failure, FailureKind
from ..engine.run import Run, Task
from ..placement.fleet import Fleet, log_use
from ..policy import PolicyPort, Request
from ..shards import inputs as i
from ..shards.turn import principal_kind
from ..store.port import StoreUnavailable
from .catalog import Catalog, GraphNotFound
from .submit import new_run_id

log = telemetry.logger("graphs")

WORKERS = 8
"""Graphs that are looked up at once."""

AGAIN = timedelta(seconds=0.5)
"""Time between two tries to reach the store."""


class SubRuns:
    """Implements shards.turn.Graphs. `answer` hands an input to a shard; set before anything runs.

    Its queue needs no bound of its own: a task is in it once for each time that it becomes ready.
    """

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        policy: PolicyPort,
        audit: AuditLog,
        schemas: SchemaSet,
        clock: Clock,
        now: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._policy = policy
        self._audit = audit
        self._schemas = schemas
        self._clock = clock
        self._now = now
        self._queue: asyncio.Queue[tuple[int, Run, Task]] = asyncio.Queue()
        self.answer: Callable[[int, i.Input], None] = lambda shard, item: None

    def open(self, shard: int, run: Run, task: Task) -> None:
        """See `Graphs.open`."""
        self._queue.put_nowait((shard, run, task))

    async def run(self) -> None:
        """Looks up until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(), name="graphs of sub-runs")

    async def _work(self) -> None:
        while True:
            shard, run, task = await self._queue.get()
            self.answer(shard, await self._find(shard, run, task))

    async def _find(self, shard: int, run: Run, task: Task) -> i.Opened:
        index, member, wanted = task.plan.index, task.member, task.plan.graph
        assert wanted is not None
        run_id = new_run_id(shard, self._now())
        while True:
            try:
                plan, graph = await self._catalog.registered(run.submitted.namespace, wanted.name, wanted.version)
            except GraphNotFound:
                message = f"the graph {wanted} is not registered in this namespace"
                failure = Failure(FailureKind.PERMANENT, message, "GRAPH_NOT_FOUND", retryable=False)
                return i.Opened(run.run_id, index, member, run_id, failure, "")
            except GraphInvalid as error:
                message = f"the graph {wanted} cannot be run by this version: {error.mistakes[0].message}"
                failure = Failure(FailureKind.PERMANENT, message, "GRAPH_INVALID", retryable=False)
                return i.Opened(run.run_id, index, member, run_id, failure, "")
            except StoreUnavailable as error:
                if self._now() >= run.submitted.deadline_time:
                    failure = Failure(
                        FailureKind.TIMEOUT, f"graph {wanted} could not be read: {error}", retryable=False
                    )
                    return i.Opened(run.run_id, index, member, run_id, failure, "")
                log.warning("graph_not_read", run_id=run.run_id, cause=str(error))
                await self._clock.sleep(AGAIN)
            else:
                return i.Opened(run.run_id, index, member, run_id, plan, graph.input_schema)

    def admit(
        self, parent: RunSubmitted, graph: str, input_schema: str, payload: bytes, priority: int
    ) -> tuple[bytes, Any] | Failure:
        """See `Graphs.admit`; a refusal is audited as a client's is."""
        if input_schema:
            violation = self._schemas.check(input_schema, payload)
            if violation is not None:
                message = f"the input does not fit the graph {graph}: {violation.message}"
                return Failure(FailureKind.INVALID_INPUT, message, retryable=False, field=violation.pointer)
            payload = self._schemas.label(input_schema, payload)
        kind, labels = principal_kind(parent.principal), self._fleet.labels(payload)
        request = Request.submit(parent.principal, kind, parent.namespace, graph, labels=labels, priority=priority)
        decision = self._policy.decide_batch((request,))[0]
        if not decision.allowed:
            self._audit.record(request, decision)
            return Failure(FailureKind.POLICY, decision.reason, decision.decision_id, retryable=False)
        if decision.logged:
            log_use(decision, "submit", graph)
        return payload, self._fleet.policy_message(decision)
