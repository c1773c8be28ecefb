"""Where the etcd servers of the tests come from: fetched or built once, then kept below `.cache/etcd`.

`debian` is what the distribution packages, the oldest release that is supported: its package is unpacked, not
installed, so no service of it ever runs. `current` is built by `tools/etcd` from the release that its go.mod names.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/etcd"
MODULE = ROOT / "tools/etcd"
_BUILD_SECONDS = 1200


class EtcdMissing(Exception):
    """There is no such server and none can be had here; the text is one line with the remedy."""


def binary(version: str) -> str:
    """The path of a server, `debian` or `current`. The first call may take minutes. Raises EtcdMissing."""
    name, make = ("debian", _fetch) if version == "debian" else (current_version(), _build)
    path = CACHE / name / "etcd"
    if not path.exists():
        with _alone():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                    os.replace(make(Path(scratch)), path)
    return str(path)


def current_version() -> str:
    """The release that `tools/etcd` builds, such as v3.6.1."""
    found = re.search(r"go\.etcd\.io/etcd/server/v3 (v\S+)", (MODULE / "go.mod").read_text())
    assert found is not None
    return found[1]


def _fetch(scratch: Path) -> Path:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise EtcdMissing(f"{program} is missing, which fetches Debian's etcd-server")
    _run(["apt-get", "download", "etcd-server"], scratch, "run: apt-get update")
    (package,) = scratch.glob("*.deb")
    _run(["dpkg-deb", "-x", str(package), "content"], scratch, "look at the package")
    return scratch / "content/usr/bin/etcd"


def _build(scratch: Path) -> Path:
    if shutil.which("go") is None:
        raise EtcdMissing("go is missing, which builds etcd; install Go 1.21 or newer (it fetches the one it needs)")
    target = scratch / "etcd"
    command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(target), "."]
    _run(command, MODULE, "is the module proxy reachable?")
    return target


def _run(command: list[str], folder: Path, remedy: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise EtcdMissing(f"{' '.join(command[:2])} took too long; {remedy}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EtcdMissing(f"{' '.join(command[:2])} failed ({last}); {remedy}")


@contextmanager
def _alone() -> Iterator[None]:
    """One process fetches or builds, the others wait and find it done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
