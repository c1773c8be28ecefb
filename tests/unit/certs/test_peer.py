"""Peers: every call's certificate is in date and names exactly one member of our trust domain."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import Authority, Credential, Grants, Identity, PeerError, PeerReason, PeerVerifier
from antiphon_certs.certificate import load_chain, new_key, subject, to_pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

HOUR = timedelta(hours=1)


def certificate_with(now: datetime, *extensions: x509.ExtensionType) -> bytes:
    key = new_key()
    builder = x509.CertificateBuilder(subject("a"), subject("a"), key.public_key(), 1, now, now + HOUR)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return to_pem(builder.sign(key, hashes.SHA256()))


def names(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def reason_of(certificate: bytes | None, now: datetime) -> PeerReason:
    with pytest.raises(PeerError) as caught:
        PeerVerifier("mesh.test").verify(certificate, now)
    return caught.value.reason


def test_a_peer_is_who_its_certificate_says(
    authority: Authority, sidecar: Identity, now: datetime, credential_for: Callable[..., Credential]
) -> None:
    granted = Grants(("writer",), ("text.*",))
    credential = credential_for(authority, sidecar, granted)
    leaf = load_chain(credential.chain_pem)[0]
    for form in (credential.chain_pem, to_pem(leaf), leaf.public_bytes(Encoding.DER)):
        peer = PeerVerifier("mesh.test").verify(form, now)
        assert (peer.identity, peer.grants) == (sidecar, granted)
        assert (peer.not_after, peer.serial) == (credential.not_after, leaf.serial_number)


def test_expiry_is_checked_on_every_call(
    authority: Authority, sidecar: Identity, now: datetime, credential_for: Callable[..., Credential]
) -> None:
    verifier, credential = PeerVerifier("mesh.test"), credential_for(authority, sidecar)
    assert verifier.verify(credential.chain_pem, now) is verifier.verify(credential.chain_pem, now)
    verifier.verify(credential.chain_pem, credential.not_after - timedelta(seconds=1))
    with pytest.raises(PeerError) as caught:
        verifier.verify(credential.chain_pem, credential.not_after)
    assert caught.value.reason is PeerReason.EXPIRED
    assert caught.value.expire_time == credential.not_after


def test_what_is_remembered_is_bounded(
    authority: Authority, sidecar: Identity, now: datetime, credential_for: Callable[..., Credential]
) -> None:
    verifier = PeerVerifier("mesh.test", capacity=2)
    chains = [credential_for(authority, sidecar).chain_pem for _ in range(3)]
    first = verifier.verify(chains[0], now)
    for chain in chains[1:]:
        verifier.verify(chain, now)
    again = verifier.verify(chains[0], now)
    assert again == first
    assert again is not first


@pytest.mark.parametrize(
    "certificate",
    [None, b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30" * 9],
)
def test_a_missing_or_unreadable_certificate_is_none(certificate: bytes | None, now: datetime) -> None:
    assert reason_of(certificate, now) is PeerReason.NO_CERTIFICATE


OURS = "spiffe://mesh.test/ns/team-a/sidecar/edge-1"


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (OURS, OURS),
        (OURS, "https://mesh.test"),
        ("spiffe://mesh.test",),
        ("spiffe://mesh.test/workload",),
        ("spiffe://mesh.test/ns/team-a/root/edge-1",),
        (f"{OURS}/more",),
        (f"{OURS}\x00.evil",),
    ],
)
def test_anything_but_one_id_of_our_form_is_refused(uris: tuple[str, ...], now: datetime) -> None:
    extensions = [names(*uris)] if uris else []
    assert reason_of(certificate_with(now, *extensions), now) is PeerReason.NOT_SPIFFE


def test_grants_that_cannot_be_read_are_refused(now: datetime) -> None:
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1.1"), b"[")
    assert reason_of(certificate_with(now, names(OURS), broken), now) is PeerReason.NOT_SPIFFE


def test_a_member_of_another_trust_domain_is_refused(
    folder: Path, now: datetime, credential_for: Callable[..., Credential], sidecar: Identity
) -> None:
    other = Authority.init(folder, "other.test", now=now)
    identity = Identity("other.test", sidecar.namespace, sidecar.kind, sidecar.name)
    assert reason_of(credential_for(other, identity).chain_pem, now) is PeerReason.FOREIGN_DOMAIN


def test_an_intermediate_is_nobody(authority: Authority, sidecar: Identity, now: datetime) -> None:
    intermediate = authority.root_pem
    assert reason_of(intermediate, now) is PeerReason.NOT_SPIFFE
