"""The server's half of a mesh for tests: the only module here that needs `antiphon-server`.

Orchestrator and sidecars are the real ones, in this process and on its event loop: listeners with mutual TLS on
loopback, sockets of agents, a store that commits to a file. What differs is what they are told: any free port, the
clock of the test, and how long a sidecar may be away.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from antiphon_certs import Kind, Profile, profile_folder
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.app import Orchestrator
from antiphon_orchestrator.config import load
from antiphon_orchestrator.engine.states import AttemptState, TaskState
from antiphon_sidecar import app as sidecar
from antiphon_sidecar.config import AgentConfig, Files
from antiphon_sidecar.config import Config as SidecarConfig

from antiphon._credentials import Credentials

from ._clock import Clock
from ._identities import Identities

DOMAIN = "mesh.test"
_GRACE = timedelta(milliseconds=500)
"""Until a sidecar that is gone is given up: nothing is away for a while in one process, it is there or it is gone."""
_AT_WORK = (AttemptState.OFFERED, AttemptState.RUNNING)


class Server:
    """An orchestrator with an authority of its own; `run` is its life, and `ready` is set once it serves."""

    def __init__(self, clock: Clock, namespace: str, policies: Path | None) -> None:
        # Paths of sockets have at most 107 bytes, and folders of tests are long.
        self._home = tempfile.TemporaryDirectory(prefix="anti-", ignore_cleanup_errors=True)
        self.folder = Path(self._home.name)
        self._clock = clock
        self._identities = Identities(self.folder / "ca", DOMAIN, namespace)
        settings = {
            "data": str(self.folder / "data"),
            "authority": str(self.folder / "ca"),
            "listen": "127.0.0.1:0",
            "join_listen": "127.0.0.1:0",
            **({"policy_folder": str(policies)} if policies is not None else {"policy_profile": "dev"}),
        }
        self._orchestrator = Orchestrator(load(settings, {}), now=clock.now, reattach_grace=_GRACE)
        self.ready = self._orchestrator.ready
        self._count = 0
        telemetry.log_to_logging()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._orchestrator.run()

    def remove(self) -> None:
        """Remove every file, once nothing runs any more."""
        self._home.cleanup()

    @property
    def address(self) -> str:
        return self._orchestrator.addresses[0]

    @property
    def home(self) -> Path:
        """What `ANTIPHON_HOME` is to be for whoever connects by a profile."""
        return self.folder / "home"

    def profile(self, profile: str, name: str, *, operator: bool = False) -> Credentials:
        """Write a profile with an identity of its own, as joining does."""
        folder = profile_folder(profile, {"ANTIPHON_HOME": str(self.home)})
        address, join_address = self._orchestrator.addresses
        Profile(folder, (address,), (join_address,), DOMAIN, self._identities.namespace).save()
        kind = Kind.OPERATOR if operator else Kind.CLIENT
        return self._identities.store(folder / "credential", self._identities.issue(kind, name))

    def sidecar(self, agent: str, capabilities: Sequence[str]) -> tuple[str, SidecarConfig, Path]:
        """A sidecar beside one agent that dials in: its name, what it is told, and where the agent is to dial."""
        self._count += 1
        name = f"s{self._count}"
        pem = self._identities.issue(Kind.SIDECAR, name, agents=(agent,), capabilities=capabilities)
        files = self._identities.store(self.folder / f"{name}.id", pem)
        config = SidecarConfig(
            orchestrators=(self.address,),
            agents=(AgentConfig(agent),),
            identity=Files(files.key, files.cert, files.bundle),
            run_folder=self.folder / name,
        )
        return name, config, self.folder / name / f"{agent}.sock"

    async def run_sidecar(self, config: SidecarConfig) -> None:
        """The life of a sidecar; cancelling it is its sudden death."""
        await sidecar.run(config, {}, signals=(), now=self._clock.monotonic)

    def turn(self, by: timedelta) -> None:
        """Turn the clock, and do what is due by then."""
        self._clock.turn(by // timedelta(microseconds=1))
        self._orchestrator.shards.time_turned()

    def idle_until(self) -> int | None:
        """When something is due, in microseconds since 1970, if nothing else is done or waited for before."""
        moment, due = self._clock.now(), []
        for shard in self._orchestrator.shards.shards:
            if shard.has_work(moment):
                return None
            for entry in shard.runs.values():
                for task in (one for node in entry.run.tasks for one in (node, *node.members)):
                    if any(attempt.state in _AT_WORK for attempt in task.attempts):
                        return None
                    if task.plan.graph is not None and task.state is TaskState.READY and entry.run.paused is None:
                        return None  # its graph is looked up
            if (next_due := shard.next_due()) is not None:
                due.append(next_due)
        return min(due, default=None)


async def serve(server: Server) -> asyncio.Task[None]:
    """Begin the life of a server and return once it serves. Raises what ends it before."""
    life = asyncio.create_task(server.run())
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait((life, ready), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
        if not server.ready.is_set():
            life.cancel()
            await asyncio.wait((life,))
    if life.done():
        life.result()
    return life
