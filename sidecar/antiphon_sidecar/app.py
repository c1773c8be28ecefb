"""The composition of a sidecar: the only file that knows every part. One TaskGroup; whatever fails ends the process.

Life: find out who we are, lock the run folder, open the agents' sockets, attach to the orchestrators, start the agents.
At SIGTERM: drain (take no more, give back what was not begun, finish the rest within the grace, wait for the verdicts),
then exit 0. A second signal exits at once with 130.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from antiphon_certs import CertificateFiles, Credential, Grants, SystemClock, run_rotation
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from . import adapters
from .adapters.base import AdapterAgent, describe
from .agents import AgentSocket
from .checks import mistakes_in_description
from .config import AgentConfig, Config, ConfigError
from .errors import Revoked
from .identity import Place, establish, locate, renew
from .inflight import ANNOUNCE_AFTER
from .node import Node
from .replicas import Replicas
from .socket import RunFolder, default_folder
from .spool import SYNC, Spool, sync, take_up
from .supervise import Supervisor
from .table import Mistakes

log = logging.getLogger(__name__)

CAUSE = "antiphon-cause-bin"
"""Trailing metadata of health: in words, why the sidecar does not serve."""
LIVENESS = 4.0
"""Seconds between liveness messages; the contract says at least every 5."""
_LAST_WORDS = 2.0  # seconds for reports and verdicts after the grace has passed
_ACKNOWLEDGEMENT = 1.0  # seconds to wait for a replica to acknowledge that all windows are closed
_EXIT_AT_ONCE = 130


class _Health(health.aio.HealthServicer):  # type: ignore[misc, name-defined]
    """Health that also says why there is none, which the protocol has no field for."""

    cause = ""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        context.set_trailing_metadata(((CAUSE, self.cause[:1_000].encode()),))
        return await super().Check(request, context)


class _Drained(Exception):
    """Everything has ended as it should; the way out of the TaskGroup."""


def look_over(config: Config, place: Place | None, mistakes: Mistakes) -> tuple[AgentConfig, ...]:
    """The agents to stand beside. `mistakes` gets all that can be known before anything is dialled, or a token spent;
    without a place only what is wrong whoever the sidecar is."""
    commands = [("--", config.command), *((f"agent {agent.name}", agent.command) for agent in config.agents)]
    for where, command in commands:
        if command and shutil.which(command[0]) is None:  # it would be started again for ever
            mistakes.add(where, f"there is no program {command[0]} to start; install it, or give its path")
    if config.socket.group is not None:
        try:
            grp.getgrnam(config.socket.group)
        except KeyError:
            mistakes.add("socket.group", f"there is no group {config.socket.group!r} on this machine; name one of its")
    if place is None:
        return ()
    if not (config.orchestrators or place.addresses):
        mistakes.add("orchestrators", "name one, such as 127.0.0.1:7443; neither token, profile nor [identity] does")
    grants = place.grants
    return agents_of(config, grants, mistakes) if grants else ()


def agents_of(config: Config, grants: Grants, mistakes: Mistakes) -> tuple[AgentConfig, ...]:
    """The agents to stand beside; `mistakes` gets what the certificate does not allow, or the contract."""
    agents = config.agents
    if not agents:
        literal = [name for name in grants.agents if "*" not in name]
        names = [config.agent] if config.agent else literal
        if not names:
            mistakes.add("--agent", "name the agent; the certificate grants patterns only")
        if config.command and len(names) > 1:
            mistakes.add("--agent", f"say which of {', '.join(names)} the command is")
        agents = tuple(AgentConfig(name, command=config.command) for name in names)
    for agent in agents:
        where = f"agent {agent.name}"
        if not grants.allows_agent(agent.name):
            allowed = ", ".join(grants.agents) or "no agent"
            mistakes.add(where, f"the certificate allows {allowed}; make a token with --agent {agent.name}")
        for mistake in mistakes_in_description(describe(agent)) if agent.adapter else ():
            mistakes.add(where, str(mistake))
        for capability in agent.capabilities:
            if not grants.allows_capability(capability.name):
                remedy = f"the certificate does not allow {capability.name}; make a token with --capability for it"
                mistakes.add(where, remedy)
    return agents


def run_folder_of(config: Config, place: Place, environ: Mapping[str, str]) -> RunFolder:
    """Where the sockets are. Raises `IdentityError` when only a certificate could tell, and there is none."""
    path = config.run_folder or default_folder(place.owner, environ)
    return RunFolder(Path(path), config.socket)


async def run(
    config: Config,
    environ: Mapping[str, str],
    *,
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Run until drained, which one of `signals` begins. `now`: monotonic seconds, by which attempts are timed.

    Raises `ConfigError`, `IdentityError`, `Revoked`, `SocketError`, `OSError`.
    """
    place, mistakes = locate(config, environ), Mistakes()
    look_over(config, place, mistakes)
    mistakes.raise_any(ConfigError)
    folder = run_folder_of(config, place, environ)
    with folder.locked():  # as all that needs nobody else, before a token is spent
        credential = await establish(place)
        agents = agents_of(config, credential.grants, mistakes)
        mistakes.raise_any(ConfigError)
        addresses = config.orchestrators or place.addresses
        try:
            await _Sidecar(config, place, credential, agents, addresses, folder, now).run(signals)
        except* Revoked:
            place.forget()
            raise


