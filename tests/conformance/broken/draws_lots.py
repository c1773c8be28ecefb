"""Is declared pure and answers by chance."""

from __future__ import annotations

from typing import Any

from raw import Raw, main


class Broken(Raw):
    drawn = 0

    def added(self, value: dict[str, int]) -> Any:
        self.drawn += 1
        return {"sum": self.drawn}


if __name__ == "__main__":
    main(Broken)
