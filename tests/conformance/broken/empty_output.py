"""Answers nothing at all, which is not null."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def answer(self, result: pb.Result) -> None:
        if result.output.inline == b"false":
            result.output.inline = b""
        super().answer(result)


if __name__ == "__main__":
    main(Broken)
