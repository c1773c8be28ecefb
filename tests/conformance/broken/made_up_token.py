"""Calls with a token of its own making."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def call(self, assignment: pb.Assignment) -> pb.CallRequest:
        call = super().call(assignment)
        call.attempt_token = b"let me in"
        return call


if __name__ == "__main__":
    main(Broken)
