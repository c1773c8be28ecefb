"""Who this sidecar is: a join token turned into a certificate, a certificate kept from an earlier start, or files that
something else maintains; and its renewal.

The state folder holds one profile, named `sidecar`. A token that was used before is not needed again while the
certificate of its identity is kept: one that has expired is given anew for its key, as long as the orchestrators allow.
The token's secret goes only to a server whose certificate leads to the root inside the token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from antiphon.v1 import identity_service_pb2 as identity_service
from antiphon.v1 import identity_service_pb2_grpc
from antiphon_certs import (
    ORCHESTRATOR_DNS_NAME,
    CertificateFiles,
    CertsError,
    Credential,
    CredentialError,
    ExternalFiles,
    Grants,
    JoinToken,
    Kind,
    Profile,
    ProfileError,
    RenewalError,
    Source,
    new_key_and_csr,
    profile_folder,
    prove,
)

from .backoff import backoff
from .config import Config
from .errors import Revoked, check_revoked, reason_of
from .upstream import secure_channel

log = logging.getLogger(__name__)

HOW = (
    "--token, or ANTIPHON_TOKEN; an operator makes one, for example with: "
    "antiphon certs token --profile operator --kind sidecar --name edge --agent hello --capability 'hello.*'"
)
"""What to do about a token that is missing."""
CALL_TIMEOUT = 10.0
_PROFILE = "sidecar"
_RETRIED = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    )
)


class IdentityError(Exception):
    """The sidecar cannot find out, or prove, who it is; the message says what to do."""


class TokenMissing(IdentityError):
    """Nothing says who the sidecar is, as a join token would."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the sidecar's identity comes from, before anything is dialled."""

    token: JoinToken | None
    profile: Profile | None
    source: Source
    """Where the certificate is, or will be after the join."""
    state: Path | None
    """The folder that is written to; None when something else maintains the certificate."""

    def kept(self) -> Credential | None:
        """The certificate that is there, if it is what the token promises; it may have expired."""
        try:
            credential = self.source.load()
        except CredentialError:
            return None
        if self.token and (credential.identity, credential.grants) != (self.token.identity, self.token.grants):
            return None
        return credential

    def stored(self) -> Credential | None:
        """The certificate to begin with, if one is there that is valid, and fits the token."""
        credential = self.kept()
        if credential is None or _expired(credential) or not self.same_mesh(credential):
            return None
        return credential

    def same_mesh(self, credential: Credential) -> bool:
        """Whether the token is the one that was used for it, or its root is trusted. If not, it is of another mesh."""
        if self.token is None or (self.profile and self.profile.token_id == self.token.token_id):
            return True
        return self.token.root_pem.strip() in credential.bundle_pem

    @property
    def grants(self) -> Grants | None:
        """What certificate or token allow; None when there is neither."""
        kept = self.kept()
        return kept.grants if kept else self.token.grants if self.token else None

    @property
    def owner(self) -> str:
        """What the run folder is named after. Raises `IdentityError`."""
        if self.state is not None:
            return str(self.state.absolute())
        credential = self.stored()
        if credential is None:
            raise IdentityError("there is no valid certificate; look at [identity]")
        return credential.identity.uri

    @property
    def addresses(self) -> tuple[str, ...]:
        """The orchestrators that token or profile know of."""
        if self.token:
            return self.token.addresses
        return self.profile.addresses if self.profile else ()

    @property
    def join_addresses(self) -> tuple[str, ...]:
        """Where who has no valid certificate is served, as token or profile say."""
        if self.token:
            return self.token.join_addresses
        return self.profile.join_addresses if self.profile else ()

    def forget(self) -> None:
        """Drop a certificate that was revoked, so that the next start asks for a token. Raises `OSError`."""
        if isinstance(self.source, CertificateFiles):
            self.source.discard()


