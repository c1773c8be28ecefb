"""Gives no outcome when its time was over before it began."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def assigned(self, assignment: pb.Assignment) -> None:
        left = assignment.remaining_timeout
        if not assignment.HasField("remaining_timeout") or left.seconds or left.nanos > 10_000_000:
            super().assigned(assignment)


if __name__ == "__main__":
    main(Broken)
