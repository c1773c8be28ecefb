"""Speaks a version of the contract that there is not."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        hello = super().hello()
        hello.hello.protocol_version = 7
        return hello


if __name__ == "__main__":
    main(Broken)
