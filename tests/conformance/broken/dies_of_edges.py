"""Is ended by the largest number that its schema allows."""

from __future__ import annotations

import os
from typing import Any

from raw import Raw, main


class Broken(Raw):
    def added(self, value: dict[str, int]) -> Any:
        if 1_000_000 in value.values():
            os._exit(3)
        return super().added(value)


if __name__ == "__main__":
    main(Broken)
