"""The certificate authority: an offline root (10 years) and the online intermediate (1 year) that signs leaves.

One folder holds it: `root.key root.pem intermediate.key intermediate.pem bundle.pem`. Only the last three are read
after `init`, so the root key can and should be taken elsewhere (`renew_intermediate` needs it back for a moment).
How a root is replaced by another is in `succession.py`.
Both CA certificates name the trust domain as a URI.

Invariants: names in a signing request are ignored, only its key and its proof of possession count; who a leaf is and
what it may claim are the caller's decision alone; no leaf outlives the intermediate; only an orchestrator's leaf can
serve TLS. It must never write a key that others can read, or overwrite an authority.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from .certificate import (
    PEM_LENGTH,
    SKEW,
    belongs_to,
    fingerprint,
    is_p256,
    key_from_pem,
    key_to_pem,
    load_chain,
    new_key,
    subject,
    to_pem,
    trust_domain_of,
    trust_domain_uri,
)
from .errors import AuthorityError, InvalidRequest
from .files import create_private, make_private_folder, replace_private
from .grants import Grants
from .names import ORCHESTRATOR_DNS_NAME, Identity, Kind, check_trust_domain, dns_name, is_dns_name

LEAF_LIFETIME = timedelta(hours=1)
ROOT_LIFETIME = timedelta(days=3653)
INTERMEDIATE_LIFETIME = timedelta(days=366)
_FILES = ("root.key", "root.pem", "intermediate.key", "intermediate.pem", "bundle.pem")


class Authority:
    """An intermediate that can sign. Make one with `init` or `load`; safe to share between threads."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, root: x509.Certificate, bundle_pem: bytes
    ) -> None:
        self._key = key
        self._certificate = certificate
        self._root = root
        self.trust_domain = trust_domain_of(certificate)
        self.bundle_pem = bundle_pem
        """What everyone in the trust domain trusts: the root certificate(s), PEM."""

    @classmethod
    def init(cls, folder: Path, trust_domain: str, *, now: datetime | None = None) -> Authority:
        """Make a new authority in `folder`, which is created or empty, and gets mode 0700; any other is refused.

        Raises `AuthorityError`, or `InvalidName` for the trust domain.
        """
        check_trust_domain(trust_domain)
        start = (now or datetime.now(UTC)) - SKEW
        root_key, key = new_key(), new_key()
        root = ca_certificate(trust_domain, "root", root_key, None, root_key, start, ROOT_LIFETIME)
        intermediate = ca_certificate(trust_domain, "intermediate", key, root, root_key, start, INTERMEDIATE_LIFETIME)
        content = (key_to_pem(root_key), to_pem(root), key_to_pem(key), to_pem(intermediate), to_pem(root))
        try:
            make_private_folder(folder)
            present = sorted(path.name for path in folder.iterdir())
            if present:
                raise AuthorityError(f"{folder} already holds {', '.join(present[:6])}; choose an empty folder")
            folder.chmod(0o700)
            for name, data in zip(_FILES, content, strict=True):
                create_private(folder / name, data)  # the first, exclusive, decides between two inits at once
        except OSError as error:
            raise AuthorityError(f"cannot make an authority in {folder}: {error.strerror}") from error
        return cls(key, intermediate, root, to_pem(root))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Load `intermediate.key`, `intermediate.pem` and `bundle.pem` from `folder`. Raises `AuthorityError`."""
        try:
            bundle_pem = (folder / "bundle.pem").read_bytes()
            key = key_from_pem((folder / "intermediate.key").read_bytes())
            certificate = load_chain((folder / "intermediate.pem").read_bytes())[0]
            roots = [root for root in load_chain(bundle_pem) if _signed_by(certificate, root)]
            if not roots:
                raise AuthorityError(
                    f"no root in {folder / 'bundle.pem'} signed intermediate.pem; restore them together"
                )
            if not belongs_to(certificate, key):
                raise AuthorityError(
                    f"intermediate.key in {folder} does not belong to intermediate.pem; restore them together"
                )
            return cls(key, certificate, roots[0], bundle_pem)
        except FileNotFoundError as error:
            raise AuthorityError(f"{error.filename} is missing; make an authority with: antiphon certs init") from error
        except OSError as error:
            raise AuthorityError(f"cannot read the authority in {folder}: {error.strerror}") from error
        except ValueError as error:
            raise AuthorityError(f"the authority in {folder} is damaged: {error}") from error

    @classmethod
    def renew_intermediate(cls, folder: Path, *, now: datetime | None = None) -> Authority:
        """Replace the intermediate by a new one; needs `root.key` and `root.pem` back in `folder` meanwhile.

        Certificates of the old intermediate stay valid, and so does the bundle. Interrupted, run it again: `load`
        refuses half of it. Raises `AuthorityError`.
        """
        try:
            root_key = key_from_pem((folder / "root.key").read_bytes())
            root = load_chain((folder / "root.pem").read_bytes())[0]
            key, start = new_key(), (now or datetime.now(UTC)) - SKEW
            lifetime = min(INTERMEDIATE_LIFETIME, root.not_valid_after_utc - start)
            certificate = ca_certificate(trust_domain_of(root), "intermediate", key, root, root_key, start, lifetime)
            replace_private(folder / "intermediate.key", key_to_pem(key))
            replace_private(folder / "intermediate.pem", to_pem(certificate))
        except OSError as error:
            raise AuthorityError(
                f"cannot renew the intermediate in {folder}: {error.strerror}: {error.filename}"
            ) from error
        except ValueError as error:
            raise AuthorityError(f"the root in {folder} cannot sign: {error}") from error
        return cls.load(folder)

    @property
    def root_pem(self) -> bytes:
        """The root certificate above this intermediate, PEM; what a join token carries."""
        return to_pem(self._root)

    @property
    def root_fingerprint(self) -> str:
        """SHA-256 of the root certificate's DER form, hexadecimal; what two people compare aloud."""
        return fingerprint(self._root)

    @property
    def not_after(self) -> datetime:
        """When the intermediate expires and nothing can be issued any more."""
        return self._certificate.not_valid_after_utc

    def issue(
        self,
        csr_pem: bytes,
        identity: Identity,
        ttl: timedelta = LEAF_LIFETIME,
        grants: Grants | None = None,
        *,
        hosts: Sequence[str] = (),
        now: datetime | None = None,
    ) -> bytes:
        """Sign the key of `csr_pem` as `identity`; returns the chain as PEM, leaf then intermediate.

        The leaf is valid from one minute ago for `ttl`, at most until the intermediate expires. `hosts` are further
        DNS names or IP addresses that an orchestrator is dialled by (localhost and the loopback addresses are always
        there); other kinds have none. A renewal passes the grants of the certificate being renewed. Raises
        `InvalidRequest`.
        """
        moment = now or datetime.now(UTC)
        public_key = _proven_key(csr_pem)
        if identity.trust_domain != self.trust_domain:
            raise InvalidRequest(f"this authority issues for {self.trust_domain}, not for {identity.trust_domain}")
        if ttl <= timedelta(0):
            raise InvalidRequest(f"a certificate's lifetime must be positive, not {ttl}")
        if moment >= self.not_after:
            raise InvalidRequest(
                f"the intermediate certificate expired on {self.not_after:%Y-%m-%d}; renew it with the root key"
            )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.kind is Kind.ORCHESTRATOR:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject(identity.name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - SKEW)
            .not_valid_after(min(moment + ttl, self.not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(_names(identity, hosts)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_issuer_key_identifier(self._certificate), critical=False)
        )
        if grants is not None and grants != Grants():
            builder = builder.add_extension(grants.extension(), critical=False)
        return to_pem(builder.sign(self._key, hashes.SHA256())) + to_pem(self._certificate)


def _proven_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key a request proves to hold."""
    if len(csr_pem) > PEM_LENGTH:
        raise InvalidRequest(f"the signing request exceeds {PEM_LENGTH} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequest(f"the signing request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise InvalidRequest("the signing request must be for a P-256 key")
    if not proven:
        raise InvalidRequest("the signing request is not signed by the key it names")
    return key


def _names(identity: Identity, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(dns_name(identity))]
    if identity.kind is not Kind.ORCHESTRATOR:
        if hosts:
            raise InvalidRequest(f"only an orchestrator's certificate names hosts, not a {identity.kind}'s")
        return names
    names.append(x509.DNSName(ORCHESTRATOR_DNS_NAME))
    for host in dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not is_dns_name(host):
                raise InvalidRequest(f"{host[:80]!r} is neither an IP address nor a lowercase DNS name") from None
            names.append(x509.DNSName(host))
    return names


def ca_certificate(
    trust_domain: str,
    role: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    start: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A root, or with `issuer` an intermediate that can sign leaves only. `role` is for readers, and tells two roots of
    one trust domain apart."""
    name = subject(f"Antiphon {role}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if issuer else 1), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([trust_domain_uri(trust_domain)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        builder = builder.add_extension(_issuer_key_identifier(issuer), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """By the name that the issuer's certificate has for its key; one that others made may have none."""
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public_key = issuer.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)  # `load` has compared it with our own key
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
