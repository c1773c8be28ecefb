"""IdentityService: certificates for those who may have them.

A token's record is consumed by one compared put before the certificate leaves, so of two bearers one wins; the same
signing request may come again, since its answer may have been lost, until what it was given is revoked. No certificate
leaves for one that is revoked, or for a token that was made before its identity was. Nothing here logs or returns a
secret but CreateToken's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from antiphon.store.v1 import records_pb2
from antiphon.v1 import identity_service_pb2, identity_service_pb2_grpc
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import (
    LEAF_LIFETIME,
    Authority,
    Clock,
    Grants,
    Identity,
    InvalidGrants,
    InvalidRequest,
    Kind,
    Peer,
    RecoveryError,
    TokenError,
    TokenReason,
    TokenRecord,
    mint,
    parse_kind,
    verify,
    verify_recovery,
)
from cryptography import x509

from antiphon_orchestrator.audit import AuditLog, Fact
from antiphon_orchestrator.policy import Action, PolicyPort, Request, ResourceKind
from antiphon_orchestrator.revocations import Revocations, Subject
from antiphon_orchestrator.store import keys
from antiphon_orchestrator.store.port import Compare, Delete, KeyValue, Put, Store, Target, Txn, prefix_end

from .call import Caller, caller
from .errors import ApiError, Violation, request_invalid
from .paging import decode_token, encode_token
from .storing import settle

SYSTEM_NAMESPACE = "system"
"""Whose operators make tokens for every namespace."""

_TOKEN_LIFETIME = timedelta(minutes=10)
_RACES = 3
_PRUNED = 64
_CAUSES = {
    TokenReason.MALFORMED: "it is malformed",
    TokenReason.EXPIRED: "it has expired",
    TokenReason.CONSUMED: "it was used before",
    TokenReason.UNKNOWN: "it is unknown here",
    TokenReason.MISMATCH: "its secret is wrong",
}


class Endpoints(NamedTuple):
    """`host:port` of the listeners, as others reach them."""

    mutual_tls: tuple[str, ...]
    join: tuple[str, ...]


class IdentityService(identity_service_pb2_grpc.IdentityServiceServicer):
    """Over one authority and the store. `authority` is asked each time, since it may have been renewed, and `endpoints`
    too, since ports may be the system's choice. `recovery_window`: how long after its expiry a sidecar's certificate is
    given anew."""

    def __init__(
        self,
        authority: Callable[[], Authority],
        store: Store,
        policy: PolicyPort,
        clock: Clock,
        endpoints: Callable[[], Endpoints],
        audit: AuditLog,
        revocations: Revocations,
        recovery_window: timedelta,
    ) -> None:
        self._authority = authority
        self._store = store
        self._policy = policy
        self._clock = clock
        self._endpoints = endpoints
        self._audit = audit
        self._revocations = revocations
        self._recovery_window = recovery_window

    async def Join(self, request: identity_service_pb2.JoinRequest, _context: Any) -> identity_service_pb2.JoinResponse:
        """Verify, issue in memory, consume, and only then answer."""
        signing_request = request.signing_request.encode()
        key = keys.token(request.token_id)
        for _ in range(_RACES):
            found, record = await self._token(key)
            now = self._clock.now()
            try:
                verify(record, _secret(request.secret), signing_request, now)
            except TokenError as error:
                raise _not_accepted(error.reason) from error
            assert found is not None and record is not None
            revoked = await self._revocations.of(record.identity)
            if revoked is not None and revoked.revision > found.create_revision:
                raise ApiError(
                    ErrorReason.ERROR_REASON_TOKEN_NOT_ACCEPTED, cause="its identity was revoked after it was made"
                )
            if await self._revocations.any_of(record.identity.namespace, record.serials):
                raise ApiError(
                    ErrorReason.ERROR_REASON_TOKEN_NOT_ACCEPTED, cause="the certificate that it gave was revoked"
                )
            moment = await self._revocations.not_before(record.identity)
            grant = self._issue(signing_request, record.identity, record.grants, moment)
            used = record.consumed(signing_request, now, _serial(grant))
            compare = Compare(key, Target.MOD_REVISION, found.mod_revision)
            if (await settle(self._store, Txn((compare,), (Put(key, _encode(used)),)))).succeeded:
                return await self._joined(record, grant)
        raise _not_accepted(TokenReason.CONSUMED)

    async def _joined(
        self, record: TokenRecord, grant: identity_service_pb2.CertificateGrant
    ) -> identity_service_pb2.JoinResponse:
        await self._record("join", record.identity, record.identity, grant, {"token_id": record.token_id})
        return identity_service_pb2.JoinResponse(certificate=grant)

    async def _record(
        self,
        action: str,
        principal: Identity,
        identity: Identity,
        grant: identity_service_pb2.CertificateGrant,
        details: dict[str, str],
    ) -> None:
        """Before the answer: a certificate that nobody knows of has not left."""
        details["serial"] = _serial(grant)
        details["expire_time"] = grant.expire_time.ToDatetime(UTC).isoformat(timespec="seconds")
        await self._audit.write(Fact(action, identity.namespace, principal.uri, _resource(identity), details=details))

    async def Renew(
        self, request: identity_service_pb2.RenewRequest, _context: Any
    ) -> identity_service_pb2.RenewResponse:
        """The caller's own names and grants, for a new key."""
        peer = caller().peer
        assert peer is not None
        grant = await self._exchanged("renew", peer, request.signing_request.encode())
        return identity_service_pb2.RenewResponse(certificate=grant)

    async def Recover(
        self, request: identity_service_pb2.RecoverRequest, _context: Any
    ) -> identity_service_pb2.RecoverResponse:
        """As Renew, for a certificate that has expired: TLS would not have it, so its key has signed the request."""
        signing_request = request.signing_request.encode()
        try:
            peer = verify_recovery(
                request.chain.encode(),
                signing_request,
                request.signature,
                self._authority().bundle_pem,
                self._clock.now(),
                self._recovery_window,
            )
        except RecoveryError as error:
            raise ApiError(ErrorReason.ERROR_REASON_RECOVERY_NOT_ACCEPTED, cause=str(error)) from error
        self._revocations.check(peer)
        return identity_service_pb2.RecoverResponse(certificate=await self._exchanged("recover", peer, signing_request))

    async def _exchanged(
        self, action: str, peer: Peer, signing_request: bytes
    ) -> identity_service_pb2.CertificateGrant:
        """A certificate in exchange for that of `peer`, unless it turns out to be revoked."""
        moment = await self._revocations.not_before(peer.identity)
        grant = self._issue(signing_request, peer.identity, peer.grants, moment)
        await self._record(action, peer.identity, peer.identity, grant, {})
        await self._revocations.confirm(peer, moment)
        return grant

    async def RevokeCertificates(
        self, request: identity_service_pb2.RevokeCertificatesRequest, _context: Any
    ) -> identity_service_pb2.RevokeCertificatesResponse:
        """In force here when it is answered, and on the other replicas as soon as their watches tell them."""
        who = caller()
        namespace = self._within(who, request.namespace)
        of_all = request.identity
        subject = Subject(namespace, of_all.kind, of_all.name, request.serial)
        await self._revocations.revoke(subject, request.cause, who.principal)
        resource = f"Certificate::{namespace}/{request.serial}"
        if not request.serial:
            resource = f"Identity::{namespace}/{of_all.kind}/{of_all.name}"
        await self._audit.write(Fact("revoke", namespace, who.principal, resource, details={"cause": request.cause}))
        return identity_service_pb2.RevokeCertificatesResponse()

    async def ListRevocations(
        self, request: identity_service_pb2.ListRevocationsRequest, _context: Any
    ) -> identity_service_pb2.ListRevocationsResponse:
        """Those of the caller's namespace."""
        found = decode_token(request, str)
        rest = [
            (subject, record)
            for subject, record in self._revocations.listed(caller().namespace)
            if found is None or subject.key.hex() > str(found[0])
        ]
        page = rest[: request.page_size or 50]
        response = identity_service_pb2.ListRevocationsResponse()
        for subject, record in page:
            shown = response.revocations.add(cause=record.cause, principal=record.principal)
            if subject.serial:
                shown.serial = subject.serial
            else:
                shown.identity.kind, shown.identity.name = subject.kind, subject.name
            shown.revoke_time.FromMicroseconds(record.create_time)
            shown.expire_time.FromMicroseconds(record.expire_time)
        if len(rest) > len(page):
            response.next_page_token = encode_token(request, (page[-1][0].key.hex(),))
        return response

    async def CreateToken(
        self, request: identity_service_pb2.CreateTokenRequest, _context: Any
    ) -> identity_service_pb2.CreateTokenResponse:
        """The secret is in the answer and nowhere else; the store gets its hash."""
        who = caller()
        namespace = self._within(who, request.namespace)
        kind = parse_kind(request.kind)
        grants = _grants(request)
        if kind is not Kind.SIDECAR and grants != Grants():
            field = "agents" if grants.agents else "capabilities"
            raise request_invalid([Violation(field, "is for sidecars only: nobody else speaks for agents")])
        lifetime = request.lifetime.ToTimedelta() if request.HasField("lifetime") else _TOKEN_LIFETIME
        endpoints = self._endpoints()
        text, record = mint(
            Identity(self._authority().trust_domain, namespace, kind, request.name),
            grants,
            lifetime,
            root_pem=self._authority().root_pem,
            addresses=endpoints.mutual_tls,
            join_addresses=endpoints.join,
            now=self._clock.now(),
        )
        key = keys.token(record.token_id)
        # Were it not compared, an attempt that lands late could make a used token new.
        await settle(self._store, Txn((Compare(key, Target.VERSION, 0),), (Put(key, _encode(record)),)))
        await self._prune(key)
        details = {
            "token_id": record.token_id,
            "agents": ",".join(request.agents),
            "capabilities": ",".join(request.capabilities),
            "expire_time": record.expire_time.isoformat(timespec="seconds"),
        }
        await self._audit.write(
            Fact("create_token", namespace, who.principal, _resource(record.identity), details=details)
        )
        response = identity_service_pb2.CreateTokenResponse(token=text)
        response.expire_time.FromDatetime(record.expire_time)
        return response

    async def GetTrustBundle(
        self, _request: identity_service_pb2.GetTrustBundleRequest, _context: Any
    ) -> identity_service_pb2.GetTrustBundleResponse:
        """The roots, and the digest that two people can compare aloud."""
        return identity_service_pb2.GetTrustBundleResponse(
            trust_bundle=self._authority().bundle_pem.decode(), digest=self._authority().root_fingerprint
        )

    async def _token(self, key: bytes) -> tuple[KeyValue | None, TokenRecord | None]:
        found = (await self._store.range(key)).kvs
        return (found[0], _decode(found[0].value)) if found else (None, None)

    def _issue(
        self, signing_request: bytes, identity: Identity, grants: Grants, now: datetime
    ) -> identity_service_pb2.CertificateGrant:
        authority = self._authority()
        try:
            chain = authority.issue(signing_request, identity, LEAF_LIFETIME, grants, now=now)
        except InvalidRequest as error:
            raise ApiError(ErrorReason.ERROR_REASON_SIGNING_REQUEST_INVALID, cause=str(error)) from error
        grant = identity_service_pb2.CertificateGrant(
            chain=chain.decode(), trust_bundle=authority.bundle_pem.decode(), spiffe_id=identity.uri
        )
        grant.expire_time.FromDatetime(x509.load_pem_x509_certificate(chain).not_valid_after_utc)
        return grant

    def _within(self, who: Caller, namespace: str) -> str:
        """The namespace that is meant, if the caller may operate in it."""
        if namespace and namespace != who.namespace and who.namespace != SYSTEM_NAMESPACE:
            self._permit(who, namespace)
        return namespace or who.namespace

    def _permit(self, who: Caller, namespace: str) -> None:
        """The call as such was permitted in the caller's namespace; another one is a question of its own."""
        question = Request(
            Action.OPERATE, who.principal, who.identity.kind.value, namespace, ResourceKind.NAMESPACE, namespace
        )
        decision = self._policy.decide_batch([question])[0]
        if not decision.allowed:
            self._audit.record(question, decision)
            raise ApiError(
                ErrorReason.ERROR_REASON_POLICY_DENIED,
                action=Action.OPERATE.value,
                decision_id=decision.decision_id,
                cause=decision.reason,
            )

    async def _prune(self, key: bytes) -> None:
        """Forget some tokens that have expired: those beside a random id, so that over time every one is met."""
        behind = await self._store.range(key, prefix_end(keys.TOKENS), limit=_PRUNED)
        before = await self._store.range(keys.TOKENS, key, limit=_PRUNED - len(behind.kvs) + 1)
        now = self._clock.now()
        old = tuple(Delete(item.key) for item in (*behind.kvs, *before.kvs) if _decode(item.value).expire_time < now)
        if old:
            await settle(self._store, Txn((), old))


