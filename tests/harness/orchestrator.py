"""`antiphon orchestrator serve` on a data folder that outlives its crashes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from .ports import HOST, free_ports
from .process import Process
from .waiting import LIMIT


class OrchestratorProcess(Process):
    """Each life has the same ports, as those of a service."""

    def __init__(self, folder: Path, authority: Path, *, data: Path | None = None, settings: tuple[str, ...]) -> None:
        super().__init__("orchestrator", folder)
        self.data = data or folder / "data"
        self.listen, self.join_listen = (f"{HOST}:{port}" for port in free_ports(2))
        self.address = self.join_address = ""
        """As others dial it, once it serves."""
        self.environment: dict[str, str] = {}
        self.authority = authority
        self.settings = settings

    def begin(self) -> None:
        """Start it and do not wait."""
        endpoints = self.data / "endpoints.json"
        endpoints.unlink(missing_ok=True)  # a life that was killed has left its own
        self.spawn(
            [
                *(sys.executable, "-m", "antiphon.command", "orchestrator", "serve"),
                *("--data", str(self.data), "--authority", str(self.authority)),
                *("--listen", self.listen, "--join-listen", self.join_listen),
                *("--shards", "4"),  # not the one that is the default: what crosses shards is to be met here
                *self.settings,
            ],
            self.environment,
        )

    def start(self) -> None:
        """Start it and return once it serves; again, as a service manager does, when etcd did not answer in time."""
        end = time.monotonic() + LIMIT
        while True:
            self.begin()
            try:
                self.wait_ready()
            except AssertionError:
                last = self.said().rstrip().rpartition("\n")[2]
                if self.alive or not last.startswith("antiphon orchestrator: etcd") or time.monotonic() > end:
                    raise
            else:
                return

    def wait_ready(self) -> None:
        """Return once it has said where it serves."""
        path = self.data / "endpoints.json"
        self.wait_for_file(path)
        found = json.loads(path.read_text())
        self.address, self.join_address = found["address"], found["join_address"]

    def restart(self) -> None:
        """A crash and a new start."""
        self.kill9()
        self.start()
