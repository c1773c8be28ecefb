"""Calls what was cancelled a transient failure."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import Raw, main


class Broken(Raw):
    def cancelled(self, result: pb.Result) -> None:
        self.tasks.pop(result.attempt_id, None)
        result.failure.kind, result.failure.message = failures.FAILURE_KIND_TRANSIENT, "interrupted"
        self.answer(result)


if __name__ == "__main__":
    main(Broken)
