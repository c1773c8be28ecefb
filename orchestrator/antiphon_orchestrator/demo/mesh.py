"""A whole mesh in one folder: authority, orchestrator, five sidecars and what they front; real processes, mutual TLS.

The orchestrator listens on ports of the system's choice, and on the same ones when it is started again after a crash,
because the sidecars know them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from antiphon import Client, Credentials
from antiphon_certs import Authority, CertificateFiles, Grants, Identity, Kind, new_key_and_csr

from antiphon_orchestrator.policy import dev_profile

from .process import Child

NAMESPACE = "demo"
_READY = 20.0
_GRACE = 5.0
_SIDECARS = {
    "inventory": ("inventory", "package.*"),
    "classifier": ("classifier", "license.*"),
    "summarizer": ("summarizer", "text.summarize"),
    "redactor": ("redactor", "text.redact"),
    "reporter": ("reporter", "report.*"),
}
"""Sidecar: the agent it may speak for, and the capabilities that agent may offer."""
_POLICIES = "policies"


class Mesh:
    """Use it with `async with`: entering starts nothing, leaving stops everything."""

    def __init__(self, folder: Path, programs: Path) -> None:
        """`folder`: an empty one with a short path, since sockets are made in it. `programs`: examples/compliance."""
        self.folder = folder
        self.journal = folder / "journal"
        """A line for each piece of work that a program begins: capability, subject, process id."""
        self.orchestrator: Child
        self._programs = programs
        self._sidecars: list[Child] = []
        self._others: list[Child] = []
        self._address = self._join_address = "127.0.0.1:0"

    async def __aenter__(self) -> Self:
        self.journal.touch()
        self._govern()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Sidecars first: they tell the orchestrator that they go.
        for children in (self._sidecars, self._others):
            await asyncio.gather(*(child.stop(_GRACE) for child in children))

    def certify(self) -> None:
        """Make the authority, and certificates of a client and an operator signed by it."""
        authority = Authority.init(self.folder / "ca", "demo.antiphon.internal")
        for kind in (Kind.CLIENT, Kind.OPERATOR):
            identity = Identity(authority.trust_domain, NAMESPACE, kind, "demo")
            key_pem, request = new_key_and_csr(identity)
            chain_pem = authority.issue(request, identity, grants=Grants())
            CertificateFiles(self.folder / kind.value).store(key_pem, chain_pem, authority.bundle_pem)

    def client(self, kind: Kind = Kind.CLIENT) -> Client:
        """A client of the orchestrator, not connected yet."""
        return Client.connect(address=self._address, credentials=Credentials.from_folder(self.folder / kind.value))

    async def serve(self) -> None:
        """Start the orchestrator, for the first time or again, and wait until it serves."""
        data = self.folder / "data"
        command = [sys.executable, "-m", "antiphon_orchestrator", "serve"]
        command += ["--policy-folder", str(self.folder / _POLICIES)]
        command += ["--data", str(data), "--authority", str(self.folder / "ca")]
        command += ["--listen", self._address, "--join-listen", self._join_address]
        self.orchestrator = await self._start("orchestrator", command, self.folder)
        self._others.append(self.orchestrator)
        served: dict[str, object] = {}

        def serves() -> bool:
            try:
                served.update(json.loads((data / "endpoints.json").read_text()))
            except FileNotFoundError:
                return False
            return served["pid"] == self.orchestrator.pid  # one that was killed leaves its file behind

        await self.orchestrator.until(serves, _READY)
        self._address, self._join_address = str(served["address"]), str(served["join_address"])

    async def attach(self, commands: Mapping[str, Sequence[str]], told: Callable[[str, str], None]) -> None:
        """Start the sidecars and what stands behind them; `told` hears name and runtime of each agent that registers.

        `commands` are those of the agents that their sidecar starts; the others it fronts by a table of the examples.
        """
        port = await self._summarizer()
        tables = {
            "summarizer": self._table("summarizer.toml", "127.0.0.1:9000", f"127.0.0.1:{port}"),
            "redactor": self._table("redactor.toml", '"redact.py"', f'"redact.py", "--journal", "{self.journal}"'),
        }
        async with self.client(Kind.OPERATOR) as operator:
            for name, (agent, *capabilities) in _SIDECARS.items():
                token = await operator.create_token("sidecar", name, agents=[agent], capabilities=capabilities)
                command = [sys.executable, "-m", "antiphon_sidecar", "run", "--grace", "2s"]
                command += ["--state", str(self.folder / name), "--run-folder", str(self.folder / f"{name}.run")]
                if name in tables:
                    command += ["--config", str(tables[name])]
                else:
                    command += ["--", *commands[name]]
                # The token is no argument: arguments are shown to everyone on the machine.
                environ = {"ANTIPHON_TOKEN": token.token}
                self._sidecars.append(await self._start(f"sidecar of {name}", command, self._programs, environ))
            waiting = set(_SIDECARS)
            async with asyncio.timeout(_READY):
                async for found in operator.watch_agents():
                    if found.instances and found.name in waiting:
                        waiting.discard(found.name)
                        told(found.name, found.description.runtime)
                    if not waiting:
                        return

    def _govern(self) -> None:
        """A folder with the policies to begin with: the development profile's and those of the programs."""
        folder = self.folder / _POLICIES
        folder.mkdir()
        for file in dev_profile().files:
            (folder / file.name).write_text(file.text, "utf-8")
        for path in (self._programs / "policy").glob("*.cedar"):
            (folder / path.name).write_text(path.read_text("utf-8"), "utf-8")

    async def _summarizer(self) -> str:
        """Start the HTTP service, as someone else would have long before; its port."""
        command = [sys.executable, "summarizer.py", "--port", "0", "--journal", str(self.journal)]
        service = await self._start("summarizer", command, self._programs)
        self._others.append(service)
        await service.until(lambda: "\n" in service.log.read_text(), _READY)
        return service.log.read_text().split("\n", 1)[0].rpartition(":")[2]

    def _table(self, name: str, old: str, new: str) -> Path:
        """The example's configuration with one place of this machine put in; the rest is as it is."""
        path = self.folder / name
        path.write_text((self._programs / name).read_text("utf-8").replace(old, new), "utf-8")
        return path

    async def _start(self, name: str, command: list[str], folder: Path, environ: dict[str, str] | None = None) -> Child:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environ = {"COMPLIANCE_JOURNAL": str(self.journal), "PATH": paths, **(environ or {})}
        return await Child.start(name, command, log=log, folder=folder, environ=environ)
