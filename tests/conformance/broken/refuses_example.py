"""Refuses the example that its own schema gives, which is the largest number there."""

from __future__ import annotations

import json
from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import INPUT, Failed, Raw, main


class Broken(Raw):
    def hello(self) -> pb.WorkRequest:
        hello = super().hello()
        hello.hello.description.capabilities[0].input_schema = json.dumps({**INPUT, "examples": [{"a": 1_000_000}]})
        return hello

    def added(self, value: dict[str, int]) -> Any:
        if value["a"] == 1_000_000:
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "too large")
        return super().added(value)


if __name__ == "__main__":
    main(Broken)
