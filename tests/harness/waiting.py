"""Waiting for a state that another process brings about: by looking often, with a limit."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

LIMIT = 20.0
"""Seconds after which a state that should have come about never will; generous, for machines under load."""

_PAUSE = 0.02

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T] | T], *, limit: float = LIMIT) -> T:
    """The first answer of `look` that is true. Fails with the last one after `limit` seconds."""
    found: T | None = None
    try:
        async with asyncio.timeout(limit):
            while True:
                answer = look()
                found = await answer if inspect.isawaitable(answer) else answer
                if found:
                    return found
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        raise AssertionError(f"it did not come about within {limit:g} s; last seen: {found!r}") from None
