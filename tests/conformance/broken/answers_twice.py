"""Gives two outcomes of each attempt."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def answer(self, result: pb.Result) -> None:
        super().answer(result)
        if not result.attempt_id.startswith("verify-duplicate-offer/"):
            super().answer(result)


if __name__ == "__main__":
    main(Broken)
