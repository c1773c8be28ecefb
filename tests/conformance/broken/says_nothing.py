"""Connects and says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    async def requests(self) -> AsyncIterator[pb.WorkRequest]:
        await asyncio.Event().wait()
        yield self.hello()


if __name__ == "__main__":
    main(Broken)
