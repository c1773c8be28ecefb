"""A whole mesh on this machine: authority, one orchestrator, any number of sidecars and clients."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from antiphon import AgentNotFound, Client
from antiphon.v1 import registry_pb2
from antiphon_certs import Kind

from .authority import NAMESPACE, Ca
from .orchestrator import OrchestratorProcess
from .sidecar import SidecarProcess
from .waiting import eventually

ROOT = Path(__file__).parents[2]
AGENT = (sys.executable, "-m", "tests.harness.agent")
"""The command of the agent that can do everything."""


class Mesh:
    """Use it with `with`: nothing that it starts outlives it. `settings` are flags of the orchestrator."""

    def __init__(self, *settings: str, policy: Sequence[str] = ("--policy-profile", "dev")) -> None:
        # Sockets' paths have at most 107 bytes, and pytest's folders are long.
        self.folder = Path(tempfile.mkdtemp(prefix="anti-"))
        self.ca = Ca(self.folder / "ca")
        self.orchestrator = OrchestratorProcess(self.folder, self.ca.folder, settings=(*policy, *settings))
        self.sidecars: list[SidecarProcess] = []
        self.journal = self.folder / "journal"
        self._count = 0

    def __enter__(self) -> Self:
        try:
            self.orchestrator.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every file."""
        self.dismiss(*self.sidecars)
        self.orchestrator.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def show(self) -> None:
        """Print what the processes have said since this was last called."""
        for process in (self.orchestrator, *self.sidecars):
            process.show()

    def path(self, name: str) -> Path:
        """A path in the mesh's folder that nobody else uses."""
        self._count += 1
        return self.folder / f"{self._count}-{name}"

    def client(
        self, name: str = "alice", *, kind: Kind = Kind.CLIENT, namespace: str = NAMESPACE, **options: Any
    ) -> Client:
        """A client with a certificate of its own; use it with `async with`."""
        credentials = self.ca.client(name, kind=kind, namespace=namespace)
        return Client.connect(address=self.orchestrator.address, credentials=credentials, **options)

    def operator(self) -> Client:
        """A client that may look after agents."""
        return self.client("olga", kind=Kind.OPERATOR)

    def sidecar(
        self,
        agent: str = "worker",
        *,
        command: Sequence[str] = AGENT,
        capabilities: Sequence[str] = ("*",),
        granted: Sequence[str] | None = None,
        config: str = "",
        start: bool = True,
        arguments: Sequence[str] = (),
        **settings: object,
    ) -> SidecarProcess:
        """A sidecar that has joined, with one agent: the command's, or those of `config` (TOML).

        `settings` go to the agent's environment: concurrency=1 is AGENT_CONCURRENCY=1.
        """
        self._count += 1
        name = f"s{self._count}"
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "AGENT_NAME": agent,
            "AGENT_JOURNAL": str(self.journal),
            **{f"AGENT_{key.upper()}": _spelled(value) for key, value in settings.items()},
        }
        arguments = list(arguments)
        if config:
            path = self.folder / f"{name}.toml"
            path.write_text(config)
            arguments += ["--config", str(path)]
        sidecar = SidecarProcess(
            name, self.folder, arguments=arguments, command=() if config else command, environment=environment
        )
        pem = self.ca.issue(Kind.SIDECAR, name, agents=granted or (agent,), capabilities=capabilities)
        self.ca.join_sidecar(sidecar.state, name, self.orchestrator.address, pem)
        self.sidecars.append(sidecar)
        if start:
            sidecar.start()
        return sidecar

    def dismiss(self, *sidecars: SidecarProcess) -> None:
        """End sidecars with their agents at once, and for good."""
        for sidecar in sidecars:
            if sidecar.alive:
                sidecar.stall()  # or it may yet say that its agent has ended
                sidecar.kill_agent()
            sidecar.close()
            self.sidecars.remove(sidecar)

    async def attached(
        self, client: Client, agent: str = "worker", *, instances: int = 1, slots: int = 1
    ) -> registry_pb2.Agent:
        """The agent, once so many instances of it have slots."""

        async def look() -> registry_pb2.Agent | None:
            with suppress(AgentNotFound):
                found = await client.get_agent(agent)
                if sum(one.slots >= slots for one in found.instances) == instances:
                    return found
            return None

        found: registry_pb2.Agent = await eventually(look)
        return found


def _spelled(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
