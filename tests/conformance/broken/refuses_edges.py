"""Refuses the largest number that its schema allows."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import failure_pb2 as failures
from raw import Failed, Raw, main


class Broken(Raw):
    def added(self, value: dict[str, int]) -> Any:
        if 1_000_000 in value.values():
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "too large")
        return super().added(value)


if __name__ == "__main__":
    main(Broken)
