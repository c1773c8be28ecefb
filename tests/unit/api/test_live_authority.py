"""An orchestrator takes up what is in the authority's folder: whole, and nothing that would cut everybody off."""

from __future__ import annotations

from pathlib import Path

import pytest
from antiphon_certs import Authority, Identity, Kind, SystemClock, finish_root, prepare_root, switch_root
from antiphon_orchestrator.api.authority import LiveAuthority
from antiphon_orchestrator.api.certificate import IssuedHere, LiveCertificate
from antiphon_orchestrator.telemetry import Metrics


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority.init(tmp_path / "ca", "mesh.test")
    return tmp_path / "ca"


def roots(bundle_pem: bytes) -> int:
    return bundle_pem.count(b"BEGIN CERTIFICATE")


def test_each_step_of_a_rotation_is_taken_up_and_shows_in_our_own_certificate(folder: Path) -> None:
    clock = SystemClock()
    live = LiveAuthority(folder, clock)
    source = IssuedHere(lambda: live.current, Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one"), (), clock)
    certificate = LiveCertificate(source, source.renew, clock, Metrics())
    live.changed = certificate.look
    first = certificate.credential
    live.look()
    assert certificate.credential is first, "nothing has changed"
    prepare_root(folder)
    live.look()
    assert roots(certificate.credential.bundle_pem) == 2
    old = live.current.root_pem
    switch_root(folder, force=True)
    live.look()
    assert live.current.root_pem != old
    assert certificate.credential.chain_pem.endswith((folder / "intermediate.pem").read_bytes())
    finish_root(folder, force=True)
    live.look()
    assert certificate.credential.bundle_pem == live.current.bundle_pem == live.current.root_pem


def test_half_a_copy_is_not_taken_up_and_the_rest_of_it_is(folder: Path, tmp_path: Path) -> None:
    live = LiveAuthority(folder, SystemClock())
    former = live.current
    renewed = tmp_path / "renewed"
    renewed.mkdir()
    for path in folder.iterdir():
        (renewed / path.name).write_bytes(path.read_bytes())
    Authority.renew_intermediate(renewed)
    for name in ("intermediate.key", "intermediate.pem"):
        live.look()
        assert live.current is former
        (folder / name).write_bytes((renewed / name).read_bytes())
    live.look()
    assert live.current is not former


def test_an_authority_that_nobody_here_trusts_is_not_taken_up(folder: Path, tmp_path: Path) -> None:
    live = LiveAuthority(folder, SystemClock())
    former = live.current
    other = tmp_path / "other"
    Authority.init(other, "mesh.test")
    for name in ("intermediate.key", "intermediate.pem", "bundle.pem"):
        (folder / name).write_bytes((other / name).read_bytes())
    live.look()
    assert live.current is former
