"""Who holds the key of an expired certificate gets another; nobody else does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    Credential,
    Grants,
    Identity,
    Kind,
    RecoveryError,
    new_key_and_csr,
    prove,
    verify_recovery,
)

Issue = Callable[..., Credential]
WEEK = timedelta(days=7)
GRANTS = Grants(("a",), ("text.*",))


@pytest.fixture
def old(authority: Authority, sidecar: Identity, credential_for: Issue) -> Credential:
    """A certificate of an hour, from `now` on."""
    return credential_for(authority, sidecar, GRANTS)


def test_the_key_of_an_expired_certificate_brings_it_back_as_it_was(
    authority: Authority, sidecar: Identity, old: Credential, now: datetime
) -> None:
    request = new_key_and_csr(sidecar)[1]
    later = now + timedelta(days=3)
    peer = verify_recovery(old.chain_pem, request, prove(old, request), authority.bundle_pem, later, WEEK)
    assert (peer.identity, peer.grants, f"{peer.serial:x}") == (sidecar, GRANTS, old.serial)
    assert peer.issue_time == now


def test_a_proof_is_for_one_request_and_by_one_key(
    authority: Authority, sidecar: Identity, old: Credential, now: datetime, credential_for: Issue
) -> None:
    request, other = new_key_and_csr(sidecar)[1], new_key_and_csr(sidecar)[1]
    thief = credential_for(authority, sidecar, GRANTS)
    for signature in (prove(old, other), prove(thief, request), b"nonsense"):
        with pytest.raises(RecoveryError, match="signature"):
            verify_recovery(old.chain_pem, request, signature, authority.bundle_pem, now, WEEK)


def test_it_is_given_anew_for_as_long_as_was_said(
    authority: Authority, sidecar: Identity, old: Credential, now: datetime
) -> None:
    request = new_key_and_csr(sidecar)[1]
    proof = prove(old, request)
    last = old.not_after + WEEK
    assert verify_recovery(old.chain_pem, request, proof, authority.bundle_pem, last, WEEK).identity == sidecar
    with pytest.raises(RecoveryError, match="too long ago"):
        verify_recovery(old.chain_pem, request, proof, authority.bundle_pem, last + timedelta(seconds=1), WEEK)
    with pytest.raises(RecoveryError, match="too long ago"):
        verify_recovery(old.chain_pem, request, proof, authority.bundle_pem, last, timedelta(0))


def test_that_of_another_authority_or_kind_or_no_certificate_is_refused(
    authority: Authority, sidecar: Identity, old: Credential, now: datetime, credential_for: Issue, folder: Path
) -> None:
    foreign = credential_for(Authority.init(folder, "mesh.test", now=now), sidecar, GRANTS)
    person = credential_for(authority, Identity("mesh.test", "team-a", Kind.OPERATOR, "olga"))
    request = new_key_and_csr(sidecar)[1]
    for credential, cause in ((foreign, "authority"), (person, "operator")):
        with pytest.raises(RecoveryError, match=cause):
            verify_recovery(credential.chain_pem, request, prove(credential, request), authority.bundle_pem, now, WEEK)
    for chain in (b"", b"nonsense", old.key_pem):
        with pytest.raises(RecoveryError, match="read"):
            verify_recovery(chain, request, prove(old, request), authority.bundle_pem, now, WEEK)
    with pytest.raises(RecoveryError, match="more than 3"):
        verify_recovery(old.chain_pem * 2, request, prove(old, request), authority.bundle_pem, now, WEEK)


def test_one_of_an_intermediate_that_was_renewed_since_is_given_anew(
    folder: Path, sidecar: Identity, now: datetime, credential_for: Issue
) -> None:
    old = credential_for(Authority.init(folder, "mesh.test", now=now), sidecar, GRANTS)
    later = now + timedelta(days=6)
    renewed = Authority.renew_intermediate(folder, now=later)
    request = new_key_and_csr(sidecar)[1]
    assert verify_recovery(old.chain_pem, request, prove(old, request), renewed.bundle_pem, later, WEEK)