def _resource(identity: Identity) -> str:
    return f"Identity::{identity.namespace}/{identity.kind.value}/{identity.name}"


def _serial(grant: identity_service_pb2.CertificateGrant) -> str:
    return f"{x509.load_pem_x509_certificate(grant.chain.encode()).serial_number:x}"


def _secret(text: str) -> bytes:
    """A token's secret travels in hexadecimal, as the token's text holds it."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""  # equal to no secret, so it is refused like any other wrong one


def _grants(request: identity_service_pb2.CreateTokenRequest) -> Grants:
    violations = []
    for field, patterns in (("agents", request.agents), ("capabilities", request.capabilities)):
        for index, pattern in enumerate(patterns):
            try:
                Grants((pattern,))
            except InvalidGrants as error:
                violations.append(Violation(f"{field}[{index}]", str(error)))
    if violations:
        raise request_invalid(violations)
    try:
        return Grants(tuple(request.agents), tuple(request.capabilities))
    except InvalidGrants as error:
        raise request_invalid([Violation("capabilities", str(error))]) from error


def _not_accepted(reason: TokenReason) -> ApiError:
    return ApiError(ErrorReason.ERROR_REASON_TOKEN_NOT_ACCEPTED, cause=_CAUSES[reason])


def _encode(record: TokenRecord) -> bytes:
    used_by = bytes.fromhex(record.request_digest or "")
    return records_pb2.TokenRecord(json=record.to_json(), used_by=used_by).SerializeToString()


def _decode(value: bytes) -> TokenRecord:
    return TokenRecord.from_json(records_pb2.TokenRecord.FromString(value).json)
