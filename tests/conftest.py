"""What all rungs of tests share: how a test asks for a program that Python packages do not bring.

The rungs, by folder: unit (one module, no process), store (one suite for every backend), contract (the protos' own
rules), integration (real processes and sockets), robustness (kills, full disks, bad input), e2e (a browser).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.harness import postgres as harness


class RequireTool(Protocol):
    """Answers where a program is; without it the test is not run, and in CI it fails."""

    def __call__(self, program: str, *, package: str) -> str: ...


@pytest.fixture(scope="session")
def require_tool() -> RequireTool:
    """Call it with a program and the Debian package that brings it, which is installed when this is root on Debian."""

    def require(program: str, *, package: str) -> str:
        path = found(program) or install(program, package)
        if path is None:
            missing = f"not run: {program} is missing; install it (Debian: apt-get install {package})"
            if os.environ.get("CI") == "true":
                pytest.fail(missing, pytrace=False)
            pytest.skip(missing)
        return path

    return require


@pytest.fixture(scope="session")
def postgres(require_tool: RequireTool) -> Iterator[harness.Postgres]:
    """A PostgreSQL server for all tests that do it no harm; each asks it for a database of its own."""
    require_tool("initdb", package="postgresql")
    with harness.Postgres() as server:
        yield server


def found(program: str) -> str | None:
    """Where a program is, on the path or where Debian keeps those of PostgreSQL."""
    return shutil.which(program) or harness.find(program)


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
    return found(program)
