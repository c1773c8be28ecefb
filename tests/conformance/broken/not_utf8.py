"""Answers JSON in UTF-16."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def answer(self, result: pb.Result) -> None:
        if result.output.inline == b"false":
            result.output.inline = '"hi"'.encode("utf-16")
        super().answer(result)


if __name__ == "__main__":
    main(Broken)
