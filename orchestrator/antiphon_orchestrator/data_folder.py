"""The data folder of an orchestrator, which one process has at a time.

The file of the embedded store has a lock of its own; with a store in a cluster nothing else keeps two replicas apart
that were given one folder, where each would take the other's `endpoints.json` for its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


class DataInUse(Exception):
    """Another process has the data folder."""


@contextmanager
def held(data: Path) -> Iterator[None]:
    """Inside, the folder is ours; it exists. The lock ends with the process, whatever ends that. Raises DataInUse."""
    descriptor = os.open(data / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "stop that process, or give this one a folder of its own"
            raise DataInUse(f"data: another process has the folder {data} open: {remedy}") from error
        yield
    finally:
        os.close(descriptor)


def in_use(data: Path) -> bool:
    """Whether a process has the folder now; changes nothing."""
    try:
        descriptor = os.open(data / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
