"""The TypeScript SDK's own tests, and what holds between its package and the rest of the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.conftest import RequireTool

pytest_plugins = ("tests.harness.typescript",)


def test_its_own_tests_pass(typescript: Path, require_tool: RequireTool) -> None:
    require_tool("openssl", package="openssl")  # makes the certificates that they need
    # Its kit for users' tests starts the command that is installed here.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["npm", "test", "--silent"], cwd=typescript, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_version_of_the_distributions(typescript: Path) -> None:
    package = json.loads((typescript / "package.json").read_text())
    assert package["version"] == version("antiphon")
    assert f'VERSION = "{package["version"]}"' in (typescript / "src/version.ts").read_text()


def test_its_lock_file_names_packages_and_digests_and_no_registry(typescript: Path) -> None:
    packages = json.loads((typescript / "package-lock.json").read_text())["packages"]
    assert [name for name, one in packages.items() if "resolved" in one] == []
    assert [name for name, one in packages.items() if name and "integrity" not in one] == []


def test_each_module_says_what_it_is_for_and_none_is_too_long_to_read(typescript: Path) -> None:
    modules = [path for path in sorted(typescript.glob("src/*.ts")) if path.name != "version.ts"]
    assert [path.name for path in modules if not path.read_text().startswith("/**")] == []
    assert {path.name: length for path in modules if (length := path.read_text().count("\n")) > 700} == {}


def test_the_readme_is_short_and_names_every_module(typescript: Path) -> None:
    text = (typescript / "README.md").read_text()
    assert text.count("\n") <= 80
    named = set(re.findall(r"`([a-z0-9-]+)`", text))
    assert {path.stem for path in typescript.glob("src/*.ts")} - {"index"} <= named
