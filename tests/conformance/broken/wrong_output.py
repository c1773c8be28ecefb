"""Answers what its output schema refuses."""

from __future__ import annotations

from typing import Any

from raw import Raw, main


class Broken(Raw):
    def added(self, value: dict[str, int]) -> Any:
        return {"sum": str(value["a"])}


if __name__ == "__main__":
    main(Broken)
