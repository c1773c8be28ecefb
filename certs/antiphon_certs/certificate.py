"""Reading and making the parts of X.509 that authority, tokens, credentials and peers share.

Keys are P-256 everywhere: stock gRPC refuses Ed25519 leaves. PEM inputs are bounded before they are parsed, because
some come from strangers. Functions raise `ValueError` (or a subclass) for anything unreadable; callers turn it into
their own error.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from .errors import InvalidName
from .names import Identity, check_trust_domain

PEM_LENGTH = 64 * 1024
SKEW = timedelta(minutes=1)
"""How far behind the reader's clock may be: what the authority signs is valid since so long before it signed."""
_SCHEME = "spiffe://"


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Unencrypted PKCS #8: a service restarts unattended, so its key is protected by file mode, not by a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Inverse of `key_to_pem`. Raises `ValueError` for anything but an unencrypted P-256 key."""
    try:
        key = load_pem_private_key(_bounded(pem), password=None)
    except TypeError:
        raise ValueError("the private key is encrypted; a service needs it without a passphrase") from None
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise ValueError("the private key is not a P-256 key")
    return key


def is_p256(key: object) -> bool:
    """Whether a public key is on the one curve we use."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def belongs_to(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether a certificate was issued for this private key."""
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):  # a kind of key we do not know is not ours
        return False


def to_pem(certificate: x509.Certificate) -> bytes:
    """One certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def load_chain(pem: bytes) -> list[x509.Certificate]:
    """Every certificate of a PEM text, leaf first; at least one. Raises `ValueError`."""
    return x509.load_pem_x509_certificates(_bounded(pem))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, 64 lowercase hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def root_fingerprints(bundle_pem: bytes) -> frozenset[str]:
    """The fingerprints of the roots in a trust bundle. Raises `ValueError`."""
    return frozenset(map(fingerprint, load_chain(bundle_pem)))


def issue_time_of(certificate: x509.Certificate) -> datetime:
    """When our authority signed it, to the second. One of another authority seems to be a little younger than it is."""
    return certificate.not_valid_before_utc + SKEW


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity a leaf names: its only URI name, a SPIFFE id of our form. Raises `InvalidName`."""
    uris = _uris(certificate)
    if len(uris) != 1:
        raise InvalidName(f"a certificate of ours names exactly one URI; this one names {len(uris)}")
    return Identity.parse(uris[0])


def trust_domain_of(authority: x509.Certificate) -> str:
    """What a CA speaks for: its only URI name, `spiffe://<trust domain>`. Raises `InvalidName`."""
    uris = _uris(authority)
    if len(uris) != 1 or not uris[0].startswith(_SCHEME):
        raise InvalidName("this authority's certificate does not name exactly one SPIFFE trust domain")
    trust_domain = uris[0].removeprefix(_SCHEME)
    check_trust_domain(trust_domain)
    return trust_domain


def trust_domain_uri(trust_domain: str) -> x509.UniformResourceIdentifier:
    """The URI name of a CA certificate, as the SPIFFE X.509 profile has it: a trust domain and no path."""
    return x509.UniformResourceIdentifier(f"{_SCHEME}{trust_domain}")


def subject(common_name: str) -> x509.Name:
    """A readable subject. Nothing trusts it: identity is the URI name alone."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Antiphon"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise InvalidName(f"the certificate's names cannot be read: {error}") from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _bounded(pem: bytes) -> bytes:
    if len(pem) > PEM_LENGTH:
        raise ValueError(f"PEM text of {len(pem)} bytes exceeds {PEM_LENGTH}")
    return pem
