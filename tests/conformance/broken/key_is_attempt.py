"""Takes the next attempt of a task for the one before."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def __init__(self) -> None:
        super().__init__()
        self.done: set[str] = set()

    def assigned(self, assignment: pb.Assignment) -> None:
        if assignment.number == 1 or assignment.idempotency_key not in self.done:
            self.done.add(assignment.idempotency_key)
            super().assigned(assignment)


if __name__ == "__main__":
    main(Broken)
