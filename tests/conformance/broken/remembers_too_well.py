"""Takes what comes again on a new stream for what it has already."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()

    def assigned(self, assignment: pb.Assignment) -> None:
        if assignment.attempt_id not in self.known:
            self.known.add(assignment.attempt_id)
            super().assigned(assignment)


if __name__ == "__main__":
    main(Broken)
