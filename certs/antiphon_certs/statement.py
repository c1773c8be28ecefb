"""Statements that anybody in the trust domain can check later: bytes, a signature, and the chain of who signed.

ECDSA over P-256 with SHA-256, by the key of a leaf. What is checked is the chain to a root of the reader's own bundle,
and that every certificate was valid at the moment of which the statement speaks; the leaf has expired long since, as
a rule. Whether that identity may say such a thing is the reader's question.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from .certificate import identity_of, is_p256, key_from_pem, load_chain
from .credentials import Credential
from .errors import StatementError
from .names import Identity


def sign(credential: Credential, statement: bytes) -> bytes:
    """The signature, DER. It goes with `credential.chain_pem`."""
    return key_from_pem(credential.key_pem).sign(statement, ec.ECDSA(hashes.SHA256()))


def verify_statement(
    statement: bytes, signature: bytes, chain_pem: bytes, bundle_pem: bytes, moment: datetime
) -> Identity:
    """Who signed it, according to the roots in `bundle_pem`. Raises `StatementError`."""
    try:
        chain, roots = load_chain(chain_pem), load_chain(bundle_pem)
        leaf = chain[0]
        for certificate in chain:
            if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
                raise StatementError("a certificate of who signed it was not valid at that time")
        # From the root down, so that no key is used that nobody vouches for: a stranger could choose one that is dear.
        if not any(_issued(chain[-1], root) for root in roots):
            raise StatementError("who signed it is not of the authority that this bundle trusts")
        for issuer, certificate in pairwise(reversed(chain)):
            _check_issuer(certificate, issuer)
        if _is_authority(leaf):
            raise StatementError("it is signed by an authority, which signs certificates alone")
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
            raise StatementError("the key of who signed it is not on P-256")
        key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        return identity_of(leaf)
    except InvalidSignature:
        raise StatementError("the signature is not of this statement") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise StatementError(f"the certificates of who signed it cannot be read: {error}") from error


def _check_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    # Without the first check whoever has a leaf could issue further ones with it.
    if not _is_authority(issuer) or not _issued(certificate, issuer):
        raise StatementError("the certificates of who signed it are not a chain")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
