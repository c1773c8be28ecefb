"""`antiphon dev --replicas N`: so many orchestrator processes on one machine, on an etcd of their own.

Archive and payloads lie in the data folder as files, which is what one machine can offer, and each replica has a folder
of its own below it; the store is in etcd, whose data lies beside them. Ports count up from the first one: each replica
has two, etcd the two after those.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from antiphon.cli.problems import FAILED, Problem
from antiphon_certs import make_private_folder

from .config import Config
from .demo.process import Child

HOST = "127.0.0.1"
MOST = 9
_READY = 60.0
_GRACE = 20.0
_BUILT = Path(__file__).resolve().parents[2] / ".cache/etcd"


def etcd_program() -> str:
    """The etcd on the path, or the newest that this checkout has built. Raises Problem."""
    found = shutil.which("etcd") or max(map(str, _BUILT.glob("v*/etcd")), default=None)
    if found is None:
        raise Problem(
            "several replicas need etcd, and there is none on the path",
            "install it (Debian: apt-get install etcd-server), or in a checkout: "
            "cd tools/etcd && go build -o ../../.cache/etcd/v3/etcd .",
        )
    return found


class DevCluster:
    """Lives inside of `running`; `addresses` and `join_addresses` are those of the replicas, in order."""

    def __init__(self, config: Config, port: int, replicas: int) -> None:
        self._config = config
        ports = [port + n for n in range(2 * replicas + 2)] if port else _free_ports(2 * replicas + 2)
        self.addresses = tuple(f"{HOST}:{port}" for port in ports[0 : 2 * replicas : 2])
        self.join_addresses = tuple(f"{HOST}:{port}" for port in ports[1 : 2 * replicas : 2])
        self._etcd, self._etcd_peer = (f"http://{HOST}:{port}" for port in ports[-2:])
        self._folder = config.data.parent

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Child, list[Child]]]:
        """etcd and the replicas, once all of them serve. Raises Problem."""
        program = etcd_program()
        make_private_folder(self._config.data)
        async with AsyncExitStack() as stack:

            async def start(name: str, command: list[str], port: str) -> Child:
                child = await Child.start(name, command, log=self._folder / f"{name}.log", folder=self._folder)
                stack.push_async_callback(child.stop, _GRACE)
                await child.until(lambda: _listens(port), _READY)
                return child

            etcd = await start("etcd", self._etcd_command(program), self._etcd)
            # One after the other: the first one makes the archive's file, which several at once would quarrel about.
            replicas = [
                await start(f"orchestrator-{n}", self._command(n, address, join), join)
                for n, (address, join) in enumerate(zip(self.addresses, self.join_addresses, strict=True), 1)
            ]
            yield etcd, replicas

    def pids(self, replicas: Sequence[Child]) -> tuple[int, ...]:
        """Of the replicas' processes, in the order of `addresses`."""
        return tuple(child.pid for child in replicas)

    def _etcd_command(self, program: str) -> list[str]:
        return [
            program,
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={self._etcd_peer}",
            f"--initial-advertise-peer-urls={self._etcd_peer}",
            f"--initial-cluster=default={self._etcd_peer}",
            "--log-level=warn",
        ]

    def _command(self, number: int, address: str, join_address: str) -> list[str]:
        config = self._config
        return [
            *(sys.executable, "-m", "antiphon.command", "orchestrator", "serve"),
            *("--data", str(config.data / f"replica-{number}"), "--authority", str(config.authority)),
            # What is set otherwise is in the environment, perhaps with a password that nobody else is to see.
            *(() if config.archive else ("--archive", config.archive_url)),
            *(() if config.payloads else ("--payloads", config.payloads_url)),
            *("--listen", address, "--join-listen", join_address),
            *("--store", f"etcd://{self._etcd.removeprefix('http://')}/dev"),
            *("--policy-profile", "dev", "--development", "true"),
            *("--telemetry-log-level", config.telemetry.log_level),
        ]


async def watch(etcd: Child, replicas: Sequence[Child]) -> None:
    """Says which replica has ended: the others go on. Returns never; raises Problem when etcd or all replicas have."""
    left = {asyncio.create_task(child.ended()): child for child in (etcd, *replicas)}
    try:
        while True:
            done, _ = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            ended = [left.pop(task) for task in done]
            if etcd in ended or not set(left.values()) - {etcd}:
                name = etcd.name if etcd in ended else "last orchestrator"
                raise Problem(f"the {name} has ended", f"its log: {ended[0].log}", exit_code=FAILED)
            for child in ended:
                told = "has ended, and the others go on; a new start of all brings it back; its log:"
                print(f"{child.name} {told} {child.log}", flush=True)
    finally:
        for task in left:
            task.cancel()


def _listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=0.2).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now; held together, so that none comes twice."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
