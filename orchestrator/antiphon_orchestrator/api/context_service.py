"""ContextService: see protos/antiphon/v1/context_service.proto. The work is done in context/."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from antiphon.v1 import context_service_pb2 as api
from antiphon.v1 import context_service_pb2_grpc

from ..context import SharedContext, Standing
from .call import caller

Context = grpc.aio.ServicerContext[Any, Any]


class ContextService(context_service_pb2_grpc.ContextServiceServicer):
    def __init__(self, shared: SharedContext) -> None:
        self._shared = shared

    async def GetEntry(self, request: api.GetEntryRequest, context: Context) -> api.GetEntryResponse:
        return await self._shared.get(_standing(), request)

    async def PutEntry(self, request: api.PutEntryRequest, context: Context) -> api.PutEntryResponse:
        return await self._shared.put(_standing(), request)

    async def DeleteEntry(self, request: api.DeleteEntryRequest, context: Context) -> api.DeleteEntryResponse:
        return await self._shared.delete(_standing(), request)

    async def ListEntries(self, request: api.ListEntriesRequest, context: Context) -> api.ListEntriesResponse:
        return await self._shared.list(_standing(), request)

    async def WatchEntries(
        self, request: api.WatchEntriesRequest, context: Context
    ) -> AsyncIterator[api.WatchEntriesResponse]:
        async with aclosing(self._shared.watch(_standing(), request)) as messages:
            async for message in messages:
                yield message

    async def GetLineage(self, request: api.GetLineageRequest, context: Context) -> api.GetLineageResponse:
        return await self._shared.lineage(_standing(), request)

    async def AcquireClaim(self, request: api.AcquireClaimRequest, context: Context) -> api.AcquireClaimResponse:
        return await self._shared.acquire(_standing(), request)

    async def RenewClaim(self, request: api.RenewClaimRequest, context: Context) -> api.RenewClaimResponse:
        return await self._shared.renew(_standing(), request)

    async def ReleaseClaim(self, request: api.ReleaseClaimRequest, context: Context) -> api.ReleaseClaimResponse:
        return await self._shared.release(_standing(), request)


def _standing() -> Standing:
    who = caller()
    return Standing(who.principal, who.identity.kind.value, who.namespace)
