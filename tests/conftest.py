"""What all rungs of tests share: how a test asks for a program that Python packages do not bring.

The rungs, by folder: unit (one module, no process), store (one suite for every backend), contract (the protos' own
rules), integration (real processes and sockets), robustness (kills, full disks, bad input), e2e (a browser).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Protocol

import pytest

# Only the outermost conftest may name plugins.
pytest_plugins = ("tests.harness.etcd_fixtures",)


class RequireTool(Protocol):
    """Answers where a program is; without it the test is not run, and in CI it fails."""

    def __call__(self, program: str, *, package: str) -> str: ...


@pytest.fixture(scope="session")
def require_tool() -> RequireTool:
    """Call it with a program and the Debian package that brings it, which is installed when this is root on Debian."""

    def require(program: str, *, package: str) -> str:
        path = shutil.which(program) or install(program, package)
        if path is None:
            missing = f"not run: {program} is missing; install it (Debian: apt-get install {package})"
            if os.environ.get("CI") == "true":
                pytest.fail(missing, pytrace=False)
            pytest.skip(missing)
        return path

    return require


def install(program: str, package: str) -> str | None:
    """Where the program is after an attempt to install it, or None."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", package]):
        try:
            subprocess.run(["apt-get", *arguments], env=environ, capture_output=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return None
    return shutil.which(program)
