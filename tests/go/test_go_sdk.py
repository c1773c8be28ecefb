"""The Go SDK's own tests, with the race detector; without a Go toolchain not run, and in CI a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GO_SDK = ROOT / "sdk/go"


def test_go_test_passes_with_the_race_detector(go_sdk: Path) -> None:
    # Its kit for users' tests starts the command that is installed here.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["go", "test", "-race", "./..."]
    done = subprocess.run(command, cwd=go_sdk, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_the_readme_shows_the_example_that_is_compiled() -> None:
    blocks = re.findall(r"^```go\n(.*?)^```$", (GO_SDK / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    code = (GO_SDK / "examples/hello/main.go").read_text()
    assert blocks[0] == code[code.index("package main") :]


def test_the_page_shows_examples_that_are_compiled() -> None:
    handler, client, *_ = re.findall(r"^```go\n(.*?)^```$", (ROOT / "docs/go.md").read_text(), re.MULTILINE | re.DOTALL)
    assert handler in (GO_SDK / "examples/reviewer/main.go").read_text()
    assert client in (GO_SDK / "examples/client/main.go").read_text()


def test_the_module_has_the_version_of_the_whole() -> None:
    version = tomllib.loads((ROOT / "sdk/python/pyproject.toml").read_text())["project"]["version"]
    assert f'const Version = "{version}"' in (GO_SDK / "doc.go").read_text()
