"""Runs, and never dials."""

from __future__ import annotations

import asyncio

from raw import Raw, main


class Broken(Raw):
    async def run(self) -> None:
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Broken)