class _Sidecar:
    """All parts, made but not started."""

    def __init__(
        self,
        config: Config,
        place: Place,
        credential: Credential,
        agents: tuple[AgentConfig, ...],
        addresses: tuple[str, ...],
        folder: RunFolder,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._place = place
        self._folder = folder
        self._node = Node(credential.identity.namespace, credential.grants, now)
        self._replicas = Replicas(self._node, addresses, credential)
        self._spool: Spool | None = None
        self._health = _Health()
        self._sockets: list[tuple[AgentSocket, str]] = []
        self._adapters: list[AdapterAgent] = []
        self._supervisors: list[Supervisor] = []
        self._drain_due = asyncio.Event()
        for agent in agents:
            if agent.adapter:
                self._adapters.append(AdapterAgent(self._node, agent, adapters.make(agent)))
                continue
            path = folder.agent(agent.name)
            supervisor = None
            if agent.command:
                supervisor = Supervisor(agent.name, agent.command, {"ANTIPHON_SOCKET": path})
                self._supervisors.append(supervisor)
            self._sockets.append((AgentSocket(self._node, agent.name, supervisor), path))

    async def run(self, signals: Sequence[int]) -> None:
        """Until drained."""
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self._signalled)
        self._open_spool(loop)
        try:
            async with asyncio.TaskGroup() as parts:
                for socket, path in self._sockets:
                    await socket.open(path)
                    self._folder.open_to_others(path)
                    parts.create_task(socket.run())
                    log.info("socket open", extra={"agent": socket.seat.name, "path": path})
                parts.create_task(self._serve_health())
                parts.create_task(self._keep_time())
                if self._spool is not None:
                    parts.create_task(self._keep_spool(self._spool))
                parts.create_task(self._rotate())
                parts.create_task(self._drain())
                for adapter in self._adapters:
                    parts.create_task(adapter.run())
                parts.create_task(self._replicas.run())
                for supervisor in self._supervisors:
                    parts.create_task(supervisor.run())
        except* _Drained:
            log.info("drained")
        finally:
            if self._spool is not None:
                self._spool.close()
            for number in signals:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._drain_due.is_set():
            for supervisor in self._supervisors:
                supervisor.kill()
            for adapter in self._adapters:
                adapter.kill()
            if self._spool is not None:
                self._spool.write()
            os._exit(_EXIT_AT_ONCE)
        self._drain_due.set()

    async def _keep_time(self) -> None:
        node, last_beat = self._node, 0.0
        while True:
            now = node.now()
            node.inflight.sweep(now)
            if now - last_beat >= LIVENESS:
                last_beat = now
                node.inflight.beat()
            await asyncio.sleep(ANNOUNCE_AFTER)

    def _open_spool(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take up what former lives have left. Without a folder of the identity's own there is no spool."""
        state = self._place.state or self._config.state
        if state is None:
            return
        spool = Spool(state / "spool", self._node.incarnation, loop.call_soon)
        try:
            count = take_up(spool, self._node.inflight)
        except OSError as error:
            log.warning("outcomes are not kept on disk", extra={"cause": str(error)})
            return
        if count:
            log.info("outcomes of a former life", extra={"count": count})
        self._spool = self._node.inflight.keeper = spool

    async def _keep_spool(self, spool: Spool) -> None:
        while True:
            await asyncio.sleep(SYNC)
            if descriptors := spool.unsynced():
                try:
                    await asyncio.to_thread(sync, descriptors)
                except OSError as error:
                    log.warning("outcomes may not be on disk yet", extra={"cause": str(error)})

    async def _rotate(self) -> None:
        source, join = self._place.source, self._place.join_addresses
        await run_rotation(
            source,
            partial(renew, source, self._replicas.addresses, join) if isinstance(source, CertificateFiles) else None,
            SystemClock(),
            changed=self._renewed,
            delayed=lambda error: log.warning("certificate not renewed yet", extra={"cause": str(error)}),
        )

    def _renewed(self, credential: Credential) -> None:
        log.info("certificate renewed", extra={"expires": credential.not_after.isoformat()})
        self._node.grants = credential.grants
        self._replicas.renewed(credential)

    async def _serve_health(self) -> None:
        """Health on a socket of our own: serving while a replica and an agent that it takes are there."""
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        server.add_insecure_port(f"unix:{self._folder.control}")
        await server.start()
        try:
            while True:
                self._health.cause = self._why_not_serving()
                status = health_pb2.HealthCheckResponse
                await self._health.set("", status.NOT_SERVING if self._health.cause else status.SERVING)
                await asyncio.sleep(0.5)
        finally:
            await asyncio.shield(server.stop(None))

    def _why_not_serving(self) -> str:
        """Empty when it serves."""
        if self._drain_due.is_set():
            return "it is draining"
        if not self._replicas.attached:
            return "it is not attached to an orchestrator"
        if self._node.descriptions.keys() - self._node.refusals.keys():
            return ""
        refused = [f"agent {name} is refused: {cause}" for name, cause in self._node.refusals.items()]
        return "; ".join(refused) or "no agent is there"

    async def _drain(self) -> None:
        await self._drain_due.wait()
        node, grace = self._node, self._config.grace.total_seconds()
        log.info("draining", extra={"held": node.inflight.open_attempts})
        for supervisor in self._supervisors:
            supervisor.stopping = True
        node.inflight.drain(node.now())
        await self._settled(lambda: not node.inflight.held, grace)
        if node.inflight.open_attempts:
            log.warning("grace has passed", extra={"held": node.inflight.open_attempts})
            for seat in node.inflight.seats.values():
                node.depart(seat)
        await self._settled(lambda: not node.inflight.held, _LAST_WORDS)
        # When a replica has acknowledged its closed windows, no offer is on its way any more.
        await self._settled(lambda: not node.inflight.slots.unacknowledged, _ACKNOWLEDGEMENT)
        raise _Drained

    async def _settled(self, condition: Callable[[], bool], limit: float) -> None:
        end = self._node.now() + limit
        while not condition() and self._node.now() < end:  # noqa: ASYNC110 - many streams bring it about
            await asyncio.sleep(ANNOUNCE_AFTER)
