"""Fails with a kind that is the orchestrator's to set."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import Failed, Raw, main


class Broken(Raw):
    async def unknown(self, assignment: pb.Assignment) -> Any:
        raise Failed(failures.FAILURE_KIND_LOST, "somebody else has it")


if __name__ == "__main__":
    main(Broken)
