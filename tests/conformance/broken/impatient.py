"""Ends when its sidecar is not there yet."""

from __future__ import annotations

import os
import sys

from raw import Raw, main


class Broken(Raw):
    async def run(self) -> None:
        if not os.path.exists(os.environ["ANTIPHON_SOCKET"]):  # noqa: ASYNC240
            sys.exit("no socket")
        await super().run()


if __name__ == "__main__":
    main(Broken)
