"""The part of the client that reads and writes shared context."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from antiphon.v1 import (
    context_pb2,
    context_service_pb2,
)

from . import _calls, _entries
from ._client_base import ClientBase
from ._connection import Generation
from ._holding import Holding
from ._submission import INLINE_LIMIT


class ContextCalls(ClientBase):
    """Entries and claims of shared context."""

    async def get_entry(self, key: str, *, scope: str = "namespace") -> context_pb2.Entry:
        """An entry of shared context; `entry_value` gives its value. Raises `EntryNotFound`.

        `scope` is `namespace`, `run:ID` or `graph:NAME`, here and below.
        """
        request = context_service_pb2.GetEntryRequest(scope=_entries.scope_of(scope), key=key)
        return (await self._ask(lambda to: to.context.GetEntry, request)).entry

    async def put_entry(
        self,
        key: str,
        value: Any,
        *,
        scope: str = "namespace",
        ttl: timedelta | None = None,
        expected_revision: int | None = None,
        labels: Iterable[str] = (),
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> context_service_pb2.PutEntryResponse:
        """Write an entry whole: anything JSON can hold, or a `Payload`; a large one is uploaded first.

        `ttl`: how long it is there; for ever by default. `expected_revision`: the one it must have, 0 for none there;
        any by default. `labels`: such as "pii" or "region=eu". `claim`: one that must still be ours. Raises
        `EntryConflict`, `ContextQuotaExceeded`, `ClaimLost`.
        """
        request = await _entries.put_request(
            self.upload_payload,
            INLINE_LIMIT,
            key,
            value,
            scope=scope,
            ttl=ttl,
            expected_revision=expected_revision,
            labels=labels,
            claim=claim,
            request_id=request_id,
        )
        return await self._ask(lambda to: to.context.PutEntry, request)

    async def delete_entry(
        self,
        key: str,
        *,
        scope: str = "namespace",
        expected_revision: int | None = None,
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> int:
        """Remove an entry: the revision of the removal, 0 when there was none. Raises `EntryConflict`, `ClaimLost`."""
        request = _entries.delete_request(
            key, scope=scope, expected_revision=expected_revision, claim=claim, request_id=request_id
        )
        return (await self._ask(lambda to: to.context.DeleteEntry, request)).revision

    def list_entries(
        self, prefix: str = "", *, scope: str = "namespace", page_size: int = 0
    ) -> AsyncIterator[context_pb2.Entry]:
        """Entries whose keys begin with `prefix`, in an order that does not change; pages are fetched as needed."""
        request = context_service_pb2.ListEntriesRequest(
            scope=_entries.scope_of(scope), prefix=prefix, page_size=page_size
        )
        return self._pages(lambda to: to.context.ListEntries, request, lambda page: page.entries)

    async def snapshot_entries(
        self, prefix: str = "", *, scope: str = "namespace"
    ) -> tuple[list[context_pb2.Entry], int]:
        """All entries whose keys begin with `prefix`, and the revision to watch from so that nothing is missed."""
        request = context_service_pb2.ListEntriesRequest(scope=_entries.scope_of(scope), prefix=prefix, page_size=500)
        entries: list[context_pb2.Entry] = []
        while True:
            page = await self._ask(lambda to: to.context.ListEntries, request)
            entries.extend(page.entries)
            if not page.next_page_token:
                return entries, page.revision + 1
            request.page_token = page.next_page_token

    async def watch_entries(
        self, prefix: str = "", *, scope: str = "namespace", from_revision: int = 0
    ) -> AsyncIterator[context_pb2.EntryEvent]:
        """Changes of entries whose keys begin with `prefix`, without end, gap or repeat; from now on by default.

        To have what is there and everything after it, begin with `snapshot_entries`. Goes on by itself after a broken
        stream. Raises `HistoryCompacted` when too much has happened meanwhile: take another snapshot.
        """
        request = context_service_pb2.WatchEntriesRequest(
            scope=_entries.scope_of(scope), prefix=prefix, from_revision=from_revision
        )

        async def open_stream(to: Generation) -> AsyncIterator[context_service_pb2.WatchEntriesResponse]:
            stream = to.context.WatchEntries(request, metadata=_calls.metadata())
            try:
                async for message in stream:
                    request.from_revision = message.revision + 1
                    yield message
            finally:
                stream.cancel()

        async with aclosing(_calls.resume(self._connection, open_stream, self._patience)) as messages:
            async for message in messages:
                for event in message.events:
                    yield event

    async def lineage(self, key: str, *, scope: str = "namespace") -> context_service_pb2.GetLineageResponse:
        """What an entry was made from, nearest first, as far as that is still there. Raises `EntryNotFound`."""
        request = context_service_pb2.GetLineageRequest(scope=_entries.scope_of(scope), key=key)
        return await self._ask(lambda to: to.context.GetLineage, request)

    def claim(
        self,
        name: str,
        *,
        scope: str = "namespace",
        ttl: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(0),
    ) -> Holding:
        """Hold a claim while a block runs; by convention its name is the key, or the prefix, that it protects.

        async with client.claim("plan") as claim:
            await client.put_entry("plan", plan, claim=claim)

        It is renewed meanwhile; without us it ends after `ttl`, 1 s to an hour. Raises `ClaimHeld` when somebody else
        has it after `wait`, and `ClaimLost` in the block's place when it is lost.
        """
        return Holding(_ClientClaims(self), name, scope, ttl, wait)

    async def acquire_claim(self, request: context_service_pb2.AcquireClaimRequest) -> context_pb2.Claim:
        """Take a claim without keeping it alive; `claim` does both. Raises `ClaimHeld`."""
        return (await self._ask(lambda to: to.context.AcquireClaim, request)).claim

    async def renew_claim(self, request: context_service_pb2.RenewClaimRequest) -> context_pb2.Claim:
        """Begin a claim's time anew. Raises `ClaimLost`."""
        return (await self._ask(lambda to: to.context.RenewClaim, request)).claim

    async def release_claim(self, request: context_service_pb2.ReleaseClaimRequest) -> None:
        """Give a claim up; one that is not ours any more is left alone."""
        await self._ask(lambda to: to.context.ReleaseClaim, request)


class _ClientClaims:
    """The claims of a client, for `Holding`."""

    def __init__(self, client: ContextCalls) -> None:
        self.acquire = client.acquire_claim
        self.renew = client.renew_claim
        self.release = client.release_claim
