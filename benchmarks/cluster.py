"""Several orchestrators as their users run them: on one etcd and one PostgreSQL, fsync on in both, beside one sidecar.

etcd has one member, which is asked by TLS with client certificates; there is one folder of payloads. All processes
share this machine, so more replicas add work and no cores: measured is what a cluster costs, not what it can do.
"""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from antiphon import Client

from tests.harness.etcd import Etcd
from tests.harness.postgres import Postgres, find

from . import workload
from .mesh import HELD_AGENT, Mesh, agent_environ, connected, register, serve, sidecar
from .process import Child, child


@dataclass(slots=True)
class Replica:
    """One orchestrator, which keeps its address from one life to the next."""

    name: str
    folder: Path
    arguments: Sequence[str]
    environ: Mapping[str, str]
    stack: AsyncExitStack
    address: str = "127.0.0.1:0"
    join_address: str = "127.0.0.1:0"
    process: Child | None = None

    @property
    def child(self) -> Child:
        """The process of its present life."""
        assert self.process is not None
        return self.process

    async def start(self) -> None:
        """Returns once it serves."""
        data = self.folder / self.name
        endpoints = data / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        arguments = serve(data, self.folder / "ca", self.address, self.join_address) + list(self.arguments)
        log = self.folder / f"{self.name}.log"
        self.process = await self.stack.enter_async_context(child(self.name, arguments, log, self.environ))
        await self.process.until(endpoints.exists, "it does not serve")
        found = json.loads(endpoints.read_text())
        self.address, self.join_address = found["address"], found["join_address"]

    async def end(self, by: signal.Signals) -> None:
        """Sends it a signal and waits for its end."""
        self.child.process.send_signal(by)
        await self.child.process.wait()


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs. The orchestrators of `mesh` are called orchestrator, orchestrator-2 and so on."""

    mesh: Mesh
    replicas: list[Replica]
    journal: Path
    gate: Path

    @property
    def operator(self) -> Client:
        return self.mesh.operator

    def worked(self) -> list[tuple[float, str, str]]:
        """The agent's journal: time, capability and idempotency key of each task it has worked on."""
        if not self.journal.exists():
            return []
        # The last line may be half written.
        lines = (line.split(" ", 2) for line in self.journal.read_text().splitlines(keepends=True) if line[-1] == "\n")
        return [(float(moment), capability, key.strip()) for moment, capability, key in lines]

    def repeated(self) -> int:
        """Tasks that were worked on more than once."""
        worked = self.worked()
        return len(worked) - len({(capability, key) for _, capability, key in worked})


@dataclass(frozen=True, slots=True)
class Services:
    """What a cluster stands on, and where."""

    etcd: Etcd
    postgres: Postgres
    environ: Mapping[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self, folder: Path, replicas: int) -> AsyncIterator[Cluster]:
        """A cluster on a part of its own of both. `folder`: as of `identity.make`."""
        files = self.etcd.tls
        assert files is not None and files.certificate is not None and files.private_key is not None
        payloads = folder / "payloads"
        payloads.mkdir(mode=0o700, exist_ok=True)
        shared = ["--store", self.etcd.url(f"bench-{secrets.token_hex(4)}"), "--store-ca", str(files.ca)]
        shared += ["--store-cert", str(files.certificate), "--store-key", str(files.private_key)]
        shared += ["--archive", self.postgres.database(), "--payloads", payloads.as_uri()]
        async with AsyncExitStack() as stack:
            names = ["orchestrator", *(f"orchestrator-{number}" for number in range(2, replicas + 1))]
            members = [Replica(name, folder, shared, self.environ, stack) for name in names]
            for member in members:
                await member.start()
            addresses = ",".join(member.address for member in members)
            beside, socket = await stack.enter_async_context(sidecar(folder, addresses, self.environ))
            works = agent_environ(folder, socket)
            agent = await stack.enter_async_context(child("agent", HELD_AGENT, folder / "agent.log", works))
            operator = await stack.enter_async_context(connected(folder, "operator", addresses))
            client = await stack.enter_async_context(connected(folder, "client", addresses))
            children = {member.name: member.child for member in members} | {"sidecar": beside, "agent": agent}
            product = Mesh(client, operator, children)
            await register(product, [workload.PYTHON])
            await operator.register_graph(workload.held())
            yield Cluster(product, members, Path(works["BENCH_JOURNAL"]), Path(works["BENCH_GATE"]))


@asynccontextmanager
async def services(environ: Mapping[str, str]) -> AsyncIterator[Services]:
    """etcd and PostgreSQL, each in a folder of its own, gone afterwards. Raises EtcdMissing, FileNotFoundError."""
    if find("initdb") is None:
        raise FileNotFoundError("PostgreSQL is missing; install it (Debian: apt-get install postgresql)")
    with Etcd.start(fsync=True) as etcd, Postgres(fsync=True) as postgres:
        yield Services(etcd, postgres, environ)
