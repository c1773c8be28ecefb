"""Gives outcomes of attempts that it does not hold."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def answer(self, result: pb.Result) -> None:
        super().answer(result)
        super().answer(pb.Result(attempt_id=f"{result.attempt_id}0"))


if __name__ == "__main__":
    main(Broken)
