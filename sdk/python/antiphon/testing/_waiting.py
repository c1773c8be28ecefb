"""Waiting for a state that somebody else brings about: by looking often, with a limit."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

LIMIT = 60.0
"""Seconds after which a state that should have come about never will; generous, for machines under load."""

_PAUSE = 0.02


async def eventually(look: Callable[[], Any], *, limit: float = LIMIT) -> Any:
    """The first answer of `look`, awaited if need be, that is true. Fails with the last one after `limit` seconds."""
    found: Any = None
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
