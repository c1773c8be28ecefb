"""Refuses messages with fields that it does not know."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from google.protobuf.unknown_fields import UnknownFieldSet
from raw import Failed, Raw, main


class Broken(Raw):
    async def handle(self, assignment: pb.Assignment) -> Any:
        if len(UnknownFieldSet(assignment)):
            raise Failed(failures.FAILURE_KIND_PERMANENT, "an unknown field")
        return await super().handle(assignment)


if __name__ == "__main__":
    main(Broken)
