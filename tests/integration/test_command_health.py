"""`antiphon orchestrator health` and `check` of one that others reach by a name, or that others certify."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from antiphon_certs import Kind
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.harness import Mesh
from tests.harness.ports import free_ports

EVERYWHERE = ("--listen", "0.0.0.0:0", "--join-listen", "0.0.0.0:0", "--advertise", "orchestrator.invalid:7443")


def orchestrator(word: str, *settings: str) -> str:
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", word, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_health_asks_on_this_machine_whatever_name_others_use() -> None:
    with Mesh(*EVERYWHERE) as mesh:
        assert mesh.orchestrator.address == "orchestrator.invalid:7443"
        host, _, port = mesh.orchestrator.join_address.partition(":")
        assert host == "orchestrator.invalid"  # with the port that is bound
        said = orchestrator("health", "--data", str(mesh.orchestrator.data), "--authority", str(mesh.ca.folder))
        assert said == f"127.0.0.1:{port}: SERVING\n"


def test_health_asks_at_the_port_that_is_listened_on_whatever_port_others_use() -> None:
    (port,) = free_ports(1)
    with Mesh(*EVERYWHERE, "--join-listen", f"0.0.0.0:{port}", "--join-advertise", "join.invalid:7444") as mesh:
        assert mesh.orchestrator.join_address == "join.invalid:7444"
        said = orchestrator("health", "--data", str(mesh.orchestrator.data), "--authority", str(mesh.ca.folder))
        assert said == f"127.0.0.1:{port}: SERVING\n"


def test_health_without_its_authority_is_told_where_that_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", "health"]

    def said() -> str:
        environment = {**os.environ, "ANTIPHON_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 2
        return done.stderr

    missing = f"antiphon orchestrator: {tmp_path}/ca is missing; ask a running orchestrator with its authority, "
    assert said() == f"{missing}as it was started with: --authority DIR\n"
    (tmp_path / "dev" / "ca").mkdir(parents=True)
    assert said() == f"{missing}of antiphon dev: --authority {tmp_path}/dev/ca\n"


def test_an_orchestrator_that_another_authority_certifies_is_checked_and_healthy(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("private_key", "certificate", "trust_bundle")}
    settings = [word for name, path in files.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    mesh = Mesh(*settings)
    for path, pem in zip(files.values(), mesh.ca.issue(Kind.ORCHESTRATOR, "one", namespace="system"), strict=True):
        path.write_bytes(pem)
    mesh.orchestrator.authority = tmp_path / "nothing"
    with mesh:
        where = ("--data", str(mesh.orchestrator.data), "--authority", str(tmp_path / "nothing"))
        assert orchestrator("health", *where, *settings).endswith(": SERVING\n")
        said = orchestrator("check", *where, *settings)
        assert "spiffe://mesh.test/ns/system/orchestrator/one, until" in said and "nobody can join here" in said


def test_an_intermediate_that_cert_manager_made_is_an_authority(tmp_path: Path) -> None:
    """Its secret as the chart mounts it: a root that says nothing of us, and what the chart's Certificate asks for."""
    now, day = datetime.now(UTC), timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("a root", "Antiphon intermediate")]
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh.test")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    pem = []
    for key, name, further in zip(keys, names, (None, uri), strict=True):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day)
        builder = builder.not_valid_after(now + day)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True).add_extension(usage, True)
        if further is not None:
            builder = builder.add_extension(further, critical=False)
        pem.append(builder.sign(keys[0], SHA256()).public_bytes(Encoding.PEM))
    folder = tmp_path / "authority"
    folder.mkdir()
    (folder / "bundle.pem").write_bytes(pem[0])
    (folder / "intermediate.pem").write_bytes(pem[1])
    (folder / "intermediate.key").write_bytes(keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    mesh = Mesh()
    mesh.orchestrator.authority = folder
    with mesh:
        where = ("--data", str(mesh.orchestrator.data), "--authority", str(folder))
        assert orchestrator("health", *where).endswith(": SERVING\n")
