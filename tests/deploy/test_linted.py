"""Units, container file and compose file by the programs and schemas of those who run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RequireTool
from tests.harness.linters import linter

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = ("antiphon-orchestrator.service", "antiphon-sidecar@.service")


def passes(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the command where this environment has it: systemd asks whether there is such a program."""
    ours = str(Path(sys.executable).parent)
    for name in UNITS:
        (tmp_path / name).write_text((DEPLOY / "systemd" / name).read_text().replace("/opt/antiphon/bin", ours))
    return tmp_path


def test_systemd_takes_the_units(units: Path, require_tool: RequireTool) -> None:
    analyze = require_tool("systemd-analyze", package="systemd")
    instances = [str(units / name.replace("@", "@edge")) for name in UNITS]
    assert passes(analyze, "verify", "--man=no", *instances) == ""


def test_systemd_makes_the_users_that_the_units_name(tmp_path: Path, require_tool: RequireTool) -> None:
    sysusers = require_tool("systemd-sysusers", package="systemd")
    (tmp_path / "etc").mkdir()
    passes(sysusers, f"--root={tmp_path}", str(DEPLOY / "systemd/antiphon.conf"))
    users = {line.partition(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    groups = {line.partition(":")[0]: line for line in (tmp_path / "etc/group").read_text().splitlines()}
    named = {line.partition("=")[2] for name in UNITS for line in unit_lines(name) if line.startswith("User=")}
    assert named == users == {"antiphon", "antiphon-sidecar"}
    assert groups["antiphon-agents"].endswith(":antiphon-sidecar")


def unit_lines(name: str) -> list[str]:
    return (DEPLOY / "systemd" / name).read_text().splitlines()


@pytest.mark.parametrize("unit", UNITS)
def test_units_leave_little_to_whoever_breaks_in(unit: str, units: Path, require_tool: RequireTool) -> None:
    """The score is systemd's: 0 is everything closed, 10 nothing; times ten here."""
    analyze = require_tool("systemd-analyze", package="systemd")
    passes(analyze, "security", "--offline=true", "--threshold=20", str(units / unit))


def test_the_container_file_is_as_the_linter_wants_it() -> None:
    passes(linter("hadolint"), "--failure-threshold", "style", str(DEPLOY / "containers/Dockerfile"))


def test_the_compose_file_keeps_its_schema() -> None:
    passes(linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose/compose.yaml"))
