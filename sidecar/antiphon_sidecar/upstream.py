"""The way up: one Attach stream to each orchestrator replica, made again whenever it breaks.

A stream is replaced before it ends when the replica says go-away or the certificate has changed: the new one is
welcomed first, then the old one is dropped. What was on its way in the old one is settled by the claims that open the
new one. One writer a stream. Only the stream that was welcomed last is listened to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Credential

from .backoff import backoff
from .boxes import Link, Said
from .errors import check_revoked, reason_of, refusal_of
from .node import Node
from .wire import hello, next_request
from .writing import keep_writing

log = logging.getLogger(__name__)

_Call = grpc.aio.StreamStreamCall[mesh.AttachRequest, mesh.AttachResponse]

CONNECT_TIMEOUT = 10.0
WRITE_TIMEOUT = 30.0
RESTART = 60.0  # seconds for which a replica that has said that it ends may be away before that is worth a warning
_STEADY = 5.0  # seconds a stream must have lasted for the next failure to count as the first
_OPTIONS = (
    ("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    # Liveness goes up every 5 s; that nobody is there to read it is noticed by the transport within a ping.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Streams of one process must not share a connection: a new certificate needs a new one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


def secure_channel(address: str, credential: Credential) -> grpc.aio.Channel:
    """A channel to a replica's mutual TLS listener."""
    credentials = grpc.ssl_channel_credentials(credential.bundle_pem, credential.key_pem, credential.chain_pem)
    return grpc.aio.secure_channel(address, credentials, _OPTIONS)


async def connected(channel: grpc.aio.Channel) -> None:
    """Return once the channel is connected. Raises `ConnectionError` at the first failure, or `TimeoutError`."""
    async with asyncio.timeout(CONNECT_TIMEOUT):
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                raise ConnectionError("not reachable, or its certificate and ours do not fit")
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)


class Directory:
    """Which replicas there are, and which upstream serves which: one replica may be known by two addresses."""

    def __init__(self, found: Callable[[list[tuple[str, str]]], None], left: Callable[[], None]) -> None:
        self.found = found
        """Told every topology: (replica id, address)."""
        self.left = left
        """Told when a replica is not attached to any more."""
        self.serving: dict[str, Upstream] = {}


