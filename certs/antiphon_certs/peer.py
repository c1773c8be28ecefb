"""Who is calling: from the certificate of a connection to a typed identity, on every call.

TLS has checked the chain, but only when the connection was made; a connection outlives its certificate. So the expiry
is compared on every call, while the parsing, which costs some 50 times more, is remembered by the certificate's bytes
in a bounded cache. Revocation is the caller's: it has the identity, the
serial number and the time of issue.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from .certificate import identity_of, issue_time_of, load_chain
from .errors import PeerError, PeerReason
from .grants import Grants, grants_of
from .names import Identity


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller whose certificate is in order."""

    identity: Identity
    grants: Grants
    not_after: datetime
    serial: int
    issue_time: datetime


class PeerVerifier:
    """Verifies the callers of one trust domain; one per server. `capacity` bounds what it remembers."""

    def __init__(self, trust_domain: str, capacity: int = 1024) -> None:
        self._trust_domain = trust_domain
        self._parsed = lru_cache(capacity)(self._parse)

    def verify(self, certificate: bytes | None, now: datetime) -> Peer:
        """The caller with this certificate: PEM (the leaf first; `x509_pem_cert` of gRPC's auth context) or DER.

        Raises `PeerError`. Safe to call from several threads.
        """
        if not certificate:
            raise PeerError(
                PeerReason.NO_CERTIFICATE, "the call came without a certificate; join first: antiphon certs join TOKEN"
            )
        peer = self._parsed(certificate)
        if now >= peer.not_after:
            raise PeerError(
                PeerReason.EXPIRED,
                f"the certificate of {peer.identity} expired at {peer.not_after:%Y-%m-%d %H:%M:%S} UTC",
                peer.not_after,
            )
        return peer

    def _parse(self, certificate: bytes) -> Peer:
        try:
            leaf = (
                load_chain(certificate)[0]
                if certificate.startswith(b"-----BEGIN")
                else x509.load_der_x509_certificate(certificate)
            )
        except ValueError as error:
            raise PeerError(PeerReason.NO_CERTIFICATE, f"the caller's certificate cannot be read: {error}") from error
        try:
            peer = Peer(
                identity_of(leaf), grants_of(leaf), leaf.not_valid_after_utc, leaf.serial_number, issue_time_of(leaf)
            )
        except ValueError as error:
            raise PeerError(PeerReason.NOT_SPIFFE, f"the caller's certificate is not one of ours: {error}") from error
        if peer.identity.trust_domain != self._trust_domain:
            raise PeerError(
                PeerReason.FOREIGN_DOMAIN,
                f"the caller is of trust domain {peer.identity.trust_domain}, this server of {self._trust_domain}",
            )
        return peer
