"""Says nothing to work that it does not know."""

from __future__ import annotations

import asyncio
from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    async def unknown(self, assignment: pb.Assignment) -> Any:
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Broken)
