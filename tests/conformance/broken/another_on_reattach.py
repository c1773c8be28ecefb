"""Announces less on its second stream."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        hello = super().hello()
        if self.streams > 1:
            hello.hello.description.capabilities[0].description = f"as of stream {self.streams}"
        return hello


if __name__ == "__main__":
    main(Broken)
