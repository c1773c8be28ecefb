"""Both directions of one bidirectional stream: one reader, and one writer, since two would kill it.

The reader decides how a stream ended: only reading tells gRPC's status. A writer that ends, or fails, lets the reader
go on for a moment to find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

_WRITE, _LINGER = 60.0, 10.0

Request = TypeVar("Request")
Response = TypeVar("Response")


async def talk(read: Coroutine[Any, Any, None], write: Coroutine[Any, Any, None]) -> None:
    """Read and write until nothing is left to read. Raises what `read` raises; `TimeoutError` when it is stuck."""
    reader, writer = asyncio.create_task(read), asyncio.create_task(write)
    try:
        await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        if not reader.done():
            await asyncio.wait((reader,), timeout=_LINGER)
        if not reader.done():
            raise TimeoutError("the other side of the stream does not answer")
        await reader
    finally:
        await ended(reader, writer)


async def send(stream: grpc.aio.StreamStreamCall[Request, Response], message: Request) -> None:
    """Write one message. Raises `BrokenPipeError`, or `TimeoutError` when the other side has stopped reading."""
    try:
        async with asyncio.timeout(_WRITE):
            await stream.write(message)
    except asyncio.InvalidStateError:  # gRPC's word for a stream that has ended
        raise BrokenPipeError from None


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; whoever wanted their outcome has it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
