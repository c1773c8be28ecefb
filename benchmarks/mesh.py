"""The product as its users run it: orchestrator, sidecar and agent, each a process of its own, and a client here.

Embedded store with fsync on, the development policy profile, mutual TLS, graphs registered. The one setting that is
not the default is the rate of unary calls per identity, since one client stands for many here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from antiphon import Client, Credentials

from . import identity, workload
from .process import Child, child

AGENT = ("-m", "benchmarks.agent")
HELD_AGENT = ("-m", "benchmarks.held_agent")
_PATIENCE = timedelta(minutes=3)
"""Of clients: a machine may be so busy that even a handshake takes too long, and that is not what is measured."""


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


def connected(folder: Path, kind: str, address: str) -> Client:
    """A client with the credential of a kind, not connected yet. `address`: of one or more, comma between."""
    files = identity.files(folder, kind)
    credentials = Credentials.from_files(files.cert, files.key, files.bundle)
    return Client.connect(address=address, credentials=credentials, timeout=_PATIENCE, patience=_PATIENCE)


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


def serve(data: Path, authority: Path, address: str, join_address: str) -> list[str]:
    """The arguments of an orchestrator."""
    arguments = ["-m", "antiphon_orchestrator", "serve", "--data", str(data), "--authority", str(authority)]
    arguments += ["--listen", address, "--join-listen", join_address, "--policy-profile", "dev"]
    return [*arguments, "--api-calls-per-second", "1000000", "--api-call-burst", "1000000"]


@asynccontextmanager
async def sidecar(
    folder: Path, addresses: str, environ: Mapping[str, str], names: Sequence[str] = ("bench",)
) -> AsyncIterator[tuple[Child, Path]]:
    """A sidecar with a socket for each agent; it, and the socket of the first of them."""
    run_folder = folder / "run"
    sockets = [run_folder / f"{name}.sock" for name in names]
    arguments = ["-m", "antiphon_sidecar", "run", "--config", str(_sidecar_config(folder, names))]
    arguments += ["--orchestrators", addresses, "--run-folder", str(run_folder), "--state", str(folder / "state")]
    async with child("sidecar", arguments, folder / "sidecar.log", environ) as started:
        await started.until(lambda: all(socket.exists() for socket in sockets), "no sockets for its agents")
        yield started, sockets[0]


async def register(mesh: Mesh, capabilities: Sequence[str]) -> None:
    """Registers the graphs of the workload, waits until their agents are there, and warms every path."""
    await mesh.operator.register_graph(workload.fan_out())
    for capability in capabilities:
        for length in (1, workload.CHAIN):
            await mesh.operator.register_graph(workload.chain(length, capability))
        one_task = workload.reference(workload.chain(1, capability))
        workload.check(await mesh.client.submit(one_task, workload.INPUT, wait=True))


def agent_environ(folder: Path, socket: Path) -> dict[str, str]:
    """What either agent is told: where its sidecar is, and where the one that is held notes what it does, and waits."""
    held = {"BENCH_JOURNAL": str(folder / "journal"), "BENCH_GATE": str(folder / "gate")}
    return held | {"ANTIPHON_SOCKET": str(socket)}


@asynccontextmanager
async def running(
    folder: Path,
    environ: Mapping[str, str],
    others: Mapping[str, Sequence[str]] | None = None,
    settings: Sequence[str] = (),
    agent: Sequence[str] = AGENT,
) -> AsyncIterator[Mesh]:
    """Everything up, the agents known to the orchestrator, all graphs registered. `folder`: as of `identity.make`.

    `environ` of the servers decides whether they run from the wheel or from the source. `others` are commands of agents
    in other languages, by language. `settings` are further flags of the orchestrator, `agent` the
    arguments of the agent.
    """
    others = others or {}
    names = ["bench", *(f"bench-{language}" for language in others)]
    data = folder / "data"
    arguments = [*serve(data, folder / "ca", "127.0.0.1:0", "127.0.0.1:0"), *settings]
    endpoints = data / "endpoints.json"
    async with child("orchestrator", arguments, folder / "orchestrator.log", environ) as orchestrator:
        await orchestrator.until(endpoints.exists, "it does not serve")
        address = json.loads(endpoints.read_text())["address"]
        async with (
            sidecar(folder, address, environ, names) as (beside, socket),
            AsyncExitStack() as stack,
            child("agent", agent, folder / "agent.log", agent_environ(folder, socket)) as works,
            connected(folder, "operator", address) as operator,
            connected(folder, "client", address) as client,
        ):
            started = {}
            for language, (program, *rest) in others.items():
                there = {"ANTIPHON_SOCKET": str(socket.with_name(f"bench-{language}.sock"))}
                one = child(f"agent-{language}", rest, folder / f"agent-{language}.log", there, program)
                started[language] = await stack.enter_async_context(one)
            product = {"orchestrator": orchestrator, "sidecar": beside, "agent": works}
            mesh = Mesh(client, operator, product, started)
            await register(mesh, [workload.PYTHON, *(workload.OTHERS[language] for language in others)])
            yield mesh
