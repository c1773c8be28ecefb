"""Offers a capability whose name the contract does not allow."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        hello = super().hello()
        hello.hello.description.capabilities[0].name = "Sum Add"
        return hello


if __name__ == "__main__":
    main(Broken)
