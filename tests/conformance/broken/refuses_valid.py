"""Refuses every input that its schema accepts."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import Failed, Raw, main


class Broken(Raw):
    async def ask(self, assignment: pb.Assignment, value: Any) -> Any:
        if assignment.attempt_id.startswith("verify-valid-input/"):
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "not today")
        return await super().ask(assignment, value)


if __name__ == "__main__":
    main(Broken)
