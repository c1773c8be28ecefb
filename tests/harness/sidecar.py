"""`antiphon sidecar run`, with an agent process that it starts, or with agents as a TOML file says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .process import Process


class SidecarProcess(Process):
    """`state` keeps its identity and `run_folder` its sockets, from one life to the next."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, folder)
        self.state = folder / f"{name}.state"
        self.run_folder = folder / f"{name}.run"
        self._arguments = tuple(arguments)
        self._command = tuple(command)
        self.environment = dict(environment or {})

    def start(self) -> None:
        """Start it; whether it is attached, the registry knows."""
        command = [
            *(sys.executable, "-m", "antiphon.command", "sidecar", "run"),
            *("--state", str(self.state), "--run-folder", str(self.run_folder)),
            *self._arguments,
        ]
        if self._command:
            command += ["--", *self._command]
        self.spawn(command, self.environment)

    def restart(self) -> None:
        """A crash and a new start."""
        self.kill9()
        self.start()

    def agent_pids(self) -> list[int]:
        """The processes it has started and that live now."""
        return [pid for pid, parent in _parents().items() if parent == self.pid]

    def kill_agent(self) -> list[int]:
        """SIGKILL to its agents; which they were."""
        pids = self.agent_pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything; what follows the last one is ours to split.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(folder.name)] = int(fields[1])
    return found
