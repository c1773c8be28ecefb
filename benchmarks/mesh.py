"""The product as its users run it: orchestrator, sidecar and agent, each a process of its own, and a client here.

Embedded store with fsync on, the development policy profile, mutual TLS, graphs registered. The one setting that is
not the default is the rate of unary calls per identity, since one client stands for many here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from antiphon import Client, Credentials

from . import identity, workload
from .process import Child, child

_AGENT = ["-m", "benchmarks.agent"]


@dataclass(frozen=True, slots=True)
class Mesh:
    """What runs. `client` and `operator` are connected; `children` are the processes by name.

    `others` are the agents in other languages, by language; idle unless they are asked.
    """

    client: Client
    operator: Client
    children: dict[str, Child]
    others: dict[str, Child] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ProcessFailed when one of the processes has ended."""
        for one in (*self.children.values(), *self.others.values()):
            one.check()


def _client(folder: Path, kind: str, address: str) -> Client:
    files = identity.files(folder, kind)
    return Client.connect(address=address, credentials=Credentials.from_files(files.cert, files.key, files.bundle))


def _sidecar_config(folder: Path, agents: Sequence[str]) -> Path:
    files = identity.files(folder, "sidecar")
    lines = ["[identity]"]
    lines += [f'{name} = "{path}"' for name, path in (("key", files.key), ("cert", files.cert))]
    lines += [f'bundle = "{files.bundle}"']
    for name in agents:
        lines += ["[[agent]]", f'name = "{name}"']
    path = folder / "sidecar.toml"
    path.write_text("\n".join([*lines, ""]))
    return path


@asynccontextmanager
async def running(
    folder: Path,
    environ: Mapping[str, str],
    others: Mapping[str, Sequence[str]] | None = None,
    settings: Sequence[str] = (),
) -> AsyncIterator[Mesh]:
    """Everything up, the agents known to the orchestrator, all graphs registered. `folder`: as of `identity.make`.

    `environ` of the servers decides whether they run from the wheel or from the source. `others` are commands of agents
    in other languages, by language. `settings` are further flags of the orchestrator.
    """
    others = others or {}
    names = ["bench", *(f"bench-{language}" for language in others)]
    data = folder / "data"
    serve = ["-m", "antiphon_orchestrator", "serve", "--data", str(data), "--authority", str(folder / "ca")]
    serve += ["--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0", "--policy-profile", "dev"]
    serve += ["--api-calls-per-second", "1000000", "--api-call-burst", "1000000", *settings]
    endpoints = data / "endpoints.json"
    async with child("orchestrator", serve, folder / "orchestrator.log", environ) as orchestrator:
        await orchestrator.until(endpoints.exists, "it does not serve")
        address = json.loads(endpoints.read_text())["address"]
        run_folder = folder / "run"
        sockets = [run_folder / f"{name}.sock" for name in names]
        sidecar_run = ["-m", "antiphon_sidecar", "run", "--config", str(_sidecar_config(folder, names))]
        sidecar_run += ["--orchestrators", address, "--run-folder", str(run_folder), "--state", str(folder / "state")]
        async with child("sidecar", sidecar_run, folder / "sidecar.log", environ) as sidecar:
            await sidecar.until(lambda: all(socket.exists() for socket in sockets), "no sockets for its agents")
            async with (
                AsyncExitStack() as stack,
                child("agent", _AGENT, folder / "agent.log", {"ANTIPHON_SOCKET": str(sockets[0])}) as agent,
                _client(folder, "operator", address) as operator,
                _client(folder, "client", address) as client,
            ):
                started = {}
                for (language, (program, *arguments)), socket in zip(others.items(), sockets[1:], strict=True):
                    log, there = folder / f"agent-{language}.log", {"ANTIPHON_SOCKET": str(socket)}
                    one = child(f"agent-{language}", arguments, log, there, program)
                    started[language] = await stack.enter_async_context(one)
                await operator.register_graph(workload.fan_out())
                for capability in (workload.PYTHON, *(workload.OTHERS[language] for language in others)):
                    for length in (1, workload.CHAIN):
                        await operator.register_graph(workload.chain(length, capability))
                    # Waits until the agent is there, and warms every path.
                    one_task = workload.reference(workload.chain(1, capability))
                    workload.check(await client.submit(one_task, workload.INPUT, wait=True))
                product = {"orchestrator": orchestrator, "sidecar": sidecar, "agent": agent}
                yield Mesh(client, operator, product, started)
