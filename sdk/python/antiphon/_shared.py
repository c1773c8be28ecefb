"""Shared context as a task sees it: through its sidecar, with the rights of the task.

What a task reads is remembered beside it: it becomes the provenance of what the task writes, and its labels join those
of what the task writes and answers.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

from antiphon.v1 import context_pb2, context_request_pb2, context_service_pb2
from antiphon.v1.agent_service_pb2 import Assignment

from . import _entries
from ._context import Line
from ._errors import RetryableError, from_error_message
from ._holding import Holding

_PAUSE = 1.0
"""Seconds before a request is repeated that is to be repeated and does not say when."""


class SharedContext:
    """`TaskContext.context`. `scope` is `namespace` (the default), `run` or `graph` for the task's own, or one by name
    (`run:ID`, `graph:NAME`). Every method raises an `AntiphonError` of the reason the orchestrator gives, such as
    `PolicyDenied`, and `AttemptNotFound` once the attempt is over.
    """

    __slots__ = ("_assignment", "_line")

    def __init__(self, assignment: Assignment, line: Line) -> None:
        self._assignment = assignment
        self._line = line

    async def get(self, key: str, *, scope: str = _entries.NAMESPACE, returns: Any = Any) -> Any:
        """The value of an entry: plain JSON, or what `returns` describes. Raises `EntryNotFound`; `ValueError` when
        the value does not fit."""
        return _entries.entry_value(await self.entry(key, scope=scope), returns)

    async def entry(self, key: str, *, scope: str = _entries.NAMESPACE) -> context_pb2.Entry:
        """An entry with revision, labels and provenance. Raises `EntryNotFound`."""
        request = context_service_pb2.GetEntryRequest(scope=_entries.scope_of(scope), key=key)
        return (await self._ask(get=request)).get.entry

    async def put(
        self,
        key: str,
        value: Any,
        *,
        scope: str = _entries.NAMESPACE,
        ttl: timedelta | None = None,
        expected_revision: int | None = None,
        labels: Iterable[str] = (),
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> int:
        """Write an entry whole and return its revision: anything JSON can hold up to 2 MiB, or a `Payload`.

        The arguments are those of `Client.put_entry`. Raises `EntryConflict`, `ContextQuotaExceeded`, `ClaimLost`.
        """
        request = await _entries.put_request(
            None,
            self._line.inline_limit,
            key,
            value,
            scope=scope,
            ttl=ttl,
            expected_revision=expected_revision,
            labels=labels,
            claim=claim,
            request_id=request_id,
        )
        return (await self._ask(put=request)).put.revision

    async def delete(
        self,
        key: str,
        *,
        scope: str = _entries.NAMESPACE,
        expected_revision: int | None = None,
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> int:
        """Remove an entry: the revision of the removal, 0 when there was none. Raises `EntryConflict`, `ClaimLost`."""
        request = _entries.delete_request(
            key, scope=scope, expected_revision=expected_revision, claim=claim, request_id=request_id
        )
        return (await self._ask(delete=request)).delete.revision

    async def list(self, prefix: str = "", *, scope: str = _entries.NAMESPACE) -> list[context_pb2.Entry]:
        """All entries whose keys begin with `prefix`, in an order that does not change."""
        entries: list[context_pb2.Entry] = []
        request = context_service_pb2.ListEntriesRequest(scope=_entries.scope_of(scope), prefix=prefix)
        while True:
            page = (await self._ask(list=request)).list
            entries.extend(page.entries)
            if not page.next_page_token:
                return entries
            request.page_token = page.next_page_token

    async def watch(
        self, prefix: str = "", *, scope: str = _entries.NAMESPACE, from_revision: int = 0
    ) -> AsyncIterator[context_pb2.EntryEvent]:
        """Changes of entries whose keys begin with `prefix`, without gap or repeat; from now on by default.

        It has no end: leave the loop when you have seen enough. The task keeps its place at the agent meanwhile. Raises
        `HistoryCompacted` when too much has happened since `from_revision`: list again.
        """
        request = context_service_pb2.WatchEntriesRequest(
            scope=_entries.scope_of(scope), prefix=prefix, from_revision=from_revision
        )
        while True:
            answer = (await self._ask(watch=request)).watch
            request.from_revision = answer.revision + 1
            for event in answer.events:
                yield event

    def claim(
        self,
        name: str,
        *,
        scope: str = _entries.NAMESPACE,
        ttl: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(0),
    ) -> Holding:
        """Hold a claim while a block runs, as `Client.claim`. It ends with the attempt at the latest."""
        holding = Holding(_TaskClaims(self), name, scope, ttl, wait)
        holding.held = lambda held: self._line.holds(self._assignment.attempt_id, held)
        return holding

    async def _ask(self, **kind: Any) -> context_request_pb2.ContextResponse:
        """The answer to one request, asked again when the answer says so; the attempt's time bounds it."""
        while True:
            request = context_request_pb2.ContextRequest(
                request_id=uuid.uuid4().hex,
                attempt_id=self._assignment.attempt_id,
                attempt_token=self._assignment.attempt_token,
                **kind,
            )
            response = await self._line.ask(request)
            if not response.HasField("error"):
                return response
            error = from_error_message(response.error)
            if not isinstance(error, RetryableError):
                raise error
            await asyncio.sleep(error.retry_after.total_seconds() if error.retry_after else _PAUSE)


class _TaskClaims:
    """The claims of a task, for `Holding`."""

    def __init__(self, shared: SharedContext) -> None:
        self._ask = shared._ask

    async def acquire(self, request: context_service_pb2.AcquireClaimRequest) -> context_pb2.Claim:
        return (await self._ask(acquire=request)).acquire.claim

    async def renew(self, request: context_service_pb2.RenewClaimRequest) -> context_pb2.Claim:
        return (await self._ask(renew=request)).renew.claim

    async def release(self, request: context_service_pb2.ReleaseClaimRequest) -> None:
        await self._ask(release=request)
