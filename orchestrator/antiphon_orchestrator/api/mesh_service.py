"""MeshService.Attach: one reader and one writer a stream; everything else is in mesh/."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1.error_pb2 import ErrorReason

from ..mesh.sessions import Announcer, Sessions
from ..mesh.writing import messages
from .call import caller
from .errors import ApiError

Context = grpc.aio.ServicerContext[Any, Any]


HELLO_TIMEOUT = 10.0
"""Seconds in which a stream must begin with hello."""


class MeshService(mesh_service_pb2_grpc.MeshServiceServicer):
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Attach(
        self, request_iterator: AsyncIterator[mesh.AttachRequest], context: Context
    ) -> AsyncIterator[mesh.AttachResponse]:
        who = caller()
        announcer = Announcer(
            who.namespace, who.identity.name, who.principal, who.grants.allows_agent, who.grants.allows_capability
        )
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                first = await anext(request_iterator, None)
        except TimeoutError:
            first = None
        if first is None or not first.HasField("hello"):
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause="the first message must hold hello")
        session = await self._sessions.open(announcer, first.hello)

        async def read() -> None:
            async for message in request_iterator:
                await self._sessions.receive(session, announcer, message)
                await session.room()

        def done(task: asyncio.Task[None]) -> None:
            session.end(None if task.cancelled() else task.exception())

        reader = asyncio.create_task(read())
        reader.add_done_callback(done)
        try:
            async for response in messages(session):
                yield response
        finally:
            reader.cancel()
            self._sessions.close(session)
