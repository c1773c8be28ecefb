"""Takes an absent timeout for none left."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import Failed, Raw, main


class Broken(Raw):
    async def handle(self, assignment: pb.Assignment) -> Any:
        left = assignment.remaining_timeout
        if left.seconds + left.nanos == 0:
            raise Failed(failures.FAILURE_KIND_TIMEOUT, "no time left")
        return await super().handle(assignment)


if __name__ == "__main__":
    main(Broken)
