"""The two listeners: mutual TLS for everything, and server TLS only for those who have no certificate yet.

One `grpc.aio` server each, because Python's gRPC either demands client certificates or never asks for them. Their
certificate is read at each handshake, so a renewal needs no restart and breaks no connection. There is no listener
without TLS. Channel options that gRPC does not know are ignored in silence: each one here has a test of its effect.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import grpc
from antiphon.options.v1 import options_pb2
from antiphon_certs import Clock, Peer, PeerVerifier, SystemClock
from grpc_health.v1 import health_pb2_grpc

from antiphon_orchestrator import telemetry
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.policy import Decision, PolicyPort

from .call import trace_id
from .certificate import LiveCertificate
from .checks import Call, Checks, policy_request
from .gate import Gate, Streams
from .health import Health
from .image import Image
from .interceptor import Interceptor, Router
from .pace import Pace
from .rate import TokenBuckets

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_MIB = 1 << 20
# What is a little too large is refused by us, with its reason; what is much too large by gRPC, unread.
_SLACK = 65536

Register = Callable[[grpc.aio.Server], None]
"""Adds a servicer: `lambda server: add_RunServiceServicer_to_server(servicer, server)`."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits of one listener. Sizes in bytes; `calls_per_second` and `call_burst` are per identity, or per address
    where there is none."""

    message_limit: int = 4 * _MIB
    """One message, either way."""
    metadata_limit: int = 16 * 1024
    """The metadata of one call."""
    connections: int = 8192
    """Connections at once, those that are still shaking hands among them; what comes beyond is closed unread."""
    concurrent_streams: int = 4096
    """Calls and streams of one connection."""
    caller_streams: int = 4096
    """Streams that one identity has open, over all its connections; of one address where there is none."""
    calls_per_second: float = 2000
    """Calls of one identity, over time; of one address where there is none. A stream counts as one."""
    call_burst: float = 4000
    """Calls that it may make at once, after a rest."""
    unseen_calls: int = 16384
    """Calls and streams that have come and that the loop has not taken up yet. gRPC ends what comes beyond without a
    reason; we refuse much earlier and say why, but only what we see."""
    concurrent_calls: int = 1024
    """Unary calls in hand; fewer while most of them take longer than `call_latency`."""
    call_latency: timedelta = timedelta(seconds=1)
    """What a unary call should take at most; while most take longer, fewer are let in at once."""
    handshake_timeout: timedelta = timedelta(seconds=2)
    """For TLS and HTTP/2 to be set up."""
    connection_age: timedelta = timedelta(minutes=30)
    """After which a connection is asked to be made anew, with the certificates of then."""
    connection_grace: timedelta = timedelta(seconds=60)
    """What its calls and streams have left then to end by themselves."""
    keepalive_interval: timedelta = timedelta(seconds=30)
    """How often a silent connection is pinged."""
    keepalive_timeout: timedelta = timedelta(seconds=10)
    """How long the answer to a ping may take."""
    shortest_ping_interval: timedelta = timedelta(seconds=10)
    """Who pings more often is disconnected."""
    shutdown_grace: timedelta = timedelta(seconds=2)
    """What calls have left to end when the process is told to."""

    def channel_options(self) -> list[tuple[str, int]]:
        """The same in gRPC's words."""
        return [
            ("grpc.max_receive_message_length", self.message_limit + _SLACK),
            ("grpc.max_send_message_length", self.message_limit + _SLACK),
            ("grpc.max_metadata_size", self.metadata_limit),
            ("grpc.absolute_max_metadata_size", self.metadata_limit),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.concurrent_streams),
            # Where the second is larger, calls in between are ended by lot.
            ("grpc.server.max_pending_requests", self.unseen_calls),
            ("grpc.server.max_pending_requests_hard_limit", self.unseen_calls),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_timeout)),
            ("grpc.max_connection_age_ms", _milliseconds(self.connection_age)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(self.connection_grace)),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_interval)),
            # What ends a connection whose ping is not answered; grpc.keepalive_timeout_ms has no effect (1.85).
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive_timeout)),
            # Without it a connection that has no call is neither pinged nor allowed to ping.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(self.shortest_ping_interval)),
            # Two processes on one port would share its connections unnoticed.
            ("grpc.so_reuseport", 0),
        ]


class AddressNotFree(Exception):
    """Nobody can listen on an address; the message names the setting that says which, and the cause."""

    def __init__(self, setting: str, address: str, cause: str) -> None:
        super().__init__(f"{setting}: cannot listen on {address}: {cause}")
        self.setting = setting


@dataclass(frozen=True, slots=True)
class Parts:
    """What both listeners share."""

    image: Image
    certificate: LiveCertificate
    policy: PolicyPort
    audit: AuditLog
    metrics: telemetry.Metrics
    trust_domain: str
    revoked: Callable[[Peer], None]
    """Raises `ApiError` for a caller whose certificate is revoked."""
    development: bool = False
    clock: Clock = field(default_factory=SystemClock)
    pace: Pace = field(default_factory=Pace)
    """What streams of callers take of the loop."""
    outer: tuple[grpc.aio.ServerInterceptor[Any, Any], ...] = ()
    """Interceptors around ours, for tracing."""
    router: Router | None = None
    """Finds the replica that answers a call, when this one may not."""


class Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """All methods of a server by their path; generated code adds a servicer's to it, which it takes for the server.

    That code also has each of them registered with a server, which then awaits, for every call, whichever of them is
    called next: `asyncio.wait` for all of them at once, in Python, at a price that grows with their number.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add(self, register: Register) -> None:
        """Take a servicer's."""
        register(cast(grpc.aio.Server, self))

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """They come by name as well."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self.handlers.get(handler_call_details.method)


class Listener:
    """One server on one address. `start` binds, `stop` drains; `run` looks after the streams meanwhile."""

    def __init__(
        self,
        kind: options_pb2.Listener.ValueType,
        address: str,
        options: ServerOptions,
        parts: Parts,
        services: Sequence[Register],
    ) -> None:
        self._kind = kind
        self._address = address
        self._options = options
        self._parts = parts
        self._services = services
        self._log = telemetry.logger("api")
        checks = Checks(
            parts.image,
            PeerVerifier(parts.trust_domain),
            parts.policy,
            TokenBuckets(options.calls_per_second, options.call_burst, time.monotonic),
            listener=kind,
            message_limit=options.message_limit,
            now=parts.clock.now,
            revoked=parts.revoked,
            denied=self._denied,
            used=self._used,
        )
        open_services = {HEALTH, REFLECTION} if parts.development else {HEALTH}
        self.gate = Gate(options.concurrent_calls, options.call_latency.total_seconds(), time.monotonic)
        self._interceptor = Interceptor(
            parts.image,
            checks,
            parts.clock,
            parts.metrics,
            frozenset(open_services),
            parts.router,
            self.gate,
            Streams(options.caller_streams),
            parts.pace,
        )
        self._health = Health()
        self._server: grpc.aio.Server | None = None
        self.port = 0
        """The port that is bound; what was asked for, or one of the system's choice when that was 0."""

    async def start(self) -> None:
        """Bind and serve; NOT_SERVING until `set_serving`. Raises `AddressNotFree`."""
        mutual = self._kind == options_pb2.LISTENER_MUTUAL_TLS
        server = grpc.aio.server(
            interceptors=(*self._parts.outer, self._interceptor), options=self._options.channel_options()
        )
        methods = Methods()
        methods.add(lambda s: health_pb2_grpc.add_HealthServicer_to_server(self._health, s))
        for register in self._services:
            methods.add(register)
        if self._parts.development:
            services = {method.service for method in self._parts.image.methods.values()}
            from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # for development only

            names = [*sorted(services), HEALTH, REFLECTION]
            reflected = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]  # not seen by checkers
            methods.add(lambda s: reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, s))
        server.add_generic_rpc_handlers((methods,))
        credentials = self._parts.certificate.server_credentials(client_certificates=mutual)
        try:
            self.port = server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            setting = "listen" if mutual else "join_listen"
            raise AddressNotFree(setting, self._address, _cause(self._address) or str(error)) from error
        await server.start()
        self._server = server
        self._log.info("listening", address=self._address, port=self.port, listener="mtls" if mutual else "join")

    def set_serving(self, serving: bool) -> None:
        """What health checks answer, for the server as a whole (service "")."""
        self._health.set_serving(serving)

    async def run(self) -> None:
        """Ends the streams whose certificate holds no more; cancel to stop."""
        await self._interceptor.run()

    async def stop(self) -> None:
        """Health says NOT_SERVING, calls under way get `shutdown_grace`, then all connections end."""
        if self._server is not None:
            self.set_serving(False)
            await self._server.stop(self._options.shutdown_grace.total_seconds())

    def _denied(self, call: Call, decision: Decision) -> None:
        assert call.peer is not None
        self._parts.audit.record(policy_request(call, call.peer), decision)
        self._tell(self._log.warning, "policy_denied", call, decision)

    def _used(self, call: Call, decision: Decision) -> None:
        self._tell(self._log.info, "policy_used", call, decision)

    def _tell(self, tell: Callable[..., None], event: str, call: Call, decision: Decision) -> None:
        assert call.peer is not None
        tell(
            event,
            method=call.path,
            principal=call.peer.identity.uri,
            decision_id=decision.decision_id,
            policies=",".join(decision.policies),
            cause=decision.reason,
            trace_id=trace_id(call.traceparent),
        )


class ApiServer:
    """Both listeners and their certificate. `start`, then `run` in the process's task group, then `stop`."""

    def __init__(
        self,
        parts: Parts,
        *,
        address: str,
        join_address: str,
        services: Sequence[Register],
        options: ServerOptions,
        join_options: ServerOptions,
    ) -> None:
        """`services` go to both listeners: the contracts say which methods each of them serves."""
        self._parts = parts
        self.mutual_tls = Listener(options_pb2.LISTENER_MUTUAL_TLS, address, options, parts, services)
        self.join = Listener(options_pb2.LISTENER_JOIN, join_address, join_options, parts, services)

    async def start(self) -> None:
        """Binds both addresses. Raises `AddressNotFree`."""
        await self.mutual_tls.start()
        try:
            await self.join.start()
        except AddressNotFree:
            await self.mutual_tls.stop()  # gRPC would stop it later, on a loop that is closed by then
            raise

    def set_serving(self, serving: bool) -> None:
        """What health checks answer on both."""
        self.mutual_tls.set_serving(serving)
        self.join.set_serving(serving)

    async def run(self) -> None:
        """Keeps certificate and streams in order; cancel to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._parts.certificate.run())
            group.create_task(self.mutual_tls.run())
            group.create_task(self.join.run())

    async def stop(self) -> None:
        """Drains both at once."""
        await asyncio.gather(self.mutual_tls.stop(), self.join.stop())


def _cause(address: str) -> str:
    """Why nobody can listen there, which gRPC does not tell; empty when somebody could."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, at = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            tried.bind(at)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
