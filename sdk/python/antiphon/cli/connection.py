"""Running one command's asynchronous part with a connected client of the profile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from .. import Client
from .identity import renew_when_due

Result = TypeVar("Result")
Item = TypeVar("Item")
_AT_ONCE = 8


def with_client(profile_name: str | None, work: Callable[[Client], Awaitable[Result]]) -> Result:
    """What `work` answers. The certificate is renewed when it is due, also meanwhile."""

    async def connected() -> Result:
        async with Client.connect(profile_name, renew=partial(renew_when_due, profile_name)) as client:
            return await work(client)

    return asyncio.run(connected())


async def first(limit: int, items: AsyncIterator[Item]) -> list[Item]:
    """At most `limit` of a paged list; no page is fetched beyond."""
    found: list[Item] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found


async def gather(calls: Sequence[Awaitable[Result]]) -> list[Result]:
    """The answers of all calls, in order; a few at a time."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Awaitable[Result]) -> Result:
        async with gate:
            return await call

    return await asyncio.gather(*map(one, calls))
