"""One's own credential: a private key, its certificate chain and the trust bundle, as one consistent value.

Two sources on disk: `CertificateFiles`, a folder we write ourselves, and `ExternalFiles`, three paths that something
else rewrites when it pleases. Both answer `load()`, and both may be read while they are being written.

Invariant: a `Credential` that exists has a key that belongs to its certificate, and everything a TLS stack needs.
Whether it is still in date is the caller's question (`not_after`), because only the caller has a clock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from .certificate import belongs_to, fingerprint, identity_of, key_from_pem, key_to_pem, load_chain, new_key, subject
from .errors import CredentialError, CredentialReason
from .files import create_private, make_private_folder, taking_turns
from .grants import Grants, grants_of
from .names import Identity

_CURRENT = "current"
_GENERATION = "generation-"
_FILES = ("key.pem", "cert.pem", "bundle.pem")


@dataclass(frozen=True, slots=True)
class Credential:
    """Key, chain and bundle, and what the certificate says. Equal when the bytes are equal."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    """Leaf first, then intermediates."""
    bundle_pem: bytes = field(repr=False)
    """The roots to trust in others."""
    identity: Identity
    grants: Grants
    not_before: datetime
    not_after: datetime
    fingerprint: str
    """SHA-256 of the leaf's DER form, hexadecimal."""
    serial: str
    """Serial number of the leaf, hexadecimal, by which it can be revoked."""

    @classmethod
    def from_pem(cls, key_pem: bytes, chain_pem: bytes, bundle_pem: bytes) -> Credential:
        """Raises `CredentialError`: INCONSISTENT when the key is not the certificate's, MALFORMED for all else."""
        try:
            key = key_from_pem(key_pem)
            leaf = load_chain(chain_pem)[0]
            load_chain(bundle_pem)
            if not belongs_to(leaf, key):
                raise CredentialError(
                    CredentialReason.INCONSISTENT, "the private key does not belong to the certificate"
                )
            return cls(
                key_pem,
                chain_pem,
                bundle_pem,
                identity_of(leaf),
                grants_of(leaf),
                leaf.not_valid_before_utc,
                leaf.not_valid_after_utc,
                fingerprint(leaf),
                f"{leaf.serial_number:x}",
            )
        except ValueError as error:
            raise CredentialError(CredentialReason.MALFORMED, f"this is not a credential of ours: {error}") from error


def new_key_and_csr(identity: Identity) -> tuple[bytes, bytes]:
    """A fresh P-256 key and a request to sign it, both PEM. The names in the request are for readers only."""
    key = new_key()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(identity.name))
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return key_to_pem(key), request.public_bytes(Encoding.PEM)


class Source(Protocol):
    """Where a credential comes from."""

    def load(self) -> Credential:
        """What is there now. Raises `CredentialError`."""
        ...


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A credential folder of ours: `current` is a symbolic link to a generation, a folder that never changes.

    A reader resolves the link once and reads that generation, so it never pairs a key with another generation's
    certificate. The generation before the current one is kept for readers that are half-way through it. Writers take
    turns, since two commands may renew one profile.
    """

    folder: Path

    def store(self, key_pem: bytes, chain_pem: bytes, bundle_pem: bytes) -> Credential:
        """Make a new generation current at once. Raises `CredentialError` or `OSError`; then nothing changed."""
        credential = Credential.from_pem(key_pem, chain_pem, bundle_pem)
        make_private_folder(self.folder)
        with taking_turns(self.folder):
            previous = self._current()
            generation = Path(tempfile.mkdtemp(prefix=_GENERATION, dir=self.folder))  # made with mode 0700
            for name, data in zip(_FILES, (key_pem, chain_pem, bundle_pem), strict=True):
                create_private(generation / name, data)
            (generation / _CURRENT).symlink_to(generation.name)
            os.replace(generation / _CURRENT, self.folder / _CURRENT)
            for other in self.folder.glob(f"{_GENERATION}*"):
                if other not in (generation, previous):
                    shutil.rmtree(other, ignore_errors=True)  # the next store tries again
        return credential

    def load(self) -> Credential:
        """The current generation. Raises `CredentialError`."""
        for _ in range(10):  # two swaps later a generation is dropped, perhaps under a slow reader
            generation = self._current()
            if generation is None:
                break
            try:
                return Credential.from_pem(*((generation / name).read_bytes() for name in _FILES))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(error) from error
        raise CredentialError(CredentialReason.MISSING, f"there is no complete credential in {self.folder}")

    def discard(self) -> None:
        """Make no generation current, for one that is of no use any more. Raises `OSError`."""
        with taking_turns(self.folder):
            (self.folder / _CURRENT).unlink(missing_ok=True)

    def _current(self) -> Path | None:
        try:
            return self.folder / os.readlink(self.folder / _CURRENT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(error) from error


@dataclass(frozen=True, slots=True)
class ExternalFiles:
    """Three files that another program maintains (cert-manager, spiffe-helper, a mounted secret).

    They may change one after the other: while key and certificate differ, `load` raises INCONSISTENT, and whoever
    holds the previous credential keeps it. The certificate must hold one SPIFFE id of our form.
    """

    key: Path
    cert: Path
    bundle: Path

    def load(self) -> Credential:
        """What the files hold now. Raises `CredentialError`."""
        try:
            return Credential.from_pem(self.key.read_bytes(), self.cert.read_bytes(), self.bundle.read_bytes())
        except FileNotFoundError as error:
            raise CredentialError(CredentialReason.MISSING, f"{error.filename} does not exist") from error
        except OSError as error:
            raise _unreadable(error) from error


def _unreadable(error: OSError) -> CredentialError:
    return CredentialError(CredentialReason.MALFORMED, f"{error.filename} cannot be read: {error.strerror}")
