"""How the executor of each SDK is started, and what it does not pass yet."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE, NODE_MISSING = ROOT / "tools/node.py", 3
KNOWN_FAILING = Path(__file__).with_name("known_failing")


@dataclass(frozen=True)
class Executor:
    """One SDK. `command` makes what starts its executor, which gets `agent N` or `client`; it may build it first.

    `missing` says why it cannot be run here; empty when it can.
    """

    sdk: str
    command: Callable[[], tuple[str, ...]]
    missing: Callable[[], str] = str

    @property
    def known_failing(self) -> frozenset[str]:
        """Names of cases that it does not pass; one of them that passes fails the run."""
        path = KNOWN_FAILING / f"{self.sdk}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _python() -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "sdk/python/conformance.py"))


def _typescript() -> tuple[str, ...]:
    subprocess.run([sys.executable, str(NODE), "--build"], check=True)
    return ("node", str(ROOT / "sdk/typescript/conformance/build/executor.js"))


def _no_node() -> str:
    done = subprocess.run([sys.executable, str(NODE)], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == NODE_MISSING else ""


def _go() -> tuple[str, ...]:
    program = ROOT / ".cache/go/conformance"
    program.parent.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-buildvcs=false", "-o", str(program), "./conformance"]
    subprocess.run(command, cwd=ROOT / "sdk/go", check=True)
    return (str(program),)


def _no_go() -> str:
    return "" if shutil.which("go") else "not run: go is missing; install it from https://go.dev/dl"


EXECUTORS = {
    one.sdk: one
    for one in (
        Executor("python", _python),
        Executor("typescript", _typescript, _no_node),
        Executor("go", _go, _no_go),
    )
}