class Upstream:
    """The upstream of one address. `run` never ends by itself; cancel it."""

    def __init__(self, node: Node, directory: Directory, address: str, credential: Callable[[], Credential]) -> None:
        self.node = node
        self.address = address
        self.replica_id = ""
        self._directory = directory
        self._credential = credential
        self._link: Link | None = None
        self._current: _Stream | None = None  # the one that was welcomed last
        self._newest: _Stream | None = None
        self._news = asyncio.Event()
        self._reachable: bool | None = None
        self._expected_until = 0.0
        self._ending = ""

    @property
    def attached(self) -> bool:
        """Whether a stream is welcomed."""
        return self._current is not None

    def announced(self, there: bool) -> None:
        """Whether the replica that is attached is among those that the replicas say are there."""
        if self._link is not None and self.attached:
            self.node.inflight.slots.away(self._link, not there)

    def redial(self) -> None:
        """The certificate has changed: make a new stream before the present one is dropped."""
        if self._newest:
            self._newest.successor_due = True
            self._news.set()

    async def run(self) -> None:
        """Stay attached. Raises `Revoked`."""
        failures = 0
        try:
            async with asyncio.TaskGroup() as streams:
                while True:
                    await self._not_served_by_another()
                    stream = self._newest = _Stream(self)
                    stream.task = streams.create_task(self._run(stream))
                    while not stream.over and not (stream.welcome_time and stream.successor_due):
                        self._news.clear()
                        await self._news.wait()
                    if stream.over:
                        lasted = self.node.now() - stream.welcome_time if stream.welcome_time else 0.0
                        failures = 0 if lasted >= _STEADY else failures + 1
                        await asyncio.sleep(backoff(failures))
        finally:
            self._detach()

    async def _not_served_by_another(self) -> None:
        """A replica with two addresses is served through the first; this one stands by."""
        while True:
            other = self._directory.serving.get(self.replica_id)
            if other is None or other is self:
                return
            await asyncio.sleep(backoff(10))

    async def _run(self, stream: _Stream) -> None:
        try:
            await stream.run(self._credential())
            problem = "the replica ended the stream"
        except grpc.aio.AioRpcError as error:
            check_revoked(error)
            problem = f"{reason_of(error) or error.code().name}: {error.details()}"
        except (ConnectionError, TimeoutError, _Ended) as error:
            problem = str(error) or "it does not answer in time"
        except Exception as error:  # a bug: the attempts it holds are worth more than a clean end
            log.exception("internal error", extra={"orchestrator": self.address})
            problem = f"internal error: {error!r}"
        finally:
            stream.over = True
            if stream is self._current or self._current is None:
                self._detach()
            self._news.set()
        if self.node.now() < self._expected_until:
            return
        if stream.welcome_time or self._reachable is not False:
            self._reachable = False
            log.warning("detached", extra={"orchestrator": self.address, "cause": problem})

    def link(self) -> Link:
        """The link of this replica, which outlives its streams while one follows another."""
        if self._link is None:
            self._link = self.node.inflight.attach(self._wake)
        return self._link

    def welcomed(self, stream: _Stream, welcome: mesh.Welcome, said: dict[str, Said]) -> Link:
        """The stream has its answer and takes over from the one before; it serves the link that is returned."""
        self.replica_id = welcome.replica_id
        other = self._directory.serving.setdefault(welcome.replica_id, self)
        if other is not self:
            raise _Ended(f"this replica is already served at {other.address}")
        if welcome.inline_limit:
            self.node.inline_limit = min(self.node.inline_limit, welcome.inline_limit)
        previous, self._current = self._current, stream
        link = self.link()
        self.node.inflight.welcomed(link, said)
        self.node.refusals.clear()  # what it still refuses it says now
        if previous and previous.task:
            previous.task.cancel()
        self._reachable = True
        if welcome.replica_id != self._ending:  # the one that ends may have welcomed us once more
            self._expected_until = 0.0
        stream.welcome_time = self.node.now()
        self._news.set()  # its successor may be due already
        log.info("attached", extra={"orchestrator": self.address, "replica": self.replica_id})
        return link

    def _wake(self) -> None:
        if self._current:
            self._current.wake.set()

    def _detach(self) -> None:
        self._current = None
        if self._directory.serving.get(self.replica_id) is self:
            del self._directory.serving[self.replica_id]
            self._directory.left()
        if self._link is not None:
            self.node.inflight.detach(self._link)
            self._link = None

    def is_current(self, stream: _Stream) -> bool:
        """Whether what comes in on this stream still counts."""
        return stream is self._current

    def topology(self, replicas: list[tuple[str, str]]) -> None:
        """The replica says which replicas there are."""
        self._directory.found(replicas)

    def go_away(self, stream: _Stream, reason: str) -> None:
        """The stream is going to end, and with it, when the reason is `shutdown`, the replica."""
        log.info("go away", extra={"orchestrator": self.address, "cause": reason})
        if reason == "shutdown":
            self._expected_until, self._ending = self.node.now() + RESTART, self.replica_id
        stream.successor_due = True
        self._news.set()


class _Ended(Exception):
    """The stream is of no use; the message says why."""


