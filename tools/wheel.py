"""The servers as users install them: the wheel built from this checkout and unpacked, for benchmarks and tests.

A copy lies in `.cache/wheel` under the digest of everything it is made from, so it is built when something changed and
never again; the newest few are kept. Put `Wheel.folder` first on PYTHONPATH to run it instead of the source.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/wheel"
SOURCES = ("orchestrator", "sidecar", "certs")
KEPT = 3


class BuildFailed(Exception):
    """The wheel cannot be built; the message holds what the build printed."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """An unpacked wheel. Without `compiled` it is pure Python, since there was no C compiler."""

    folder: Path
    compiled: bool

    def environ(self) -> dict[str, str]:
        """The environment in which Python imports the wheel's packages, whatever is installed."""
        rest = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{rest}" if rest else str(self.folder)}


def unpacked() -> Wheel:
    """The wheel of the present sources; building it takes about a minute. Raises BuildFailed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two at once: the second waits, and finds it built
        folder = CACHE / _digest()
        if not folder.exists():
            _build(folder)
            _forget_old()
        os.utime(folder)
    return Wheel(folder, any(folder.glob("*.so")))


def _digest() -> str:
    """Stands for all that decides the wheel's content."""
    content = hashlib.sha256(f"{sys.version} {version('mypy')}".encode())
    for path in _inputs():
        data = path.read_bytes()
        content.update(f"{path.relative_to(ROOT)} {len(data)} ".encode())
        content.update(data)
    return content.hexdigest()[:16]


def _inputs() -> Iterator[Path]:
    yield ROOT / "pyproject.toml"
    yield ROOT / "tools/hatch_build.py"
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="antiphon-wheel-", dir=CACHE) as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", scratch],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BuildFailed(done.stdout[-8000:])
        (wheel,) = Path(scratch).glob("*.whl")
        ready = Path(scratch, "unpacked")
        zipfile.ZipFile(wheel).extractall(ready)
        ready.rename(folder)


def _forget_old() -> None:
    copies = sorted((path for path in CACHE.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in copies[:-KEPT]:
        shutil.rmtree(path)
