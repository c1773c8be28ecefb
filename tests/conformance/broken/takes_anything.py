"""Answers inputs that its schema refuses."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    async def add(self, assignment: pb.Assignment, value: Any) -> Any:
        return {"sum": 0} if not isinstance(value, dict) else await super().add(assignment, value)


if __name__ == "__main__":
    main(Broken)
