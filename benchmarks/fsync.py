"""How long this disk takes to make 4 KiB durable: the floor of anything that answers only after a commit."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .statistic import percentile_ms

_BYTES = 4096


def measure(folder: Path, times: int) -> float:
    """Median in milliseconds of an append and an fsync in `folder`."""
    samples = []
    path = folder / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(times):
            begun = time.perf_counter()
            os.write(descriptor, b"\0" * _BYTES)
            os.fsync(descriptor)
            samples.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
    return percentile_ms(samples, 0.5)
