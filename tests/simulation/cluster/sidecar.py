"""One sidecar as a process of the simulated world, with an agent that succeeds, fails, takes its time and dies.

The sidecar's own parts are real, its streams included; what stands for grpc's channels is `network.Channel`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, failure_pb2, registry_pb2
from antiphon_certs import Credential, Grants
from antiphon_sidecar import upstream
from antiphon_sidecar.attempts import Attempt
from antiphon_sidecar.node import Node
from antiphon_sidecar.replicas import Replicas

from tests.simulation.cluster.history import History
from tests.simulation.cluster.loop import Process
from tests.simulation.cluster.network import Channel, ClientCall, Network, Peer

AGENT = "worker"
CAPABILITY = ("text.work", "1.0")
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


class Sidecar:
    """`run` is the process. `healthy` agents answer soon and well."""

    def __init__(
        self, name: str, process: Process, network: Network, who: Peer, addresses: Sequence[str], history: History,
        concurrency: int,
    ) -> None:  # fmt: skip
        self.name = name
        self.process = process
        self.healthy = False
        self._rng = network.rng
        self._history = history
        self._concurrency = concurrency
        self._addresses = addresses
        self._dialler = Dialler(network, who, self)
        self.node: Node | None = None
        self._wake = asyncio.Event()
        self._working: dict[str, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Until it is killed."""
        node = self.node = Node("demo", ALL)
        self._seat = node.inflight.add_seat(AGENT, self._wake.set)
        replicas = Replicas(node, self._addresses, cast(Credential, self._dialler))
        self.agent_comes()
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._keep_time(node))
            parts.create_task(replicas.run())
            parts.create_task(self._work(node))

    def agent_comes(self) -> None:
        """The agent is there, perhaps with other numbers than before."""
        assert self.node is not None
        description = registry_pb2.AgentDescription(
            name=AGENT, version="1", concurrency=self._concurrency, prefetch=self._rng.choice([0, 0, 1, 4])
        )
        description.capabilities.add(name=CAPABILITY[0], version=CAPABILITY[1])
        self.node.announce(self._seat, description)
        self._wake.set()

    def agent_dies(self) -> None:
        """With all that it was working on."""
        if self.node is not None and self.node.descriptions:
            for work in self._working.values():
                work.cancel()
            self._working.clear()
            self.node.depart(self._seat)
            self.process.loop.call_later(self._rng.choice([0.01, 1.0]), self._comes_again)

    def _comes_again(self) -> None:
        if self.node is not None and not self.node.descriptions:
            self.agent_comes()

    async def _keep_time(self, node: Node) -> None:
        last = 0.0
        while True:
            moment = node.now()
            node.inflight.sweep(moment)
            if moment - last >= _BEAT:
                last = moment
                node.inflight.beat()
            await asyncio.sleep(_SWEEP)

    async def _work(self, node: Node) -> None:
        seat, inflight = self._seat, node.inflight
        while True:
            await self._wake.wait()
            self._wake.clear()
            while seat.cancels:
                attempt_id, _ = seat.cancels.popleft()
                if (work := self._working.pop(attempt_id, None)) is not None:
                    work.cancel()
                self._answer(node, attempt_id, failure_pb2.FAILURE_KIND_CANCELLED)
            for attempt in inflight.take(seat, node.now(), 10, 1 << 20):
                self._history.executed(self, attempt.attempt_id)
                self._working[attempt.attempt_id] = self.process.spawn(self._handle(node, attempt))

    async def _handle(self, node: Node, attempt: Attempt) -> None:
        attempt_id, rng = attempt.attempt_id, self._rng
        await asyncio.sleep(0.02 if self.healthy else rng.choice([0.005, 0.05, 0.3, 1.5, 5.0, 12.0]) * rng.random())
        self._working.pop(attempt_id, None)
        kind = 0
        if not self.healthy and rng.random() < 0.15:
            kind = rng.choice([failure_pb2.FAILURE_KIND_TRANSIENT] * 3 + [failure_pb2.FAILURE_KIND_PERMANENT])
        self._answer(node, attempt_id, kind)

    def _answer(self, node: Node, attempt_id: str, kind: int) -> None:
        result = agent_service_pb2.Result(attempt_id=attempt_id)
        if kind:
            result.failure.kind = kind  # type: ignore[assignment]
            result.failure.message = "the agent failed"
        else:
            result.output.inline = f'"by {attempt_id}"'.encode()
        node.inflight.ended(self._seat, attempt_id, result, 64, node.now())

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
                self.process.loop.call_soon(self._history.refused, old, held)
