"""Credentials on disk: never half of one and half of another."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    CertificateFiles,
    Credential,
    CredentialError,
    CredentialReason,
    ExternalFiles,
    Grants,
    Identity,
    Source,
)
from antiphon_certs.certificate import fingerprint, load_chain
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

Issue = Callable[[], Credential]


@pytest.fixture
def issue(authority: Authority, sidecar: Identity, credential_for: Callable[..., Credential]) -> Issue:
    """A new credential of the same sidecar at each call."""
    return lambda: credential_for(authority, sidecar, Grants(("writer",), ("text.*",)))


def store(files: CertificateFiles, credential: Credential) -> Credential:
    return files.store(credential.key_pem, credential.chain_pem, credential.bundle_pem)


def reason_of(source: Source) -> CredentialReason:
    with pytest.raises(CredentialError) as caught:
        source.load()
    return caught.value.reason


def test_what_is_stored_is_loaded(folder: Path, issue: Issue, sidecar: Identity) -> None:
    files, credential = CertificateFiles(folder), issue()
    assert store(files, credential) == files.load() == credential
    leaf = load_chain(credential.chain_pem)[0]
    assert credential.identity == sidecar
    assert credential.grants == Grants(("writer",), ("text.*",))
    assert (credential.not_before, credential.not_after) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    assert credential.fingerprint == fingerprint(leaf)


def test_only_the_owner_can_read_what_is_stored(folder: Path, issue: Issue) -> None:
    store(CertificateFiles(folder), issue())
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_repr_holds_no_key(issue: Issue) -> None:
    assert "PRIVATE" not in repr(issue())


def test_an_empty_folder_holds_no_credential(folder: Path) -> None:
    assert reason_of(CertificateFiles(folder)) is CredentialReason.MISSING


def test_a_store_cut_short_leaves_the_old_generation(folder: Path, issue: Issue) -> None:
    files, old = CertificateFiles(folder), issue()
    store(files, old)
    (folder / "generation-cut").mkdir()
    (folder / "generation-cut" / "key.pem").write_bytes(issue().key_pem)
    (folder / "generation-cut" / "current").symlink_to("generation-cut")
    assert files.load() == old
    new = issue()
    store(files, new)
    assert files.load() == new
    assert not (folder / "generation-cut").exists()


def test_a_mismatched_pair_is_never_stored(folder: Path, issue: Issue) -> None:
    files, old, new = CertificateFiles(folder), issue(), issue()
    store(files, old)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CredentialError):
        files.store(old.key_pem, new.chain_pem, new.bundle_pem)
    assert files.load() == old
    assert sorted(path.name for path in folder.iterdir()) == before


def test_old_generations_are_dropped_but_the_last(folder: Path, issue: Issue) -> None:
    files = CertificateFiles(folder)
    for _ in range(4):
        store(files, issue())
    assert len(list(folder.glob("generation-*"))) == 2


def test_a_reader_that_was_half_way_can_finish_after_a_swap(folder: Path, issue: Issue) -> None:
    files, old = CertificateFiles(folder), issue()
    store(files, old)
    half_way = folder / os.readlink(folder / "current")
    store(files, issue())
    assert (half_way / "cert.pem").read_bytes() == old.chain_pem


def test_a_reader_beside_a_writer_sees_whole_credentials_only(folder: Path, issue: Issue) -> None:
    files, credentials = CertificateFiles(folder), [issue() for _ in range(8)]
    store(files, credentials[0])
    finished = threading.Event()

    def write() -> None:
        for _ in range(4):
            for credential in credentials:
                store(files, credential)
        finished.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not finished.is_set():
        assert files.load() in credentials
        seen += 1
    writer.join()
    assert seen
    assert files.load() == credentials[-1]


def test_writers_beside_each_other_leave_a_whole_credential(folder: Path, issue: Issue) -> None:
    files, credentials = CertificateFiles(folder), [issue() for _ in range(4)]
    store(files, credentials[0])

    def write(credential: Credential) -> None:
        for _ in range(8):
            store(files, credential)
            assert files.load() in credentials

    with ThreadPoolExecutor(len(credentials)) as writers:
        list(writers.map(write, credentials))
    assert files.load() in credentials
    assert len(list(folder.glob("generation-*"))) == 2


@pytest.fixture
def external(tmp_path: Path) -> ExternalFiles:
    return ExternalFiles(tmp_path / "tls.key", tmp_path / "tls.crt", tmp_path / "ca.crt")


def test_external_files_are_a_credential_wherever_they_lie(external: ExternalFiles, issue: Issue) -> None:
    credential = issue()
    for path, data in ((external.key, credential.key_pem), (external.cert, credential.chain_pem)):
        path.write_bytes(data)
        assert reason_of(external) is CredentialReason.MISSING
    external.bundle.write_bytes(credential.bundle_pem)
    assert external.load() == credential


def test_external_files_between_two_writes_are_inconsistent(external: ExternalFiles, issue: Issue) -> None:
    old, new = issue(), issue()
    external.key.write_bytes(old.key_pem)
    external.cert.write_bytes(old.chain_pem)
    external.bundle.write_bytes(old.bundle_pem)
    external.cert.write_bytes(new.chain_pem)
    assert reason_of(external) is CredentialReason.INCONSISTENT
    external.key.write_bytes(new.key_pem)
    assert external.load() == new


@pytest.mark.parametrize("name", ["key", "cert", "bundle"])
def test_external_files_cut_short_or_garbled_are_malformed(external: ExternalFiles, issue: Issue, name: str) -> None:
    credential = issue()
    external.key.write_bytes(credential.key_pem)
    external.cert.write_bytes(credential.chain_pem)
    external.bundle.write_bytes(credential.bundle_pem)
    path: Path = getattr(external, name)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], b"\x00" * 100, b"x" * 100_000):
        path.write_bytes(damaged)
        assert reason_of(external) is CredentialReason.MALFORMED


def test_a_folder_in_place_of_a_file_is_malformed(external: ExternalFiles) -> None:
    external.key.mkdir()
    assert reason_of(external) is CredentialReason.MALFORMED


def test_keys_of_other_kinds_are_malformed(issue: Issue) -> None:
    credential = issue()
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(CredentialError, match="encrypted"):
        Credential.from_pem(locked, credential.chain_pem, credential.bundle_pem)


def test_a_certificate_that_names_nobody_is_malformed(authority: Authority, folder: Path, issue: Issue) -> None:
    Authority.init(folder, "mesh.test")
    with pytest.raises(CredentialError) as caught:
        Credential.from_pem(
            (folder / "intermediate.key").read_bytes(), (folder / "intermediate.pem").read_bytes(), issue().bundle_pem
        )
    assert caught.value.reason is CredentialReason.MALFORMED
