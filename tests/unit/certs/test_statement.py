"""Signed statements: who signed is proven by a chain to a root of the reader's; nothing else is believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    Credential,
    Identity,
    Kind,
    StatementError,
    new_key_and_csr,
    sign,
    verify_statement,
)
from antiphon_certs.certificate import key_from_pem, load_chain, subject, to_pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SAID = b"the chain ends at 7"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test", now=NOW)


def credential(authority: Authority, kind: Kind = Kind.ORCHESTRATOR) -> Credential:
    identity = Identity("mesh.test", "system", kind, "one")
    key, request = new_key_and_csr(identity)
    return Credential.from_pem(key, authority.issue(request, identity, now=NOW), authority.bundle_pem)


def test_a_statement_says_who_signed_it_long_after_the_certificate_expired(authority: Authority) -> None:
    own = credential(authority)
    who = verify_statement(SAID, sign(own, SAID), own.chain_pem, authority.bundle_pem, NOW)
    assert who == Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one")


def test_another_statement_or_another_signature_is_refused(authority: Authority) -> None:
    own, other = credential(authority), credential(authority)
    for said, signature in ((b"at 8", sign(own, SAID)), (SAID, sign(other, SAID)), (SAID, b""), (SAID, b"x" * 70)):
        with pytest.raises(StatementError):
            verify_statement(said, signature, own.chain_pem, authority.bundle_pem, NOW)


@pytest.mark.parametrize("late", [timedelta(hours=2), timedelta(hours=-1)])
def test_the_certificate_must_have_been_valid_then(authority: Authority, late: timedelta) -> None:
    own = credential(authority)
    with pytest.raises(StatementError, match="not valid at that time"):
        verify_statement(SAID, sign(own, SAID), own.chain_pem, authority.bundle_pem, NOW + late)


def test_another_authority_of_the_same_name_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    own = credential(Authority.init(tmp_path / "ca", "mesh.test", now=NOW))
    with pytest.raises(StatementError, match="not of the authority"):
        verify_statement(SAID, sign(own, SAID), own.chain_pem, authority.bundle_pem, NOW)


def test_whoever_has_a_leaf_cannot_issue_another_with_it(authority: Authority) -> None:
    thief = credential(authority, Kind.CLIENT)
    leaf = load_chain(thief.chain_pem)[0]
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(subject("one"))
        .issuer_name(leaf.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("spiffe://mesh.test/ns/system/orchestrator/one")]
            ),
            critical=False,
        )
        .sign(key_from_pem(thief.key_pem), hashes.SHA256())
    )
    signature = key.sign(SAID, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(StatementError, match="not a chain"):
        verify_statement(SAID, signature, to_pem(forged) + thief.chain_pem, authority.bundle_pem, NOW)


def test_a_chain_is_looked_at_from_the_root_down(authority: Authority, tmp_path: Path) -> None:
    """Or a stranger could have keys of their choice worked with."""
    strange = credential(Authority.init(tmp_path / "ca", "mesh.test", now=NOW))
    no_chain = strange.chain_pem + strange.chain_pem
    with pytest.raises(StatementError, match="not of the authority"):
        verify_statement(SAID, sign(strange, SAID), no_chain, authority.bundle_pem, NOW)
    own = credential(authority)
    with pytest.raises(StatementError, match="not a chain"):
        verify_statement(SAID, sign(own, SAID), own.chain_pem + own.chain_pem, authority.bundle_pem, NOW)


@pytest.mark.parametrize("chain", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(authority: Authority, chain: bytes) -> None:
    with pytest.raises(StatementError, match="cannot be read"):
        verify_statement(SAID, b"", chain, authority.bundle_pem, NOW)


def test_an_authority_itself_makes_no_statements(authority: Authority) -> None:
    own = credential(authority)
    intermediate = to_pem(load_chain(own.chain_pem)[1])
    with pytest.raises(StatementError, match="signs certificates alone"):
        verify_statement(SAID, sign(own, SAID), intermediate, authority.bundle_pem, NOW)
