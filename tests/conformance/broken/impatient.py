"""Ends when its sidecar is not there yet.

That is judged by when the socket was made: a machine that is busy may start this program so slowly that it finds one.
"""

from __future__ import annotations

import os
import sys
import time

from raw import Raw, main

MARGIN = 0.1
"""Seconds: the kernel counts the start of a process in hundredths, and a late socket comes half a second after it."""


def started() -> float:
    """When this process began, in seconds since 1970."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


class Broken(Raw):
    async def run(self) -> None:
        try:
            made = os.stat(os.environ["ANTIPHON_SOCKET"]).st_ctime
        except FileNotFoundError:
            sys.exit("no socket")
        if made > started() + MARGIN:
            sys.exit("no socket when it began")
        await super().run()


if __name__ == "__main__":
    main(Broken)