def locate(config: Config, environ: Mapping[str, str]) -> Place:
    """Where the identity comes from. Raises `IdentityError`."""
    try:
        token = JoinToken.parse(config.token) if config.token else None
        if token and token.identity.kind is not Kind.SIDECAR:
            raise IdentityError(f"the token is for a {token.identity.kind.value}; make one with --kind sidecar")
        if config.identity:
            files = ExternalFiles(config.identity.key, config.identity.cert, config.identity.bundle)
            return Place(None, None, files, None)
        if config.profile:
            named = Profile.load(config.profile, environ)
            return Place(None, named, named.credential, named.folder)
        state = config.state or _default_state(config, token, environ)
        source = _credential_in(state)
        try:
            profile = Profile.load(_PROFILE, {"ANTIPHON_HOME": str(state)})
        except ProfileError:
            if token is None:
                raise TokenMissing(f"nothing in {state} says who this sidecar is; give a join token: {HOW}") from None
            profile = None
        return Place(token, profile, source, state)
    except CertsError as error:
        raise IdentityError(str(error)) from error


def _default_state(config: Config, token: JoinToken | None, environ: Mapping[str, str]) -> Path:
    """The state of the token's identity. Without a token, of the only one that has joined from here, or else of the
    only one that may stand beside the agents of the configuration."""
    home = environ.get("ANTIPHON_HOME")
    base = (Path(home) if home else Path.home() / ".antiphon") / "sidecars"
    if token:
        return base / token.identity.name
    known = sorted(path.name for path in base.iterdir()) if base.is_dir() else []
    wanted = [agent.name for agent in config.agents] or ([config.agent] if config.agent else [])
    if len(known) > 1 and wanted:
        known = [name for name in known if _allows(base / name, wanted)] or known
    if len(known) == 1:
        return base / known[0]
    if known:
        raise IdentityError(
            f"several sidecars have joined from here: give --state {base}/NAME, one of {', '.join(known)}"
        )
    raise TokenMissing(f"nothing says who this sidecar is; give a join token: {HOW}")


def _allows(state: Path, agents: Sequence[str]) -> bool:
    """Whether the certificate in `state` grants all of these agents; it may have expired."""
    try:
        grants = _credential_in(state).load().grants
    except CredentialError:
        return False
    return all(grants.allows_agent(name) for name in agents)


def _credential_in(state: Path) -> CertificateFiles:
    return CertificateFiles(profile_folder(_PROFILE, {"ANTIPHON_HOME": str(state)}) / "credential")


async def establish(place: Place) -> Credential:
    """The certificate to begin with: kept, recovered when it has expired, or got by joining. Raises `IdentityError`."""
    kept = place.kept()
    credential = None
    if kept is not None and place.same_mesh(kept):
        credential = await _usable(place, kept)
    if credential is None and place.token:
        credential = await _join(place, place.token)
    if credential is None:
        raise IdentityError(f"there is no valid certificate (any more); give a new join token: {HOW}")
    if credential.identity.kind is not Kind.SIDECAR:
        raise IdentityError(f"the certificate is a {credential.identity.kind.value}'s; a sidecar needs its own")
    return credential


async def _usable(place: Place, kept: Credential) -> Credential | None:
    """The certificate that is kept, or the one that its key gets for it. None when it is not given anew.

    Asks until there is an answer: orchestrators may be started later than their sidecars.
    """
    if not _expired(kept):
        return kept
    if not isinstance(place.source, CertificateFiles) or not place.join_addresses:
        return None
    failures = 0
    while True:
        try:
            return await _recover(place.source, place.join_addresses, kept)
        except RenewalError as error:
            if failures == 0:
                log.warning("cannot get a new certificate yet", extra={"cause": str(error)})
        except (IdentityError, Revoked) as error:
            log.warning("the certificate has expired, and is not given anew", extra={"cause": str(error)})
            return None
        failures += 1
        await asyncio.sleep(backoff(failures))