class _Stream:
    """One Attach stream, from the connection to its end."""

    def __init__(self, upstream: Upstream) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        self.welcome_time = 0.0
        self.successor_due = False
        self.over = False
        self._upstream = upstream
        self._node = upstream.node

    async def run(self, credential: Credential) -> None:
        """Live until the replica ends the stream. Raises what broke it."""
        node, channel = self._node, secure_channel(self._upstream.address, credential)
        async with channel:
            await connected(channel)
            link = self._upstream.link()
            greeting, said = hello(
                node.incarnation, node.next_generation(), node.inflight.hello(link), node.descriptions
            )
            attach: Any = mesh_service_pb2_grpc.MeshServiceStub(channel).Attach  # the stubs demand an iterator
            call: _Call = attach()
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await call.write(greeting)
                first = await call.read()
            if not isinstance(first, mesh.AttachResponse) or not first.HasField("welcome"):
                raise _Ended("its first message was not a welcome")
            # The older stream may have broken meanwhile and taken the link of the hello with it.
            link = self._upstream.welcomed(self, first.welcome, said)
            self._receive(first, link)
            node.payloads.opened(channel)
            writer = asyncio.create_task(self._write(call, link))
            try:
                while isinstance(response := await call.read(), mesh.AttachResponse):
                    self._receive(response, link)
            except asyncio.CancelledError:
                if writer.done() and not writer.cancelled():
                    writer.result()  # it cancelled the call, and this is why
                raise
            finally:
                node.payloads.closed(channel)
                writer.cancel()
                await asyncio.wait([writer])

    async def _write(self, call: _Call, link: Link) -> None:
        node = self._node

        def take() -> mesh.AttachRequest | None:
            # What a stream takes out of the outbox after its successor took over would be lost.
            return next_request(node.inflight, link, node.descriptions) if self._upstream.is_current(self) else None

        async def write(request: mesh.AttachRequest) -> None:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await call.write(request)

        try:
            await keep_writing(write, take, self.wake)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over; the reader learns why
        except BaseException:
            call.cancel()
            raise

    def _receive(self, response: mesh.AttachResponse, link: Link) -> None:
        """Read one message, its lists in the order of their numbers."""
        if not self._upstream.is_current(self):
            return
        node, inflight, now = self._node, self._node.inflight, self._node.now()
        if response.HasField("topology"):
            self._upstream.topology([(replica.replica_id, replica.address) for replica in response.topology.replicas])
        if response.claims:
            ignored = inflight.claim(link, [(claim.shard, claim.epoch) for claim in response.claims])
            if ignored:
                # Of a replica that others have overtaken; or of all, where their store is a backup of before.
                shard, epoch, newest = ignored[0]
                log.warning(
                    "older owner",
                    extra={
                        "orchestrator": self._upstream.address, "shard": shard, "epoch": epoch, "newest": newest,
                        "cause": "its offers are refused; if its store was restored from a backup, restart the sidecar",
                    },
                )  # fmt: skip
        for verdict in response.verdicts:
            inflight.verdict(verdict.attempt_id)
        for cancel in response.cancels:
            inflight.cancel(cancel.attempt_id, cancel.reason, now)
        if response.policy_epoch:
            inflight.policy(response.policy_epoch, now)
        for offer in response.offers:
            assignment = offer.assignment
            remaining = assignment.remaining_timeout
            timeout: float | None = remaining.seconds + remaining.nanos * 1e-9
            if timeout == 0 and not assignment.HasField("remaining_timeout"):
                timeout = None
            inflight.offer(
                link, offer.agent, assignment.attempt_id, offer.shard, offer.epoch,
                assignment, assignment.attempt_token, len(assignment.input.inline), timeout, now,
                offer.policy_epoch, offer.alone,
            )  # fmt: skip
        for ack in response.window_acks:
            inflight.slots.acknowledged(link, ack.agent, ack.generation)
        for demand in response.demands:
            inflight.slots.demanded(link, demand.agent, demand.wanted)
        for made in response.call_partials:
            inflight.call_emitted(made.attempt_id, made.call_id, made.partial)
        for result in response.call_results:
            inflight.answered(result.attempt_id, result.call_id, result)
        for answer in response.context_responses:
            inflight.told(answer.attempt_id, answer.request_id, answer)
        for loss in response.claim_losses:
            inflight.claim_lost(loss.attempt_id, loss)
        for refusal in response.refusals:
            node.refuse(refusal.agent, refusal_of(refusal))
        if response.HasField("go_away"):
            self._upstream.go_away(self, response.go_away.reason)
