"""The authority: what it writes, what it signs, what it refuses."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import (
    ORCHESTRATOR_DNS_NAME,
    Authority,
    AuthorityError,
    Credential,
    Identity,
    InvalidName,
    InvalidRequest,
    Kind,
    fingerprint,
    new_key_and_csr,
)
from antiphon_certs.certificate import identity_of, load_chain
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

Issue = Callable[..., Credential]


def leaf_of(credential: Credential) -> x509.Certificate:
    return load_chain(credential.chain_pem)[0]


def names_of(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def usages_of(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def request_with(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def test_init_writes_files_only_the_owner_can_read(folder: Path) -> None:
    Authority.init(folder, "mesh.test")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(("root.pem", "root.key", "intermediate.pem", "intermediate.key", "bundle.pem"), 0o600)


def test_init_makes_two_p256_levels_that_only_sign(folder: Path, now: datetime) -> None:
    Authority.init(folder, "mesh.test", now=now)
    root, intermediate = (load_chain((folder / name).read_bytes())[0] for name in ("root.pem", "intermediate.pem"))
    root.verify_directly_issued_by(root)
    intermediate.verify_directly_issued_by(root)
    for certificate, path_length, years in ((root, 1, 10), (intermediate, 0, 1)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=path_length)
        assert names_of(certificate).get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://mesh.test"]
        assert abs((certificate.not_valid_after_utc - now).days - 365 * years) <= 3


@pytest.mark.parametrize("name", ["root.pem", "root.key", "intermediate.pem", "intermediate.key", "bundle.pem"])
def test_init_never_overwrites_any_part_of_an_authority(folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / name).write_text("precious")
    with pytest.raises(AuthorityError, match=name):
        Authority.init(folder, "mesh.test")
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "precious"


def test_init_takes_no_folder_that_holds_something_else(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").touch()
    with pytest.raises(AuthorityError, match="empty folder"):
        Authority.init(folder, "mesh.test")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_init_takes_an_empty_folder_such_as_a_mounted_volume(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    Authority.init(folder, "mesh.test")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_init_refuses_a_bad_trust_domain_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(InvalidName):
        Authority.init(folder, "Mesh Test")
    assert not folder.exists()


def test_the_authority_works_without_the_root_key(folder: Path, sidecar: Identity, credential_for: Issue) -> None:
    made = Authority.init(folder, "mesh.test")
    (folder / "root.key").unlink()
    (folder / "root.pem").unlink()
    loaded = Authority.load(folder)
    assert loaded.root_fingerprint == made.root_fingerprint
    assert loaded.trust_domain == "mesh.test"
    assert credential_for(loaded, sidecar, now=None).identity == sidecar


def test_the_fingerprint_is_sha256_of_the_root_certificate(authority: Authority) -> None:
    root = load_chain(authority.root_pem)[0]
    digest = hashes.Hash(hashes.SHA256())
    digest.update(root.public_bytes(Encoding.DER))
    assert authority.root_fingerprint == fingerprint(root) == digest.finalize().hex()


def test_a_missing_folder_is_refused_with_a_remedy(folder: Path) -> None:
    with pytest.raises(AuthorityError, match="antiphon certs init"):
        Authority.load(folder)


@pytest.mark.parametrize("name", ["intermediate.key", "intermediate.pem", "bundle.pem"])
def test_a_file_of_another_authority_is_refused(tmp_path: Path, name: str) -> None:
    Authority.init(tmp_path / "one", "mesh.test")
    Authority.init(tmp_path / "two", "mesh.test")
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(AuthorityError, match="restore them together"):
        Authority.load(tmp_path / "one")


@pytest.mark.parametrize("name", ["intermediate.key", "intermediate.pem", "bundle.pem"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_refused(folder: Path, name: str, content: bytes) -> None:
    Authority.init(folder, "mesh.test")
    (folder / name).write_bytes(content)
    with pytest.raises(AuthorityError, match="damaged"):
        Authority.load(folder)


def test_a_renewed_intermediate_issues_under_the_same_root(
    folder: Path, now: datetime, sidecar: Identity, credential_for: Issue
) -> None:
    old = Authority.init(folder, "mesh.test", now=now)
    later = now + timedelta(days=300)
    new = Authority.renew_intermediate(folder, now=later)
    assert new.bundle_pem == old.bundle_pem
    assert new.not_after > old.not_after
    leaf, intermediate = load_chain(credential_for(new, sidecar, now=later).chain_pem)
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(load_chain(old.root_pem)[0])


def test_an_intermediate_cannot_be_renewed_without_the_root_key(folder: Path) -> None:
    Authority.init(folder, "mesh.test")
    before = (folder / "intermediate.key").read_bytes()
    (folder / "root.key").unlink()
    with pytest.raises(AuthorityError, match=r"root\.key"):
        Authority.renew_intermediate(folder)
    assert (folder / "intermediate.key").read_bytes() == before


@pytest.mark.parametrize("kind", [Kind.SIDECAR, Kind.CLIENT, Kind.OPERATOR])
def test_only_orchestrators_can_serve(authority: Authority, credential_for: Issue, kind: Kind) -> None:
    identity = Identity("mesh.test", "team-a", kind, "x")
    leaf = leaf_of(credential_for(authority, identity))
    assert usages_of(leaf) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert names_of(leaf).get_values_for_type(x509.DNSName) == [f"x.{kind}.team-a.mesh.test"]
    assert names_of(leaf).get_values_for_type(x509.IPAddress) == []


def test_an_orchestrator_is_named_by_every_way_to_reach_it(authority: Authority) -> None:
    identity = Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one")
    _, csr = new_key_and_csr(identity)
    leaf = load_chain(authority.issue(csr, identity, hosts=["antiphon.example", "10.0.0.7", "localhost"]))[0]
    assert usages_of(leaf) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert names_of(leaf).get_values_for_type(x509.DNSName) == [
        "one.orchestrator.system.mesh.test",
        ORCHESTRATOR_DNS_NAME,
        "localhost",
        "antiphon.example",
    ]
    addresses = names_of(leaf).get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "10.0.0.7")]


def test_hosts_are_for_orchestrators_and_are_never_wildcards(authority: Authority, sidecar: Identity) -> None:
    _, csr = new_key_and_csr(sidecar)
    with pytest.raises(InvalidRequest, match="only an orchestrator"):
        authority.issue(csr, sidecar, hosts=["a.example"])
    with pytest.raises(InvalidRequest, match="neither"):
        authority.issue(csr, Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one"), hosts=["*.example"])


def test_names_in_the_request_are_ignored(authority: Authority, sidecar: Identity, now: datetime) -> None:
    operator = Identity("mesh.test", "team-a", Kind.OPERATOR, "root")
    _, csr = new_key_and_csr(operator)
    leaf = load_chain(authority.issue(csr, sidecar, now=now))[0]
    assert identity_of(leaf) == sidecar
    assert b"root" not in leaf.public_bytes(Encoding.DER)


def test_a_leaf_is_valid_from_a_minute_ago_for_an_hour(
    authority: Authority, sidecar: Identity, now: datetime, credential_for: Issue
) -> None:
    credential = credential_for(authority, sidecar)
    assert credential.not_before == now - timedelta(minutes=1)
    assert credential.not_after == now + timedelta(hours=1)


def test_a_leaf_never_outlives_the_intermediate(authority: Authority, sidecar: Identity, credential_for: Issue) -> None:
    last = authority.not_after - timedelta(minutes=10)
    assert credential_for(authority, sidecar, now=last).not_after == authority.not_after
    with pytest.raises(InvalidRequest, match="expired"):
        credential_for(authority, sidecar, now=authority.not_after)


def test_a_lifetime_must_be_positive(authority: Authority, sidecar: Identity, credential_for: Issue) -> None:
    with pytest.raises(InvalidRequest, match="positive"):
        credential_for(authority, sidecar, ttl=timedelta(0))


def test_another_trust_domain_is_refused(authority: Authority, credential_for: Issue) -> None:
    with pytest.raises(InvalidRequest, match=r"mesh\.test"):
        credential_for(authority, Identity("other.test", "team-a", Kind.SIDECAR, "x"))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_only_p256_keys_are_signed(
    authority: Authority, sidecar: Identity, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    with pytest.raises(InvalidRequest, match="P-256"):
        authority.issue(request_with(key), sidecar)


def test_a_request_that_does_not_prove_its_key_is_refused(authority: Authority, sidecar: Identity) -> None:
    der = bytearray(x509.load_pem_x509_csr(new_key_and_csr(sidecar)[1]).public_bytes(Encoding.DER))
    der[-1] ^= 1  # the last byte of the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(InvalidRequest, match="not signed"):
        authority.issue(forged, sidecar)


@pytest.mark.parametrize("request_pem", [b"", b"garbage", b"x" * 100_000])
def test_an_unreadable_request_is_refused(authority: Authority, sidecar: Identity, request_pem: bytes) -> None:
    with pytest.raises(InvalidRequest):
        authority.issue(request_pem, sidecar)