async def _recover(source: CertificateFiles, join_addresses: Sequence[str], expired: Credential) -> Credential:
    """Have an expired certificate given anew, by the proof that its key is here, and keep it.

    Raises `RenewalError` when nobody answers, `Revoked`, `IdentityError` when it is too late.
    """
    key_pem, csr_pem = new_key_and_csr(expired.identity)
    request = identity_service.RecoverRequest(
        chain=expired.chain_pem.decode(), signing_request=csr_pem.decode(), signature=prove(expired, csr_pem)
    )
    problem = "no orchestrator is known"
    for address in join_addresses:
        try:
            async with _join_channel(address, expired.bundle_pem) as channel:
                stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
                answer: identity_service.RecoverResponse = await stub.Recover(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            check_revoked(error)
            if error.code() not in _RETRIED:
                raise IdentityError(error.details() or "the certificate is not given anew") from error
            problem = f"{address}: {reason_of(error) or error.code().name}: {error.details()}"
            continue
        log.info("recovered", extra={"identity": expired.identity.uri, "orchestrator": address})
        return source.store(key_pem, answer.certificate.chain.encode(), answer.certificate.trust_bundle.encode())
    raise RenewalError(problem)


async def _join(place: Place, token: JoinToken) -> Credential:
    """Ask until there is an answer or the token has expired: orchestrators may be started later than their sidecars."""
    key_pem, csr_pem = new_key_and_csr(token.identity)
    request = identity_service.JoinRequest(
        token_id=token.token_id, secret=token.secret.hex(), signing_request=csr_pem.decode()
    )
    failures = 0
    while True:
        address = token.join_addresses[failures % len(token.join_addresses)]
        try:
            token.check_not_expired(datetime.now(UTC))
            async with _join_channel(address, token.root_pem) as channel:
                stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
                answer: identity_service.JoinResponse = await stub.Join(request, timeout=CALL_TIMEOUT)
            grant = answer.certificate
            assert place.state is not None and isinstance(place.source, CertificateFiles)
            credential = place.source.store(key_pem, grant.chain.encode(), grant.trust_bundle.encode())
            Profile(
                profile_folder(_PROFILE, {"ANTIPHON_HOME": str(place.state)}),
                token.addresses,
                token.join_addresses,
                token.identity.trust_domain,
                token.identity.namespace,
                token.token_id,
            ).save()
            log.info("joined", extra={"identity": credential.identity.uri, "orchestrator": address})
            return credential
        except grpc.aio.AioRpcError as error:
            if error.code() not in _RETRIED:
                raise IdentityError(error.details() or f"the join was refused: {error.code().name}") from error
            if failures == 0:
                log.warning("cannot join yet", extra={"orchestrator": address, "cause": error.details()})
        except CertsError as error:
            raise IdentityError(str(error)) from error
        except OSError as error:
            raise IdentityError(f"the certificate cannot be kept in {place.state}: {error.strerror}") from error
        failures += 1
        await asyncio.sleep(backoff(failures))


async def renew(
    source: CertificateFiles,
    addresses: Callable[[], Sequence[str]],
    join_addresses: Sequence[str],
    current: Credential,
) -> None:
    """Have the certificate renewed by the first orchestrator that answers, and keep it; one that has expired meanwhile
    is recovered.

    Raises `RenewalError`, `Revoked`, `IdentityError` when it is too late.
    """
    if _expired(current):
        await _recover(source, join_addresses, current)
        return
    key_pem, csr_pem = new_key_and_csr(current.identity)
    request = identity_service.RenewRequest(signing_request=csr_pem.decode())
    problem = "no orchestrator is known"
    for address in addresses():
        try:
            async with secure_channel(address, current) as channel:
                stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
                answer: identity_service.RenewResponse = await stub.Renew(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            check_revoked(error)
            problem = f"{address}: {reason_of(error) or error.code().name}: {error.details()}"
            continue
        source.store(key_pem, answer.certificate.chain.encode(), answer.certificate.trust_bundle.encode())
        return
    raise RenewalError(problem)


def _join_channel(address: str, roots_pem: bytes) -> grpc.aio.Channel:
    """A channel to the listener that asks for no certificate."""
    options = (("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME),)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots_pem), options)


def _expired(credential: Credential) -> bool:
    return credential.not_after <= datetime.now(UTC)
