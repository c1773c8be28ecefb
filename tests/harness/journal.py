"""What agents say of themselves: a file to which every agent process appends a line before and after it works.

A line is on disk before the work goes on, so a kill loses no line of work that was begun.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing an agent did. `event`: begun, done, failed, cancelled."""

    event: str
    capability: str
    attempt_id: str
    idempotency_key: str
    agent: str
    pid: int


class Journal:
    """The writing end, of one process."""

    def __init__(self, path: Path) -> None:
        # O_APPEND: lines of several processes do not mix.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, entry: Entry) -> None:
        """Append and wait until it is on disk."""
        os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")
        os.fdatasync(self._file)


def journal_of(path: Path) -> list[Entry]:
    """Everything that was written, in order."""
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
