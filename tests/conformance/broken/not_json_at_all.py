"""Answers HTML, although it has announced a schema."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def answer(self, result: pb.Result) -> None:
        if b"sum" in result.output.inline:
            result.output.inline, result.output.media_type = b"<html>", "text/html"
        super().answer(result)


if __name__ == "__main__":
    main(Broken)
