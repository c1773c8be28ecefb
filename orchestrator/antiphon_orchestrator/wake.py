"""A wake-up call: an event that is set far more often than anybody waits for it.

`asyncio.Event` is interpreted Python, and what goes through a session or a shard sets one at each step of each task.
To set this one again costs nothing.
"""

from __future__ import annotations

import asyncio


class Wake:
    """As `asyncio.Event`, for one loop. It begins unset."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._is_set = False

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._event.set()

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            self._event.clear()

    async def wait(self) -> None:
        """Returns once it is set."""
        await self._event.wait()
