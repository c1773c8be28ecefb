"""Child processes of a measurement: started with their output in a file, ended by SIGTERM, looked at through /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_READY = 120.0
_END = 15.0
_LOOK = 0.02


class ProcessFailed(Exception):
    """A measured process did not start, or ended on its own; the message holds the end of what it printed."""


@dataclass(slots=True)
class Child:
    """One running process; `pid` is the operating system's."""

    name: str
    process: asyncio.subprocess.Process
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises ProcessFailed when it has ended."""
        if self.process.returncode is not None:
            raise self.failed(f"ended with status {self.process.returncode}")

    def failed(self, what: str) -> ProcessFailed:
        """The exception that says what happened to it."""
        tail = self.output.read_text(errors="replace")[-2000:]
        return ProcessFailed(f"{self.name} {what}; it printed:\n{tail}")

    async def until(self, found: Callable[[], bool], what: str) -> None:
        """Waits for a sign of it. Raises ProcessFailed."""
        end = time.monotonic() + _READY
        while not found():
            self.check()
            if time.monotonic() > end:
                raise self.failed(f"did not come up within {_READY:g} s: {what}")
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def child(
    name: str,
    arguments: Sequence[str],
    output: Path,
    environ: Mapping[str, str] | None = None,
    program: str = sys.executable,
) -> AsyncIterator[Child]:
    """Runs `PROGRAM ARGUMENTS` for as long as the block; then SIGTERM, and SIGKILL for one that does not end."""
    with output.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=sink, stderr=sink, env={**os.environ, **(environ or {})}
        )
    try:
        yield Child(name, process, output)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_END):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def memory(pid: int) -> tuple[float, float]:
    """Resident memory of a process in MB: now, and at its peak."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
