"""What all rungs of tests share: how a test asks for a program that Python packages do not bring.

The rungs, by folder: unit (one module, no process), store (one suite for every backend), contract (the protos' own
rules), integration (real processes and sockets), go (the Go SDK's own tests), robustness (kills, full disks, bad
input), e2e (a browser).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from tests.harness import postgres as harness

# How long an example takes says nothing on a machine that others use; how long a suite takes is seen by all.
settings.register_profile("antiphon", deadline=None)
settings.load_profile("antiphon")

# Only the outermost conftest may name plugins.
pytest_plugins = ("tests.harness.etcd_fixtures",)


def pytest_xdist_auto_num_workers() -> int:
    """Workers of `make test`: one more than there are processors, because much of what tests do is to wait."""
    return (os.cpu_count() or 1) + 1


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


class RequireLibrary(Protocol):
    """Answers where a shared library is that a Debian package brings; as `RequireTool` otherwise."""

    def __call__(self, library: str, *, package: str) -> str: ...


@pytest.fixture(scope="session")
def require_library() -> RequireLibrary:
    """Call it with the file name of a library below /usr/lib and the Debian package that brings it."""

    def require(library: str, *, package: str) -> str:
        path = library_at(library)
        if path is None:
            install(library, package)
            path = library_at(library)
        if path is None:
            missing = f"not run: {library} is missing; install it (Debian: apt-get install {package})"
            if os.environ.get("CI") == "true":
                pytest.fail(missing, pytrace=False)
            pytest.skip(missing)
        return path

    return require


def library_at(name: str) -> str | None:
    """Where a library is, or None."""
    return next((str(path) for path in Path("/usr/lib").glob(f"*/*/{name}")), None)


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
    with Path(__file__).open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two workers at once: the second waits, and finds it installed
        for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", package]):
            if found(program):
                break
            try:
                subprocess.run(["apt-get", *arguments], env=environ, capture_output=True, timeout=300, check=False)
            except subprocess.TimeoutExpired:
                return None
    return found(program)


@pytest.fixture(scope="session")
def go_sdk() -> Path:
    """The folder of the Go SDK; without a Go toolchain the test is not run, and in CI it fails."""
    if shutil.which("go") is None:
        missing = "not run: go is missing; install it from https://go.dev/dl"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return Path(__file__).parents[1] / "sdk/go"


@pytest.fixture(scope="session")
def go_programs(go_sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of the Go SDK's tests, built."""
    folder = tmp_path_factory.mktemp("go")
    programs = ("./examples/hello", "./examples/reviewer", "./internal/worker", "./internal/journey")
    subprocess.run(["go", "build", "-buildvcs=false", "-o", f"{folder}/", *programs], cwd=go_sdk, check=True)
    return folder
