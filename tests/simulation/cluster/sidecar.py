"""One sidecar as a process of the simulated world, with one agent or two.

The sidecar's own parts are real, its streams and its spool included; what stands for grpc's channels is
`network.Channel`. What agents do is in `agents.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon_certs import Credential, Grants
from antiphon_sidecar import upstream
from antiphon_sidecar.node import Node
from antiphon_sidecar.replicas import Replicas
from antiphon_sidecar.spool import Spool, take_up

from tests.simulation.cluster.agents import Agent
from tests.simulation.cluster.history import History
from tests.simulation.cluster.loop import NOBODY, Process
from tests.simulation.cluster.network import Channel, ClientCall, Network, Peer
from tests.simulation.cluster.outside import OUTSIDE

ALL = Grants(agents=("*",), capabilities=("*",))
_SWEEP = 0.2
_BEAT = 5.0


class Dialler:
    """Stands for the credential that a sidecar dials with: knows who dials, and what comes in is looked at."""

    def __init__(self, network: Network, who: Peer, sidecar: Sidecar) -> None:
        self.network = network
        self.who = who
        self.sidecar = sidecar


class _AttachChannel(Channel):
    """A channel whose streams show what they bring to the history, before the sidecar acts on it."""

    def __init__(self, dialler: Dialler, address: str) -> None:
        super().__init__(dialler.network, dialler.who, address)
        self._sidecar = dialler.sidecar

    def stream_stream(self, path: str, *serializers: Any, **options: Any) -> Any:
        attach = super().stream_stream(path, *serializers, **options)
        sidecar = self._sidecar

        def call() -> ClientCall:
            made = attach()
            read = made.read

            async def read_and_show() -> Any:
                message = await read()
                if isinstance(message, mesh.AttachResponse):
                    sidecar.shown(message)
                return message

            made.read = read_and_show  # type: ignore[method-assign]
            return made

        return call


def _secure_channel(address: str, credential: Credential) -> Any:
    return _AttachChannel(cast(Dialler, credential), address)


async def _connected(channel: Any) -> None:
    async with asyncio.timeout(upstream.CONNECT_TIMEOUT):
        await channel.connected()


def install() -> None:
    """Has the sidecar's streams dial into the simulated network. Once in a process of its own."""
    upstream.secure_channel = _secure_channel
    upstream.connected = _connected


class _Watched(Spool):
    """The spool of a sidecar that may be doomed."""

    def __init__(self, sidecar: Sidecar, folder: Path, node: Node) -> None:
        super().__init__(folder, node.incarnation, asyncio.get_running_loop().call_soon, node.now)
        self._sidecar = sidecar

    def write(self) -> None:
        super().write()
        if (doomed := self._sidecar.doomed) is not None:
            self._sidecar.doomed = None
            self._sidecar.process.loop.call_soon(doomed, context=NOBODY)

    def descriptors(self) -> list[int]:
        """What a process that ends has open."""
        return [segment.descriptor for segment in self._segments]

    @property
    def left(self) -> int:
        """Outcomes without a verdict."""
        return sum(segment.open for segment in self._segments)


class Sidecar:
    """`run` is the process. `disk`: a folder that outlives it. Its agents answer soon and well once they `recover`."""

    def __init__(
        self, name: str, process: Process, network: Network, who: Peer, addresses: Sequence[str], history: History,
        concurrency: int, agents: Sequence[str], disk: Path,
    ) -> None:  # fmt: skip
        self.name = name
        self.serial = who.serial
        self.process = process
        self.addresses = addresses
        self.doomed: Callable[[], None] | None = None
        """Called once an outcome has been written to disk, before anybody has heard of it."""
        self._rng = network.rng
        self._history = history
        self._concurrency = concurrency
        self._names = agents
        self.folder = disk / name
        self._dialler = Dialler(network, who, self)
        self._agents: list[Agent] = []
        self._healthy = False
        self.node: Node | None = None
        self.spool: _Watched | None = None
        self._replicas: Replicas | None = None

    def known(self) -> Sequence[str]:
        """The addresses of replicas that it knows."""
        return self.addresses if self._replicas is None else self._replicas.addresses()

    async def run(self) -> None:
        """Until it is killed."""
        node = self.node = Node("demo", ALL, OUTSIDE.monotonic)
        for name in self._names:
            agent = Agent(node, name, self.process, self._history, self._rng, partial(self.agent_dies, name))
            agent.healthy = self._healthy
            self._agents.append(agent)
        self.spool = _Watched(self, self.folder, node)
        take_up(self.spool, node.inflight)
        node.inflight.keeper = self.spool
        replicas = self._replicas = Replicas(node, self.addresses, cast(Credential, self._dialler))
        for agent in self._agents:
            agent.comes(self._concurrency)
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._keep_time(node))
            parts.create_task(replicas.run())
            for agent in self._agents:
                parts.create_task(agent.run(lambda attempt_id: self._history.executed(self, attempt_id)))

    def recover(self) -> None:
        """All is well from now on."""
        self._healthy = True
        self.doomed = None
        for agent in self._agents:
            agent.healthy = True

    def kill(self) -> set[str]:
        """Ends the process at once. Answers the attempts whose outcomes it leaves on disk."""
        self.process.kill()
        if self.node is None or self.spool is None:
            return set()
        for descriptor in self.spool.descriptors():
            os.close(descriptor)  # as the kernel does
        held = self.node.inflight.held.values()
        return {attempt.attempt_id for attempt in held if attempt.spooled is not None}

    def agent_dies(self, name: str = "") -> None:
        """The agent of that name, or one of them, with all that it is working on."""
        there = [agent for agent in self._agents if agent.seat.present and name in ("", agent.seat.name)]
        if there:
            agent = self._rng.choice(there)
            agent.dies()
            self.process.loop.call_later(self._rng.choice([0.01, 1.0]), self._comes_again, agent)

    def _comes_again(self, agent: Agent) -> None:
        if not agent.seat.present:
            agent.comes(self._concurrency)

    async def _keep_time(self, node: Node) -> None:
        last = 0.0
        while True:
            moment = node.now()
            node.inflight.sweep(moment)
            if moment - last >= _BEAT:
                last = moment
                node.inflight.beat()
            await asyncio.sleep(_SWEEP)

    def shown(self, message: mesh.AttachResponse) -> None:
        """A message comes in; what the sidecar makes of it is looked at when it has."""
        node = self.node
        assert node is not None
        held = node.inflight.held
        for verdict in message.verdicts:
            attempt = held.get(verdict.attempt_id)
            if attempt is not None and verdict.kind == mesh.VERDICT_KIND_ACCEPTED:
                output = attempt.result is not None and attempt.result.HasField("output")
                self._history.accepted(verdict.attempt_id, succeeded=output)
        if message.offers:
            known = {shard: claim.epoch for shard, claim in node.inflight._claims.items()}
            old = [
                offer.assignment.attempt_id
                for offer in message.offers
                if offer.epoch < known.get(offer.shard, 0) and offer.assignment.attempt_id not in held
            ]
            if old:
                self.process.loop.call_soon(self._refused, node, old)

    def _refused(self, node: Node, attempt_ids: list[str]) -> None:
        """What has become of offers of an epoch that is over, before anybody hears of it."""
        said = {report.attempt_id: report.end for link in node.inflight.slots.links for report in link.reports}
        ends = {attempt_id: said[attempt_id] for attempt_id in attempt_ids if attempt_id in said}
        self._history.refused(attempt_ids, node.inflight.held, ends)
