"""Audit rows of policy decisions that belong to no run: registrations, and submissions that were refused.

Decisions about a run stand in the run's own records, which are written before anything comes of them. The rows here
are written in batches right after; the queue is bounded, and a full one is reported, never silently dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from antiphon.store.v1 import records_pb2 as records

from . import telemetry
from .placement.fleet import Fleet
from .policy import Decision, Request
from .shards.log import settle
from .store import keys
from .store.port import Put, Store, Txn

log = telemetry.logger("audit")

QUEUE = 10_000
BATCH = 100


class AuditLog:
    """`writer` names this replica's rows; `run` writes them."""

    def __init__(self, store: Store, fleet: Fleet, writer: str, now: Callable[[], int]) -> None:
        self._store = store
        self._fleet = fleet
        self._writer = writer
        self._now = now
        self._next = now()  # larger than any number this writer used before: it made fewer than one a microsecond
        self._queue: asyncio.Queue[records.AuditRecord] = asyncio.Queue(QUEUE)

    def record(self, request: Request, decision: Decision) -> None:
        """Queues a row. Raises nothing; a row that finds no room is logged with all it would have said."""
        row = records.AuditRecord(
            time=self._now(),
            principal=request.principal,
            action=request.action.value,
            resource=f"{request.resource_kind.value}::{request.namespace}/{request.resource_id}",
            decision=self._fleet.policy_message(decision),
        )
        try:
            self._queue.put_nowait(row)
        except asyncio.QueueFull:
            log.error(
                "audit_queue_full",
                principal=row.principal,
                action=row.action,
                source=row.resource,
                decision_id=decision.decision_id,
                state=decision.outcome.value,
            )

    async def run(self) -> None:
        while True:
            rows = [await self._queue.get()]
            while len(rows) < BATCH and not self._queue.empty():
                rows.append(self._queue.get_nowait())
            puts = []
            for row in rows:
                puts.append(Put(keys.audit(self._writer, self._next), row.SerializeToString()))
                self._next += 1
            await settle(self._store, Txn((), tuple(puts)))
