"""Everything this package can refuse, as one tree.

    CertsError                    a message fit for a person, with its remedy where there is one
    ├── InvalidName               not a SPIFFE id or name of ours           (the caller's text is wrong)
    ├── InvalidGrants             not a pattern of ours, or too many        (the caller's text is wrong)
    ├── AuthorityError            the CA folder cannot be made or used      (the operator's folder is wrong)
    ├── InvalidRequest            a signing request that is not acceptable  (the requester's CSR is wrong)
    ├── TokenError     .reason    a join token that is not acceptable
    ├── CredentialError .reason   key, chain and bundle on disk are not usable, now or ever
    ├── RenewalError              a renewal did not succeed this time; the rotation loop tries again
    ├── ProfileError              a command cannot find out who it is
    ├── StatementError            a signed statement that does not hold
    ├── RecoveryError             an expired certificate that is not given anew for its key
    ├── RotationError             the authority cannot take this step of its rotation now
    └── PeerError      .reason    a caller whose certificate is not acceptable

No message ever holds a secret, a private key or the text of a token.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum


class CertsError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidName(CertsError, ValueError):
    """A name, trust domain, address or SPIFFE id outside the grammar."""


class InvalidGrants(CertsError, ValueError):
    """A grant pattern outside the grammar, or grants too large to travel in a certificate."""


class AuthorityError(CertsError):
    """The certificate authority's folder cannot be created or loaded."""


class InvalidRequest(CertsError, ValueError):
    """A certificate signing request (CSR) that the authority refuses, or a lifetime it cannot give."""


class TokenReason(StrEnum):
    """Why a join token was refused."""

    MALFORMED = "MALFORMED"  # not a token, or damaged on the way
    EXPIRED = "EXPIRED"
    CONSUMED = "CONSUMED"  # it has been used, for another signing request; tokens work once
    UNKNOWN = "UNKNOWN"  # this server never issued it, or forgot it
    MISMATCH = "MISMATCH"  # the id is known, the secret is not the one issued with it


class TokenError(CertsError):
    """A join token that is not acceptable."""

    def __init__(self, reason: TokenReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CredentialReason(StrEnum):
    """Why a credential on disk was refused."""

    MISSING = "MISSING"  # there is none (yet)
    MALFORMED = "MALFORMED"  # not PEM, not P-256, or not a certificate of ours
    INCONSISTENT = "INCONSISTENT"  # key and certificate differ: probably between two writes, read again later


class CredentialError(CertsError):
    """Key, chain and bundle could not be loaded as one credential."""

    def __init__(self, reason: CredentialReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RenewalError(CertsError):
    """A renewal failed for a cause outside the program: unreachable, refused, deadline passed."""


class ProfileError(CertsError):
    """The profile is missing or unreadable; the message says what to run."""


class StatementError(CertsError):
    """A statement is not signed by whom it says, or not by anybody of the trust domain."""


class RecoveryError(CertsError):
    """An expired certificate is not given anew; the message completes "the certificate is not given anew: …"."""


class RotationError(CertsError):
    """A step of replacing the authority's root that would be too early, or makes no sense; the message says why."""


class PeerReason(StrEnum):
    """Why a peer's certificate was refused."""

    NO_CERTIFICATE = "NO_CERTIFICATE"  # absent or not parseable
    EXPIRED = "EXPIRED"
    NOT_SPIFFE = "NOT_SPIFFE"  # not exactly one SPIFFE id of our form
    FOREIGN_DOMAIN = "FOREIGN_DOMAIN"  # a SPIFFE id of another trust domain


class PeerError(CertsError):
    """A peer's certificate is not acceptable; `expire_time` is set when that is why."""

    def __init__(self, reason: PeerReason, message: str, expire_time: datetime | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.expire_time = expire_time
