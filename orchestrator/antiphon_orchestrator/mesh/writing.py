"""The messages of a session as a stream. Apart from it because compiled code has no asynchronous generators."""

from __future__ import annotations

from collections.abc import AsyncIterator

from antiphon.mesh.v1 import mesh_service_pb2 as mesh

from .session import Session


async def messages(session: Session) -> AsyncIterator[mesh.AttachResponse]:
    """The messages to write, until the session ends; raises what it ended with."""
    while True:
        await session.woken()
        while (message := session.next_message()) is not None:
            yield message
        if session.ended:
            if session.error is not None:
                raise session.error
            return
