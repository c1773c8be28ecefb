"""Announces a schema that is none."""

from __future__ import annotations

import json

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        hello = super().hello()
        hello.hello.description.capabilities[1].output_schema = json.dumps({"type": "sum"})
        return hello


if __name__ == "__main__":
    main(Broken)
