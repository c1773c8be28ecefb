"""A new certificate for whoever still holds the key of one that has expired: the proof, and its verification.

The proof is a signature of the new signing request by the old key. It names nobody to trust and holds no time: who
catches it can have a certificate made for a key that he does not hold. Whether the old certificate was revoked is the
caller's question; the answer to it needs a store.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from .certificate import load_chain
from .credentials import Credential
from .errors import PeerError, RecoveryError, StatementError
from .names import Kind
from .peer import Peer, PeerVerifier
from .statement import sign, verify_statement

LONGEST_RECOVERY = timedelta(days=30)
"""No window is longer, so that whoever keeps revocations knows for how long they can matter."""

_LONGEST_CHAIN = 3
"""Certificates of who asks, who may be anybody: ours have two, and some send the root along."""

_PREFIX = b"antiphon recover 1\n"


def prove(credential: Credential, csr_pem: bytes) -> bytes:
    """The signature, DER, that goes with `credential.chain_pem` and the signing request of a new key."""
    return sign(credential, _PREFIX + csr_pem)


def verify_recovery(
    chain_pem: bytes, csr_pem: bytes, signature: bytes, bundle_pem: bytes, now: datetime, window: timedelta
) -> Peer:
    """Who is given a new certificate, by the old one, if its key has signed `csr_pem` and it expired within `window`.

    Sidecars alone: a person can be asked for a new token. Raises `RecoveryError`.
    """
    try:
        leaf, *rest = load_chain(chain_pem)
        if len(rest) >= _LONGEST_CHAIN:
            raise RecoveryError(f"its chain has more than {_LONGEST_CHAIN} certificates")
        # Of the moment of which it last held: an intermediate may have been replaced since.
        identity = verify_statement(_PREFIX + csr_pem, signature, chain_pem, bundle_pem, leaf.not_valid_after_utc)
        peer = PeerVerifier(identity.trust_domain, capacity=1).verify(chain_pem, leaf.not_valid_before_utc)
    except (StatementError, PeerError) as error:
        raise RecoveryError(str(error)) from error
    except ValueError as error:
        raise RecoveryError(f"it cannot be read: {error}") from error
    if peer.identity.kind is not Kind.SIDECAR:
        raise RecoveryError(f"it is that of a {peer.identity.kind.value}, and sidecars' alone are")
    if now - peer.not_after > window:
        raise RecoveryError(f"it expired at {peer.not_after:%Y-%m-%d %H:%M:%S} UTC, which is too long ago")
    return peer
