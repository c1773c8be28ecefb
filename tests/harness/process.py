"""A process of the product: started, watched by its log file, ended by its pid and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .waiting import LIMIT

_PAUSE = 0.01


def stall(*pids: int) -> None:
    """SIGSTOP, and wait until each thread of each process stands still.

    The signal stops one thread at once and asks the others to; on a busy machine they may answer a request in between.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + LIMIT
    while any(_moves(pid) for pid in pids):
        assert time.monotonic() < end, f"of the processes {pids} one does not stop"
        time.sleep(_PAUSE)


def _moves(pid: int) -> bool:
    """Whether a thread of it may still run; see proc_pid_stat(5)."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            continue
        if state not in "TZX":
            return True
    return False


class Process:
    """One program that may be started again after it has ended; all its lives write to one log file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._shown = 0

    def spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. It must not run already."""
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Signal it; one that has ended is left alone."""
        if self._process is not None:
            self._process.send_signal(number)

    def stall(self) -> None:
        """It stands still, connections and all, until it gets SIGCONT."""
        stall(self.pid)

    def kill9(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def term(self, limit: float = LIMIT) -> int:
        """Ask it to end and return its exit code."""
        self.send(signal.SIGTERM)
        return self.end(limit)

    def end(self, limit: float = LIMIT) -> int:
        """Its exit code, once it has ended by itself; fails after `limit` seconds."""
        assert self._process is not None
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {limit:g} s\n{self.said()}") from None

    def close(self) -> None:
        """Gone, whatever it was doing."""
        self.kill9()

    def said(self) -> str:
        """Everything it has written."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def show(self) -> None:
        """Print what it has written since it was last shown: pytest shows that of tests that fail."""
        text = self.said()
        if fresh := text[self._shown :].strip():
            print(f"--- {self.name}\n{fresh}")
        self._shown = len(text)

    def wait_for_file(self, path: Path, limit: float = LIMIT) -> None:
        """Return once the file is there; fails when the process ends before, or after `limit` seconds."""
        end = time.monotonic() + limit
        while not path.exists():
            if not self.alive or time.monotonic() > end:
                raise AssertionError(f"{self.name} made no {path.name}\n{self.said()}")
            time.sleep(_PAUSE)
