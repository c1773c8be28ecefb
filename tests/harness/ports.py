"""Ports that are chosen before what is to listen on them starts, on machines where other tests do the same.

The system's own choice is for who listens at once: what it has lent and taken back it lends to the next who asks, be
it for a connection. So these come from below its range, at random, and none comes twice in a process.
"""

from __future__ import annotations

import random
import socket
from contextlib import closing
from pathlib import Path

HOST = "127.0.0.1"
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """So many ports of 127.0.0.1 on which nobody listens."""
    below = int(_RANGE.read_text().split()[0])
    assert below - _LOWEST > 5_000, f"the system lends ports from {below} on, and there are too few below"
    ports: list[int] = []
    while len(ports) < count:
        # The system's randomness: that of `random` is seeded by hypothesis, and the same in all processes then.
        port = random.SystemRandom().randrange(_LOWEST, below)
        if port not in _given and _is_free(port):
            _given.add(port)
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
