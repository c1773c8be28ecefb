"""The command on a store in etcd: what `check` says, how `serve` fails, and that the page about it holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from antiphon_orchestrator.config import load

from tests.harness import Ca
from tests.harness.etcd import Etcd, StartEtcd

PAGE = Path(__file__).resolve().parents[2] / "docs/store.md"


def orchestrator(folder: Path, *words: str, code: int = 0) -> str:
    """What `antiphon orchestrator` prints: on stdout when it succeeds, else on stderr."""
    ca = folder / "ca"
    if not ca.exists():
        Ca(ca)
    where = ("--authority", str(ca), "--data", str(folder / "data"), "--listen", "127.0.0.1:0")
    done = subprocess.run(
        [sys.executable, "-m", "antiphon.command", "orchestrator", *words, *where, "--join-listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def flags(etcd: Etcd) -> list[str]:
    files = etcd.files("antiphon")
    given = {"--store-ca": files.ca, "--store-cert": files.certificate, "--store-key": files.private_key}
    return ["--store", etcd.url("check"), *(word for flag, path in given.items() for word in (flag, str(path)))]


def test_check_says_how_each_member_is(etcd_current: Etcd, tmp_path: Path) -> None:
    facts = json.loads(orchestrator(tmp_path, "check", "--json", *flags(etcd_current)))
    said = facts[f"store {etcd_current.endpoints[0]}"]
    assert re.fullmatch(r"etcd 3\.\d+\.\d+, [\d.]+ MiB in use, [\d.]+ MiB of 2048\.0 MiB, leads", said)
    assert f"store {etcd_current.endpoints[0]}" in orchestrator(tmp_path, "check", *flags(etcd_current))


def test_check_names_a_member_that_is_away(start_etcd: StartEtcd, tmp_path: Path) -> None:
    etcd = start_etcd(nodes=3)
    etcd.kill(2)
    etcd.leader()
    facts = json.loads(orchestrator(tmp_path, "check", "--json", *flags(etcd)))
    assert "start etcd there" in facts[f"store {etcd.endpoints[2]}"]
    assert facts[f"store {etcd.endpoints[1]}"].startswith("etcd 3.")


def test_check_says_where_the_embedded_store_is(tmp_path: Path) -> None:
    assert "store.db: not made yet" in orchestrator(tmp_path, "check")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_store_that_cannot_be_used_is_one_line_with_a_remedy(
    etcd_current: Etcd, tmp_path: Path, command: str
) -> None:
    nowhere = orchestrator(tmp_path, command, "--store", "etcd://127.0.0.1:1", code=2)
    assert nowhere.splitlines() == [
        "antiphon orchestrator: etcd cannot be reached: 127.0.0.1:1 cannot be reached (connection refused): "
        "start etcd there, or mend the address"
    ]
    plain = orchestrator(tmp_path, command, "--store", etcd_current.url(), code=2)
    assert "speaks TLS: give store_ca" in plain and len(plain.splitlines()) == 1
    elsewhere = orchestrator(tmp_path, command, "--store", "etcd://10.0.0.1:2379", code=2)
    assert "store: give store_ca" in elsewhere and len(elsewhere.splitlines()) == 1


def test_the_settings_on_the_page_about_the_store_are_settings(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path / "orchestrator.toml"
    file.write_text(block)
    config = load({"config": str(file)}, {})
    assert config.etcd is not None
    assert len(config.etcd.endpoints) == 3
    assert {key for key, value in tomllib.loads(block).items() if value} == {key for key in config.sources}
