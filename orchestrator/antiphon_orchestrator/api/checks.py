"""What every call must pass before its handler runs, in an order that is data.

    method known → deadline present → certificate valid → size and rate → request valid → access

Cheap and general first; nothing of a request is parsed before its sender is known and within its rate, and no policy
sees a request that breaks the contract. The checks are plain functions of a `Call`: no I/O, no awaiting, so that
together they cost some 20 µs and cannot be interleaved. Each raises `ApiError` or lets pass.

Policy is asked here for every method with an action but `submit`, whose inputs are known per run: the shard asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.options.v1 import options_pb2
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Grants, Identity, InvalidName, Kind, Peer, PeerError, PeerReason, PeerVerifier
from google.protobuf.message import DecodeError, Message

from antiphon_orchestrator.policy import Action, Decision, PolicyPort, Request, ResourceKind

from .errors import ApiError
from .image import Image, Method
from .rate import TokenBuckets

KINDS: Mapping[Kind, options_pb2.IdentityKind.ValueType] = MappingProxyType(
    {
        Kind.CLIENT: options_pb2.IDENTITY_KIND_CLIENT,
        Kind.OPERATOR: options_pb2.IDENTITY_KIND_OPERATOR,
        Kind.SIDECAR: options_pb2.IDENTITY_KIND_SIDECAR,
        Kind.ORCHESTRATOR: options_pb2.IDENTITY_KIND_ORCHESTRATOR,
    }
)

# What a call is about, by method: kind of resource, and the path of the request field that names it. Methods without a
# row are about the caller's namespace. Reads of runs are among them on purpose: a policy knows nothing of a run but its
# namespace, and a decision for each run id would push the ones of the hot path out of the cache.
RESOURCES: Mapping[str, tuple[ResourceKind, tuple[str, ...]]] = MappingProxyType(
    {
        "/antiphon.v1.GraphService/RegisterGraph": (ResourceKind.GRAPH, ("graph", "name")),
        "/antiphon.v1.GraphService/GetGraph": (ResourceKind.GRAPH, ("name",)),
        "/antiphon.v1.RunService/CancelRun": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/PauseRun": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/ResumeRun": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/CancelTask": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/RetryTask": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/ResolveTask": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RunService/SignalRun": (ResourceKind.RUN, ("run_id",)),
        "/antiphon.v1.RegistryService/GetAgent": (ResourceKind.AGENT, ("name",)),
        "/antiphon.v1.RegistryService/DrainAgent": (ResourceKind.AGENT, ("name",)),
        "/antiphon.v1.RegistryService/SuspendAgent": (ResourceKind.AGENT, ("name",)),
        "/antiphon.v1.RegistryService/ResumeAgent": (ResourceKind.AGENT, ("name",)),
        "/antiphon.v1.RegistryService/PutVerifyReport": (ResourceKind.AGENT, ("report", "agent")),
    }
)

_SHORTEST_WAIT = timedelta(milliseconds=50)


@dataclass(slots=True)
class Call:
    """One call as it comes in, and what the checks have learnt of it. A stream is checked once, when it opens.

    time_remaining  seconds until the deadline; None without one
    certificate     the client's, PEM; None on the listener that asks for none
    address         peer address without its port: what a nameless caller is limited by
    request         the one request, serialised; None when the client streams
    forwarded       whose call it is, when it comes from another replica: a mesh.v1.ForwardedCall; None otherwise
    parse           makes the message of a request, of the generated class; None for the image's own
    message         the same as request, parsed and valid
    waits           whether it waits, or has waited, for what is not the server's work; of unary calls
    ended           why a stream, or a call that waits, is to end that was admitted
    """

    path: str
    method: Method | None
    time_remaining: float | None
    certificate: bytes | None
    address: str
    request: bytes | None
    traceparent: str
    forwarded: bytes | None = None
    parse: Callable[[bytes], Message] | None = None
    peer: Peer | None = None
    message: Any = None
    waits: bool = False
    ended: ApiError | None = None

    @property
    def known(self) -> Method:
        """The method, once it is known."""
        assert self.method is not None
        return self.method


Check = Callable[[Call], None]


class Checks:
    """The checks of one listener."""

    def __init__(
        self,
        image: Image,
        verifier: PeerVerifier,
        policy: PolicyPort,
        buckets: TokenBuckets,
        *,
        listener: options_pb2.Listener.ValueType,
        message_limit: int,
        now: Callable[[], datetime],
        revoked: Callable[[Peer], None],
        denied: Callable[[Call, Decision], None],
        used: Callable[[Call, Decision], None],
    ) -> None:
        """`revoked` raises `ApiError` for who is. For the log, `denied` is told of each refusal by policy, `used` of
        each permit that demands a line."""
        self._image = image
        self._verifier = verifier
        self._policy = policy
        self._buckets = buckets
        self._listener = listener
        self._message_limit = message_limit
        self._now = now
        self._revoked = revoked
        self._denied = denied
        self._used = used
        self.order: tuple[Check, ...] = (
            self.method_known,
            self.deadline_present,
            self.certificate_valid,
            self.size_and_rate,
            self.request_valid,
            self.access_allowed,
        )

    def run(self, call: Call) -> None:
        """Raises `ApiError` for the first check that fails."""
        for check in self.order:
            check(call)

    def method_known(self, call: Call) -> None:
        """Methods of the agents' sockets are not ours either."""
        if call.method is None or call.method.listener == options_pb2.LISTENER_AGENT_SOCKET:
            raise ApiError(ErrorReason.ERROR_REASON_METHOD_UNKNOWN, method=call.path)

    def deadline_present(self, call: Call) -> None:
        """Streams live as long as they like; their certificates are looked at again meanwhile."""
        if call.time_remaining is None and call.known.unary:
            raise ApiError(ErrorReason.ERROR_REASON_DEADLINE_REQUIRED, method=call.path)

    def certificate_valid(self, call: Call) -> None:
        """TLS looked at the certificate when the connection was made, which may be long ago."""
        if self._listener == options_pb2.LISTENER_JOIN and call.known.listener == options_pb2.LISTENER_JOIN:
            call.forwarded = None  # here is no certificate of a replica that could say so
            return
        call.peer = self.verified(call.certificate)
        if call.forwarded is not None:
            call.peer = self._original(call, call.peer, call.forwarded)

    def _original(self, call: Call, replica: Peer, forwarded: bytes) -> Peer:
        """Whose call another replica passes on. Only orchestrators are believed, and only of clients and operators."""
        try:
            identity = Identity.parse(mesh.ForwardedCall.FromString(forwarded).caller)
        except (InvalidName, DecodeError) as error:
            raise ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_NOT_ACCEPTED, cause="nobody is named") from error
        believed = replica.identity.kind is Kind.ORCHESTRATOR and identity.kind in (Kind.CLIENT, Kind.OPERATOR)
        if not believed or identity.trust_domain != replica.identity.trust_domain:
            kind = replica.identity.kind.value
            raise ApiError(ErrorReason.ERROR_REASON_ACCESS_DENIED, kind=kind, method=call.path)
        return Peer(identity, Grants(), replica.not_after, replica.serial, replica.issue_time)

    def verified(self, certificate: bytes | None) -> Peer:
        """Who shows this certificate now. Raises `ApiError`."""
        try:
            peer = self._verifier.verify(certificate, self._now())
        except PeerError as error:
            if not certificate:
                raise ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_REQUIRED) from error
            if error.reason is PeerReason.EXPIRED:
                assert error.expire_time is not None
                expired = error.expire_time.astimezone(UTC).isoformat(timespec="seconds")
                raise ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_EXPIRED, expire_time=expired) from error
            raise ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_NOT_ACCEPTED, cause=str(error)) from error
        self._revoked(peer)
        return peer

    def still_allowed(self, call: Call) -> None:
        """What holds no more of a call that was admitted a while ago with a certificate. Raises `ApiError`."""
        self.verified(call.certificate)
        self.access_allowed(call)

    def size_and_rate(self, call: Call) -> None:
        """A stream counts once; what it carries is limited by its own flow control."""
        self.small_enough(call.request)
        if call.forwarded is not None:
            return  # it was counted where it came in
        wait = self._buckets.take(call.peer.identity.uri if call.peer else call.address)
        if wait:
            after = max(timedelta(seconds=wait), _SHORTEST_WAIT)
            limit = f"{self._buckets.rate:g}"
            raise ApiError(ErrorReason.ERROR_REASON_RATE_LIMITED, retry_after=after, limit=limit)

    def small_enough(self, request: bytes | None) -> None:
        """gRPC's own limit lies a little higher, so that what is only just too large is told so properly."""
        if request is not None and len(request) > self._message_limit:
            raise ApiError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, limit=self._message_limit)

    def request_valid(self, call: Call) -> None:
        """Every rule of the contract; for a client's stream each message comes to `stream_message` when it arrives."""
        if call.request is not None:
            call.message = self._image.parse(
                call.known, call.parse or call.known.request_class.FromString, call.request
            )

    def stream_message(self, method: Method, generated: Callable[[bytes], Message], request: bytes) -> Message:
        """One message of a client's stream, parsed by the generated class; every rule is kept."""
        self.small_enough(request)
        return self._image.parse(method, generated, request)

    def access_allowed(self, call: Call) -> None:
        """The contract says which kinds may call and where; policy says who among them may do it to what."""
        method = call.known
        if call.peer is None:
            return  # certificate_valid let it pass: a public method on the public listener
        if KINDS[call.peer.identity.kind] not in method.kinds:
            raise ApiError(
                ErrorReason.ERROR_REASON_ACCESS_DENIED, kind=call.peer.identity.kind.value, method=method.path
            )
        if method.action is None or method.action is Action.SUBMIT:
            return
        decision = self._policy.decide_batch([policy_request(call, call.peer)])[0]
        if not decision.allowed:
            self._deny(call, decision, decision.reason)
        for obligation in decision.obligations:
            # Fails closed: an answer of the API is not a payload whose fields we could strike out.
            if obligation.name != "log":
                self._deny(call, decision, f"the policy demands {obligation.name}, which is not possible here")
            self._used(call, decision)

    def _deny(self, call: Call, decision: Decision, cause: str) -> None:
        self._denied(call, decision)
        assert call.known.action is not None
        raise ApiError(
            ErrorReason.ERROR_REASON_POLICY_DENIED,
            action=call.known.action.value,
            decision_id=decision.decision_id,
            cause=cause,
        )


def policy_request(call: Call, peer: Peer) -> Request:
    """What policy is asked about a call whose method has an action."""
    action = call.known.action
    assert action is not None
    identity = peer.identity
    kind, field = RESOURCES.get(call.path, (ResourceKind.NAMESPACE, ()))
    resource_id = identity.namespace
    if field:
        value = call.message
        for name in field:
            value = getattr(value, name)
        resource_id = value
    return Request(action, identity.uri, identity.kind.value, identity.namespace, kind, resource_id)
