"""Calls on behalf of another attempt."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    first = b""

    def call(self, assignment: pb.Assignment) -> pb.CallRequest:
        self.first = self.first or assignment.attempt_token
        call = super().call(assignment)
        call.attempt_token = self.first
        return call


if __name__ == "__main__":
    main(Broken)
