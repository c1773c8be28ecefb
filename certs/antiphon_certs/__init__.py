"""Identity: SPIFFE names, the certificate authority, join tokens, credentials on disk and their rotation.

A library of plain functions and small values over `cryptography`. It opens no socket and knows no gRPC; the
orchestrator's IdentityService, the sidecar and the command are built on it. What is imported here is the API; the
modules are private.
"""

from .authority import LEAF_LIFETIME, Authority
from .certificate import fingerprint, root_fingerprints
from .credentials import CertificateFiles, Credential, ExternalFiles, Source, new_key_and_csr
from .errors import (
    AuthorityError,
    CertsError,
    CredentialError,
    CredentialReason,
    InvalidGrants,
    InvalidName,
    InvalidRequest,
    PeerError,
    PeerReason,
    ProfileError,
    RecoveryError,
    RenewalError,
    RotationError,
    StatementError,
    TokenError,
    TokenReason,
)
from .files import make_private_folder, replace_private
from .grants import Grants, grants_of
from .names import ORCHESTRATOR_DNS_NAME, Identity, Kind, dns_name, parse_kind
from .peer import Peer, PeerVerifier
from .profile import Profile, profile_folder
from .recovery import LONGEST_RECOVERY, prove, verify_recovery
from .rotation import Clock, Renew, SystemClock, is_due, renew_at
from .rotation import run as run_rotation
from .statement import sign, verify_statement
from .succession import Step, Succession, finish_root, prepare_root, succession_of, switch_root
from .tokens import JoinToken, TokenRecord, mint, verify

__all__ = [
    "LEAF_LIFETIME",
    "LONGEST_RECOVERY",
    "ORCHESTRATOR_DNS_NAME",
    "Authority",
    "AuthorityError",
    "CertificateFiles",
    "CertsError",
    "Clock",
    "Credential",
    "CredentialError",
    "CredentialReason",
    "ExternalFiles",
    "Grants",
    "Identity",
    "InvalidGrants",
    "InvalidName",
    "InvalidRequest",
    "JoinToken",
    "Kind",
    "Peer",
    "PeerError",
    "PeerReason",
    "PeerVerifier",
    "Profile",
    "ProfileError",
    "RecoveryError",
    "Renew",
    "RenewalError",
    "RotationError",
    "Source",
    "StatementError",
    "Step",
    "Succession",
    "SystemClock",
    "TokenError",
    "TokenReason",
    "TokenRecord",
    "dns_name",
    "fingerprint",
    "finish_root",
    "grants_of",
    "is_due",
    "make_private_folder",
    "mint",
    "new_key_and_csr",
    "parse_kind",
    "prepare_root",
    "profile_folder",
    "prove",
    "renew_at",
    "replace_private",
    "root_fingerprints",
    "run_rotation",
    "sign",
    "succession_of",
    "switch_root",
    "verify",
    "verify_recovery",
    "verify_statement",
]
