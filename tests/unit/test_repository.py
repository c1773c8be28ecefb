"""What holds for the repository as a whole and no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "orchestrator/antiphon_orchestrator/engine"
SOURCES = ("orchestrator", "sidecar", "certs", "sdk/python", "tools", "protos")
GENERATED = ("v1", "mesh", "store", "options", "etcd")
# Standard, but not pure: a clock, chance, the outside world, or other threads of control.
IMPURE = {"asyncio", "datetime", "logging", "os", "pathlib", "random", "secrets", "socket", "threading", "time", "uuid"}
LONGEST_FILE = 700  # a bound, not an aim; most are below 300


def own_modules() -> Iterator[Path]:
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            inside = path.relative_to(ROOT).parts
            if not (inside[:3] == ("sdk", "python", "antiphon") and inside[3] in GENERATED):
                yield path


def imported(path: Path) -> Iterator[str]:
    """Top-level names of what a module imports absolutely."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def project(folder: str) -> dict[str, object]:
    content: dict[str, object] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return content


def test_the_engine_imports_the_pure_part_of_the_standard_library_alone() -> None:
    allowed = (set(sys.stdlib_module_names) | {"antiphon_orchestrator"}) - IMPURE
    wrong = {path.name: sorted(set(imported(path)) - allowed) for path in ENGINE.glob("*.py")}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [
        str(path.relative_to(ROOT)) for path in own_modules() if not ast.get_docstring(ast.parse(path.read_text()))
    ] == []


def test_no_module_is_too_long_to_read() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in own_modules()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_work_is_left_as_a_remark() -> None:
    remark = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [str(path.relative_to(ROOT)) for path in own_modules() if remark.search(path.read_text())] == []


def test_both_distributions_have_one_version_and_need_each_other_in_it() -> None:
    server, sdk = project("."), project("sdk/python")
    assert server["version"] == sdk["version"] == version("antiphon")
    assert f"antiphon[cli]=={server['version']}" in str(server["dependencies"])
    assert f"antiphon-server=={sdk['version']}" in str(sdk["optional-dependencies"])
    assert f"## {sdk['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_environment_has_the_pinned_versions() -> None:
    pins = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    present = {name: version(name) for name, _, _ in (pin.partition("==") for pin in pins)}
    assert [f"{name}=={number}" for name, number in present.items()] == pins


def test_make_help_tells_of_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE)) - {"environment"}
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == targets
    assert {"demo", "test", "check", "gen", "bench", "fmt", "help"} <= targets


def test_a_python_that_is_too_old_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import environment

    monkeypatch.setattr(environment, "sys", SimpleNamespace(version_info=(3, 9, 2, "final", 0)))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer.*make PYTHON="):
        environment.main()
