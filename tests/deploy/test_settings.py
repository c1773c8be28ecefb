"""What deploy/ says to our own programs is what they understand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from antiphon_orchestrator.app import LEAVING
from antiphon_orchestrator.config import load
from antiphon_orchestrator.telemetry import Metrics
from antiphon_sidecar.config import load as load_sidecar
from cryptography import x509

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_an_orchestrator_understands_its_settings_and_looks_beside_their_file(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "settings/orchestrator.toml", tmp_path)
    environ = variables((DEPLOY / "settings/orchestrator.env").read_text())
    config = load({"config": str(tmp_path / "orchestrator.toml")}, environ)
    assert config.advertised == "orchestrator-1.example:7443"
    assert config.authority == tmp_path / "authority" and config.store_key == tmp_path / "tls/antiphon.key"
    assert config.etcd is not None and len(config.etcd.endpoints) == 3
    assert config.telemetry.metrics_host == "0.0.0.0"


def test_a_sidecar_understands_its_settings() -> None:
    path = DEPLOY / "settings/sidecar.toml"
    config = load_sidecar({"config": str(path)}, (), {})
    assert config.socket.mode == 0o660 and [agent.name for agent in config.agents] == ["hello"]


def test_the_sidecar_of_the_kubernetes_example_understands_its_settings(tmp_path: Path) -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes/agent.yaml").read_text()))
    path = tmp_path / "sidecar.toml"
    path.write_text(next(one for one in objects if one["kind"] == "ConfigMap")["data"]["sidecar.toml"])
    assert load_sidecar({"config": str(path)}, (), {}).socket.mode == 0o660


def test_alarms_are_about_metrics_that_there_are() -> None:
    text = (DEPLOY / "settings/alarms.yaml").read_text()
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    assert all(rule["annotations"]["summary"] for rule in rules)
    assert {rule["labels"]["severity"] for rule in rules} == {"warning", "critical"}
    collected = {metric.name: metric.type for metric in Metrics().registry.collect()}
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    shown = {f"{name}{ending}" for name, kind in collected.items() for ending in endings[kind]}
    named = {name for rule in rules for name in re.findall(r"\bantiphon_\w+", rule["expr"])}
    assert {"antiphon_serving", "antiphon_internal_errors_total"} <= named <= shown


def test_certificates_are_for_who_they_name_and_are_not_made_twice(tmp_path: Path) -> None:
    folder = tmp_path / "backing"
    command = ["sh", str(DEPLOY / "certificates.sh"), str(folder), "etcd-1=etcd-1.example,192.0.2.7", "antiphon"]
    subprocess.run(command, check=True)
    ca, member, client = (
        x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()) for name in ("ca", "etcd-1", "antiphon")
    )
    for certificate in (member, client):
        certificate.verify_directly_issued_by(ca)
    names = member.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["etcd-1.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert usages(member) == ["serverAuth", "clientAuth"] and usages(client) == ["clientAuth"]
    assert client.subject.rfc4514_string() == "CN=antiphon,O=Antiphon"
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    subprocess.run([*command, "postgres=db.example"], check=True)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"postgres.pem", "postgres.key"} and before.items() <= after.items()


def usages(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return [usage._name for usage in found]


def test_every_image_has_our_version_and_time_enough_to_end() -> None:
    compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    ours = {name: service for name, service in compose.items() if service["image"].startswith("antiphon-")}
    assert {service["image"].partition(":")[2] for service in ours.values()} == {VERSION}
    stay = {name: service for name, service in ours.items() if service.get("restart") == "unless-stopped"}
    assert len(stay) == 5
    assert all(float(service["stop_grace_period"][:-1]) > LEAVING + 2 for service in stay.values())
    chart = yaml.safe_load((DEPLOY / "helm/antiphon/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_scripts_are_shell_and_end_at_the_first_mistake() -> None:
    for path in (DEPLOY / "certificates.sh", *(DEPLOY / "compose").glob("*.sh")):
        assert path.stat().st_mode & 0o111 and "\nset -eu\n" in path.read_text()
        subprocess.run(["sh", "-n", str(path)], check=True)


def test_what_the_files_call_are_commands_that_there_are() -> None:
    """Every `antiphon …` in units, containers, compose file and chart is answered with its help."""
    texts = [path.read_text() for path in sorted(DEPLOY.rglob("*")) if path.is_file()]
    lists = re.findall(r"\[(?:CMD, )?((?:antiphon, )?(?:orchestrator|sidecar), \w+)\]", "\n".join(texts))
    words = {tuple(part for part in found.split(", ") if part != "antiphon") for found in lists}
    words |= {tuple(shlex.split(found)) for found in re.findall(r"/bin/antiphon (\w+ \w+)", "\n".join(texts))}
    assert {("orchestrator", "serve"), ("orchestrator", "health"), ("sidecar", "run"), ("sidecar", "health")} <= words
    for command in sorted(words):
        done = subprocess.run([sys.executable, "-m", "antiphon.command", *command, "--help"], capture_output=True)
        assert done.returncode == 0, command
