"""The way to the orchestrators: generations of mutual-TLS channels, one current at a time.

A certificate is checked when a connection is made, so a new one needs a new channel. When the files change, a new
generation is made, proven ready, and only then takes over (make before break); calls on the old one end in peace, and
the last of them closes it. The next address, where there are several, is a new generation too; to those it was told at
the start come the replicas that are there, which the one in use is asked for now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc

from antiphon.v1.audit_service_pb2_grpc import AuditServiceStub
from antiphon.v1.cluster_service_pb2 import GetClusterRequest
from antiphon.v1.cluster_service_pb2_grpc import ClusterServiceStub
from antiphon.v1.context_service_pb2_grpc import ContextServiceStub
from antiphon.v1.graph_service_pb2_grpc import GraphServiceStub
from antiphon.v1.identity_service_pb2_grpc import IdentityServiceStub
from antiphon.v1.payload_service_pb2_grpc import PayloadServiceStub
from antiphon.v1.policy_service_pb2_grpc import PolicyServiceStub
from antiphon.v1.registry_service_pb2_grpc import RegistryServiceStub
from antiphon.v1.run_service_pb2_grpc import RunServiceStub

from ._credentials import SERVER_NAME, Credentials, Pem
from ._errors import SetupError

Renew = Callable[[], Awaitable[None]]

_LOOK = 10.0
_READY = 10.0
_LEARN = 5.0
_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", 4 << 20),
    # A dead peer is noticed within half a minute, on idle streams too; servers of ours permit it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # We retry with our own back-off; the channel's must not be slower.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_log = logging.getLogger("antiphon.client")


class Generation:
    """One channel and the services on it."""

    def __init__(self, address: str, pem: Pem) -> None:
        credentials = grpc.ssl_channel_credentials(pem.bundle, pem.key, pem.chain)
        self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        self.runs = RunServiceStub(self.channel)
        self.graphs = GraphServiceStub(self.channel)
        self.registry = RegistryServiceStub(self.channel)
        self.identity = IdentityServiceStub(self.channel)
        self.context = ContextServiceStub(self.channel)
        self.audit = AuditServiceStub(self.channel)
        self.cluster = ClusterServiceStub(self.channel)
        self.payloads = PayloadServiceStub(self.channel)
        self.policies = PolicyServiceStub(self.channel)
        self.users = 0
        self.retired = False


class Connection:
    """Opens with `open`, ends with `close`; `use` lends the current generation for one call or stream."""

    def __init__(self, addresses: tuple[str, ...], credentials: Credentials, renew: Renew | None) -> None:
        self._seeds = addresses
        self._addresses = addresses
        self._credentials = credentials
        self._renew = renew
        self._place = 0
        self._generations: list[Generation] = []
        self._pem: Pem | None = None
        self._watch: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Make the first channel; it connects with the first call. Raises `SetupError`, or what `renew` raises."""
        if self._renew is not None:
            await self._renew()
        self._pem = self._credentials.read()
        self._generations.append(self._make(self._pem))
        self._watch = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """End every call and channel. Raises what went wrong in the background, which only a bug can."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait((watch,))
        for generation in self._generations:
            await generation.channel.close(None)
        self._generations.clear()
        if watch is not None and not watch.cancelled() and (problem := watch.exception()) is not None:
            raise problem

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Generation]:
        """The current generation, kept open while in use. Raises `SetupError` when the client is not open."""
        if not self._generations:
            raise SetupError("the client is not connected; use it inside: async with Client.connect() as client")
        generation = self._generations[-1]
        generation.users += 1
        try:
            yield generation
        finally:
            generation.users -= 1
            await self._close_unused(generation)

    def expired(self) -> datetime | None:
        """When the certificate in use has ended, if it has: no server takes it then, or says why."""
        ended = self._pem.not_after() if self._pem is not None else None
        return ended if ended is not None and ended <= datetime.now(UTC) else None

    async def unreachable(self, generation: Generation) -> None:
        """A call found nobody there who can serve: try the next address, unless another call has moved on already."""
        if len(self._addresses) > 1 and generation is self._generations[-1] and self._pem is not None:
            self._place += 1
            await self._take_over(self._make(self._pem))

    async def refresh(self) -> bool:
        """Look at the files now: whether there is a new generation. What cannot be used leaves the current one."""
        async with self._changing:
            try:
                pem = self._credentials.read()
            except SetupError as error:
                _log.warning("the certificate in use is kept: %s", error)
                return False
            if pem == self._pem:
                return False
            generation = self._make(pem)
            try:
                async with asyncio.timeout(_READY):
                    await generation.channel.channel_ready()
            except TimeoutError:
                # A key and a certificate that were not written at the same moment look like this, too.
                _log.warning("the certificate in use is kept: no connection with the new one to %s", self._address)
                await generation.channel.close(None)
                return False
            except BaseException:
                await generation.channel.close(None)
                raise
            self._pem = pem
            await self._take_over(generation)
            return True

    @property
    def _address(self) -> str:
        return self._addresses[self._place % len(self._addresses)]

    def _make(self, pem: Pem) -> Generation:
        return Generation(self._address, pem)

    async def _take_over(self, generation: Generation) -> None:
        old = self._generations[-1]
        self._generations.append(generation)
        old.retired = True
        await self._close_unused(old)

    async def _close_unused(self, generation: Generation) -> None:
        if generation.retired and not generation.users and generation in self._generations:
            self._generations.remove(generation)
            await generation.channel.close(None)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            if self._renew is not None:
                try:
                    await self._renew()
                except Exception as error:  # the hook raises what it likes; the certificate in use may last
                    _log.warning("the certificate was not renewed: %s", error)
            await self.refresh()
            await self._learn()

    async def _learn(self) -> None:
        """Where else to turn, should the replica in use go away. One that cannot tell changes nothing."""
        async with self.use() as generation:
            try:
                found = await generation.cluster.GetCluster(GetClusterRequest(), timeout=_LEARN)
            except grpc.aio.AioRpcError as error:
                _log.debug("the replicas are not known: %s", error.details())
                return
        current = self._address
        there = [replica.address for replica in found.replicas if not replica.leaving]
        # The one in use stays the first, so that learning moves nobody.
        self._addresses = tuple(dict.fromkeys((current, *self._seeds, *there)))
        self._place = 0
