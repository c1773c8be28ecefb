"""`antiphon orchestrator health` and `check` of one that others reach by a name, or that others certify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from antiphon_certs import Kind

from tests.harness import Mesh

EVERYWHERE = ("--listen", "0.0.0.0:0", "--join-listen", "0.0.0.0:0", "--advertise", "orchestrator.invalid:7443")


def orchestrator(word: str, *settings: str) -> str:
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", word, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_health_asks_on_this_machine_whatever_name_others_use() -> None:
    with Mesh(*EVERYWHERE) as mesh:
        assert mesh.orchestrator.join_address.startswith("orchestrator.invalid:")
        port = mesh.orchestrator.join_address.rpartition(":")[2]
        said = orchestrator("health", "--data", str(mesh.orchestrator.data), "--authority", str(mesh.ca.folder))
        assert said == f"127.0.0.1:{port}: SERVING\n"


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
