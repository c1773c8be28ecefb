"""The product as its users run it: orchestrator, sidecar and agent, each a process of its own, and a client here.

Embedded store with fsync on, the development policy profile, mutual TLS, graphs registered. The one setting that is
not the default is the rate of unary calls per identity, since one client stands for many here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from antiphon import Client, Credentials

from . import identity, workload
from .process import Child, child

_AGENT = ["-m", "benchmarks.agent"]


@dataclass(frozen=True, slots=True)
class Mesh:
    """What runs. `client` and `operator` are connected; `children` are the processes by name."""

    client: Client
    operator: Client
    children: dict[str, Child]

    def check(self) -> None:
        """Raises ProcessFailed when one of the processes has ended."""
        for one in self.children.values():
            one.check()


def _client(folder: Path, kind: str, address: str) -> Client:
    files = identity.files(folder, kind)
    return Client.connect(address=address, credentials=Credentials.from_files(files.cert, files.key, files.bundle))


def _sidecar_config(folder: Path) -> Path:
    files = identity.files(folder, "sidecar")
    lines = ["[identity]"]
    lines += [f'{name} = "{path}"' for name, path in (("key", files.key), ("cert", files.cert))]
    lines += [f'bundle = "{files.bundle}"', "[[agent]]", 'name = "bench"', ""]
    path = folder / "sidecar.toml"
    path.write_text("\n".join(lines))
    return path


@asynccontextmanager
async def running(folder: Path, environ: Mapping[str, str]) -> AsyncIterator[Mesh]:
    """Everything up, the agent known to the orchestrator, all graphs registered. `folder`: as of `identity.make`.

    `environ` of the servers decides whether they run from the wheel or from the source.
    """
    data = folder / "data"
    serve = ["-m", "antiphon_orchestrator", "serve", "--data", str(data), "--authority", str(folder / "ca")]
    serve += ["--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0", "--policy-profile", "dev"]
    serve += ["--api-calls-per-second", "1000000", "--api-call-burst", "1000000"]
    endpoints = data / "endpoints.json"
    async with child("orchestrator", serve, folder / "orchestrator.log", environ) as orchestrator:
        await orchestrator.until(endpoints.exists, "it does not serve")
        address = json.loads(endpoints.read_text())["address"]
        run_folder = folder / "run"
        socket = run_folder / "bench.sock"
        sidecar_run = ["-m", "antiphon_sidecar", "run", "--config", str(_sidecar_config(folder))]
        sidecar_run += ["--orchestrators", address, "--run-folder", str(run_folder), "--state", str(folder / "state")]
        async with child("sidecar", sidecar_run, folder / "sidecar.log", environ) as sidecar:
            await sidecar.until(socket.exists, "no socket for its agent")
            async with (
                child("agent", _AGENT, folder / "agent.log", {"ANTIPHON_SOCKET": str(socket)}) as agent,
                _client(folder, "operator", address) as operator,
                _client(folder, "client", address) as client,
            ):
                for graph in (workload.chain(1), workload.chain(), workload.fan_out()):
                    await operator.register_graph(graph)
                # Waits until the agent is there, and warms every path.
                await client.submit(f"{workload.chain(1).name}@1", workload.INPUT, wait=True)
                yield Mesh(client, operator, {"orchestrator": orchestrator, "sidecar": sidecar, "agent": agent})
