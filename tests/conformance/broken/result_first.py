"""Begins with a result instead of hello."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        return pb.WorkRequest(results=[pb.Result(attempt_id="x/y/0/1")])


if __name__ == "__main__":
    main(Broken)
