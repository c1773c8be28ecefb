"""Answers for capabilities that it never offered."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    async def unknown(self, assignment: pb.Assignment) -> Any:
        return None


if __name__ == "__main__":
    main(Broken)
