"""The order of the checks, and what each lets pass; with a real policy and real certificates, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from antiphon.mesh.v1 import mesh_service_pb2
from antiphon.options.v1 import options_pb2
from antiphon.v1 import graph_service_pb2, identity_service_pb2, run_service_pb2
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Authority, Identity, Kind, Peer, PeerVerifier, SystemClock, new_key_and_csr
from antiphon_orchestrator.api.call import Caller, caller, set_caller, trace_id, traceparent
from antiphon_orchestrator.api.checks import KINDS, RESOURCES, Call, Checks, policy_request
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.gate import Gate, Streams
from antiphon_orchestrator.api.image import Image
from antiphon_orchestrator.api.interceptor import Interceptor
from antiphon_orchestrator.api.pace import Pace
from antiphon_orchestrator.api.rate import TokenBuckets
from antiphon_orchestrator.policy import (
    Action,
    CedarPolicies,
    Decision,
    PolicyBundle,
    PolicyFile,
    ResourceKind,
    dev_profile,
)
from antiphon_orchestrator.telemetry import Metrics
from google.protobuf.message import Message

IMAGE = Image.load()
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GET_RUN = "/antiphon.v1.RunService/GetRun"
JOIN = "/antiphon.v1.IdentityService/Join"
Certify = Callable[[Kind], bytes]


@pytest.fixture(scope="session")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Certify:
    authority = Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test", now=NOW)

    def make(kind: Kind) -> bytes:
        identity = Identity("mesh.test", "team-a", kind, "alice")
        return authority.issue(new_key_and_csr(identity)[1], identity, now=NOW)

    return make


def checks(
    *,
    listener: options_pb2.Listener.ValueType = options_pb2.LISTENER_MUTUAL_TLS,
    policy: CedarPolicies | None = None,
    now: datetime = NOW,
    revoked: Callable[[Peer], None] = lambda peer: None,
    denied: list[Decision] | None = None,
    used: list[Decision] | None = None,
) -> Checks:
    return Checks(
        IMAGE,
        PeerVerifier("mesh.test"),
        policy or CedarPolicies(dev_profile()),
        TokenBuckets(100, 100, lambda: 0.0),
        listener=listener,
        message_limit=1000,
        now=lambda: now,
        revoked=revoked,
        denied=lambda _call, decision: (denied if denied is not None else []).append(decision),
        used=lambda _call, decision: (used if used is not None else []).append(decision),
    )


def call(path: str, request: Message | None, certificate: bytes | None, *, deadline: float | None = 5.0) -> Call:
    data = None if request is None else request.SerializeToString()
    return Call(path, IMAGE.methods.get(path), deadline, certificate, "ipv4:127.0.0.1", data, traceparent(()))


def refused(gate: Checks, one: Call) -> str:
    with pytest.raises(ApiError) as caught:
        gate.run(one)
    return caught.value.spec.name


def test_the_order_is_method_deadline_certificate_size_and_rate_request_access() -> None:
    assert [check.__name__ for check in checks().order] == [
        "method_known",
        "deadline_present",
        "certificate_valid",
        "size_and_rate",
        "request_valid",
        "access_allowed",
    ]


def test_the_first_check_that_fails_speaks(certify: Certify) -> None:
    """One call that breaks everything, mended step by step."""
    empty, late = run_service_pb2.GetRunRequest(), NOW + timedelta(hours=2)
    gate = checks(policy=CedarPolicies())
    assert refused(gate, call("/x/Y", empty, None, deadline=None)) == "METHOD_UNKNOWN"
    assert refused(gate, call(GET_RUN, empty, None, deadline=None)) == "DEADLINE_REQUIRED"
    assert refused(gate, call(GET_RUN, empty, None)) == "CERTIFICATE_REQUIRED"
    sidecar, client = certify(Kind.SIDECAR), certify(Kind.CLIENT)
    assert refused(checks(now=late), call(GET_RUN, empty, sidecar)) == "CERTIFICATE_EXPIRED"
    large = run_service_pb2.GetRunRequest(run_id="x" * 1001)
    assert refused(gate, call(GET_RUN, large, sidecar)) == "MESSAGE_TOO_LARGE"
    assert refused(gate, call(GET_RUN, empty, sidecar)) == "REQUEST_INVALID"
    good = run_service_pb2.GetRunRequest(run_id="r")
    assert refused(gate, call(GET_RUN, good, sidecar)) == "ACCESS_DENIED"
    assert refused(gate, call(GET_RUN, good, client)) == "POLICY_DENIED"
    one = call(GET_RUN, good, client)
    checks().run(one)
    assert one.peer is not None and one.peer.identity.name == "alice"


def test_rate_is_limited_after_the_caller_is_known(certify: Certify) -> None:
    gate, good = checks(), run_service_pb2.GetRunRequest(run_id="r")
    for _ in range(100):
        gate.run(call(GET_RUN, good, certify(Kind.CLIENT)))
    assert refused(gate, call(GET_RUN, good, certify(Kind.CLIENT))) == "RATE_LIMITED"
    gate.run(call(GET_RUN, good, certify(Kind.OPERATOR)))  # another identity


def test_nobody_is_believed_to_pass_a_call_on_where_there_are_no_certificates() -> None:
    """What replicas pass on was counted where it came in; a stranger who says so is counted here."""
    gate = checks(listener=options_pb2.LISTENER_JOIN)
    request = identity_service_pb2.JoinRequest()
    refusals = []
    for _ in range(101):
        one = call("/antiphon.v1.IdentityService/Join", request, None)
        one.forwarded = b"anything"
        try:
            gate.run(one)
        except ApiError as error:
            refusals.append(error.spec.name)
    assert refusals[-1] == "RATE_LIMITED" and len(set(refusals[:-1])) <= 1


async def test_names_that_somebody_makes_up_are_not_kept() -> None:
    gate = Gate(1, 1.0, lambda: 0.0)
    open_services = frozenset({"grpc.health.v1.Health"})
    interceptor = Interceptor(IMAGE, checks(), SystemClock(), Metrics(), open_services, None, gate, Streams(1), Pace())

    async def nothing(details: Any) -> None:
        return None

    for path in ("/grpc.health.v1.Health/x", "/x/y", "/antiphon.v1.RunService/x"):
        await interceptor.intercept_service(nothing, SimpleNamespace(method=path))  # type: ignore[arg-type]
    assert not interceptor._handlers


def test_streams_need_no_deadline(certify: Certify) -> None:
    checks().run(call("/antiphon.v1.RunService/SubmitRuns", None, certify(Kind.CLIENT), deadline=None))
    checks().run(call("/antiphon.mesh.v1.MeshService/Attach", None, certify(Kind.SIDECAR), deadline=None))


def test_a_certificate_that_is_none_or_foreign_says_why(certify: Certify) -> None:
    good = run_service_pb2.GetRunRequest(run_id="r")
    assert refused(checks(), call(GET_RUN, good, b"garbage")) == "CERTIFICATE_NOT_ACCEPTED"


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("path", [path for path, method in IMAGE.methods.items()])
def test_kinds_and_listeners_are_what_the_contracts_say(certify: Certify, kind: Kind, path: str) -> None:
    """Every method with every kind, on the listener with mutual TLS; its own rules and policy are set aside."""
    method, gate = IMAGE.methods[path], checks()
    one = call(path, None, certify(kind))
    expected = method.listener == options_pb2.LISTENER_MUTUAL_TLS and KINDS[kind] in method.kinds
    try:
        for check in gate.order[:3]:
            check(one)
        one.message = method.request_class()
        gate.access_allowed(one)
        allowed = True
    except ApiError as error:
        allowed = error.spec.name == "POLICY_DENIED"
    assert allowed == expected


@pytest.mark.parametrize("path", [path for path, method in IMAGE.methods.items()])
def test_without_a_certificate_only_public_methods_are_reached(path: str) -> None:
    gate, one = checks(listener=options_pb2.LISTENER_JOIN), call(path, None, None)
    public = IMAGE.methods[path].listener == options_pb2.LISTENER_JOIN
    try:
        for check in gate.order[:3]:
            check(one)
        gate.access_allowed(one)
        reached = True
    except ApiError:
        reached = False
    assert reached == public


def test_no_method_is_open_to_nobody_in_particular_with_mutual_tls(certify: Certify) -> None:
    """Methods that name no kind are public, and public is the other listener only."""
    assert refused(checks(), call("/antiphon.v1.IdentityService/GetTrustBundle", None, certify(Kind.OPERATOR))) in (
        "ACCESS_DENIED"
    )
    assert IMAGE.methods[JOIN].kinds == frozenset()


def test_policy_is_asked_about_what_the_request_names(certify: Certify) -> None:
    gate = checks()
    one = call(
        "/antiphon.v1.GraphService/GetGraph",
        graph_service_pb2.GetGraphRequest(name="review"),
        certify(Kind.CLIENT),
    )
    gate.run(one)
    assert one.peer is not None
    question = policy_request(one, one.peer)
    assert (question.action, question.resource_kind, question.resource_id) == (
        Action.READ,
        ResourceKind.GRAPH,
        "review",
    )
    other = call(GET_RUN, run_service_pb2.GetRunRequest(run_id="r"), certify(Kind.CLIENT))
    gate.run(other)
    assert other.peer is not None
    assert policy_request(other, other.peer).resource_id == "team-a"


def test_every_resource_is_a_field_of_its_request() -> None:
    for path, (_, field) in RESOURCES.items():
        message = IMAGE.methods[path].request_class()
        for name in field:
            message = getattr(message, name)
        assert message == ""


def test_submitting_is_left_to_the_shard(certify: Certify) -> None:
    request = run_service_pb2.SubmitRunRequest(request_id="a")
    request.registered.name = "chain"
    checks(policy=CedarPolicies()).run(call("/antiphon.v1.RunService/SubmitRun", request, certify(Kind.CLIENT)))


def test_an_obligation_that_cannot_be_met_here_is_a_denial(certify: Certify, tmp_path: Path) -> None:
    text = """@id("p") @obligation("redact") @fields("input")
    permit (principal, action == Action::"read", resource);"""
    denied: list[Decision] = []
    policy = CedarPolicies(PolicyBundle.of(1, [PolicyFile("p.cedar", text)]))
    one = call(GET_RUN, run_service_pb2.GetRunRequest(run_id="r"), certify(Kind.CLIENT))
    assert refused(checks(policy=policy, denied=denied), one) == "POLICY_DENIED"
    assert len(denied) == 1


def test_buckets_refill_forget_the_longest_silent_and_are_bounded() -> None:
    time = 0.0
    buckets = TokenBuckets(2, 2, lambda: time, capacity=2)
    assert [buckets.take("a"), buckets.take("a"), buckets.take("a")] == [0, 0, 0.5]
    time = 0.5
    assert buckets.take("a") == 0
    buckets.take("b")
    buckets.take("c")  # "a" is forgotten
    assert len(buckets._buckets) == 2
    assert buckets.take("a") == 0


def test_a_traceparent_is_taken_over_or_made() -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    assert traceparent((("x", "y"), ("traceparent", good))) == good
    for bad in (f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01", "nonsense", f"{good}\n", b"binary"):
        made = traceparent((("traceparent", bad),))
        assert made != bad
        assert traceparent((("traceparent", made),)) == made
    assert trace_id(good) == "a" * 32


def test_there_is_no_caller_outside_a_call(certify: Certify) -> None:
    with pytest.raises(LookupError):
        caller()
    peer = PeerVerifier("mesh.test").verify(certify(Kind.CLIENT), NOW)
    set_caller(Caller.of(peer, "00-"))
    assert caller().namespace == "team-a"


def test_a_certificate_that_is_revoked_is_refused_before_anything_else_is_looked_at(certify: Certify) -> None:
    def revoked(peer: Peer) -> None:
        metadata = {"identity": peer.identity.uri, "revoke_time": "then", "cause": "lost"}
        raise ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_REVOKED, **metadata)

    broken = call(GET_RUN, run_service_pb2.GetRunRequest(), certify(Kind.CLIENT))
    assert refused(checks(revoked=revoked), broken) == "CERTIFICATE_REVOKED"


async def test_a_stream_that_is_to_end_is_not_listened_to_any_more(certify: Certify) -> None:
    """While a message to somebody who does not read is under way, its stream cannot end, and others would still do."""
    one = call("/antiphon.mesh.v1.MeshService/Attach", None, certify(Kind.SIDECAR), deadline=None)
    gate = Gate(1, 1.0, lambda: 0.0)
    interceptor = Interceptor(IMAGE, checks(), SystemClock(), Metrics(), frozenset(), None, gate, Streams(1), Pace())
    seen: list[bytes] = []

    async def requests() -> AsyncIterator[bytes]:
        yield b""
        one.ended = ApiError(ErrorReason.ERROR_REASON_CERTIFICATE_REQUIRED)
        yield b""

    class Inner:
        request_deserializer = mesh_service_pb2.AttachRequest.FromString

    with pytest.raises(ApiError) as ended:
        async for request in interceptor._checked(one.known, Inner, requests(), one):
            seen.append(request)
    assert ended.value is one.ended and len(seen) == 1
