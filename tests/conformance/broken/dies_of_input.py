"""Is ended by an input that is not JSON."""

from __future__ import annotations

import os
from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    async def handle(self, assignment: pb.Assignment) -> Any:
        if assignment.input.inline[:9] == b'{"broken"':
            os._exit(3)
        return await super().handle(assignment)


if __name__ == "__main__":
    main(Broken)
