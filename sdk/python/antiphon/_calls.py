"""How every call is made: with a deadline, with trace context, and again when the answer says that again is right.

A RETRY error is repeated after the delay the server asks for, jittered, at most five times and within the deadline of
the whole. Streams that resume by a cursor go by the same rules, but what bounds them is the time in which they are
opened in vain: a stream that stands may be silent for as long as there is nothing to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import timedelta
from math import inf
from time import monotonic
from typing import TypeVar

import grpc

from ._connection import Connection, Generation
from ._errors import AntiphonError, RetryableError, Unavailable, from_rpc_error
from ._reasons import CertificateExpired, NotServing, StoreUnavailable
from ._trace import traceparent

Item = TypeVar("Item")

RETRIES = 5
_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 2.0
_STOOD = 45.0
"""Seconds after which a stream has been one: to connect takes 5 s, and a dead peer is noticed within half a minute."""


def metadata() -> tuple[tuple[str, str], ...]:
    """Call metadata: the trace context."""
    return (("traceparent", traceparent()),)


def pause_before(error: RetryableError, failures: int) -> float:
    """Seconds to wait before the next try: what the server asks for and somewhat more, or a doubling back-off."""
    if error.retry_after is not None:
        return error.retry_after.total_seconds() * random.uniform(1.0, 1.25)
    return min(_BACKOFF_LAST, _BACKOFF_FIRST * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


class Tries:
    """Whether, when and on which channel to try again."""

    def __init__(self, connection: Connection, limit: timedelta, most: int | None = None) -> None:
        """A call is tried again `most` times, within `limit` of its beginning. Without `most` it is a stream, and
        `limit` bounds the time since the first failure after the last progress."""
        self._connection = connection
        self._limit = limit.total_seconds()
        self._most = most
        self.heard()
        if most is not None:
            self._end = self._began + self._limit

    def heard(self) -> None:
        """There was progress of a stream: start counting anew."""
        self._failures = 0
        self._began = monotonic()
        self._end = inf

    @property
    def left(self) -> float:
        """Seconds left, more than 0."""
        return max(0.001, self._end - monotonic())

    async def after(self, error: AntiphonError, generation: Generation) -> None:
        """Return when it is time for another try. Raises `error` when there is to be none."""
        if self._most is None and monotonic() - self._began >= _STOOD:
            self.heard()
        if isinstance(error, Unavailable) and (ended := self._connection.expired()) is not None:
            when = f"{ended:%Y-%m-%dT%H:%M:%SZ}"
            error = CertificateExpired(
                f"no server answers to a certificate that expired at {when}; join again: antiphon certs join TOKEN",
                metadata={"expire_time": when},
            )
        if isinstance(error, Unavailable | NotServing | StoreUnavailable):
            await self._connection.unreachable(generation)
        self._failures += 1
        # A stream may outlive the certificate it was opened with, or that may have been replaced a moment ago.
        if isinstance(error, CertificateExpired) and (
            generation.retired or (self._failures == 1 and await self._connection.refresh())
        ):
            self._began = monotonic()
            return
        if not isinstance(error, RetryableError) or (self._most is not None and self._failures > self._most):
            raise error
        pause = pause_before(error, self._failures - 1)
        now = monotonic()
        self._end = min(self._end, now + self._limit)
        if now + pause >= self._end:
            raise error
        await asyncio.sleep(pause)
        self._began = monotonic()


async def call(
    connection: Connection,
    send: Callable[[Generation, float], Awaitable[Item]],
    limit: timedelta,
    *,
    repeatable: bool = True,
) -> Item:
    """The answer to one call within `limit`, tries and pauses included. `send` gets the seconds left.

    Without `repeatable` a call that may have arrived is not sent again. Raises `AntiphonError`.
    """
    tries = Tries(connection, limit, RETRIES)
    while True:
        async with connection.use() as generation:
            try:
                return await send(generation, tries.left)
            except grpc.aio.AioRpcError as broken:
                error = from_rpc_error(broken)
        if isinstance(error, Unavailable) and not repeatable:
            await connection.unreachable(generation)  # the caller may make another one, which is to find somebody
            raise error
        await tries.after(error, generation)


async def resume(
    connection: Connection, open_stream: Callable[[Generation], AsyncIterator[Item]], patience: timedelta
) -> AsyncGenerator[Item, None]:
    """The messages of a stream that is opened again where it broke (`open_stream` knows where), until it ends whole.

    Gives up once it has been opened in vain for `patience`. Raises `AntiphonError`.
    """
    tries = Tries(connection, patience)
    while True:
        async with connection.use() as generation:
            try:
                async for message in open_stream(generation):
                    tries.heard()
                    yield message
                return
            except grpc.aio.AioRpcError as broken:
                error = from_rpc_error(broken)
        await tries.after(error, generation)
