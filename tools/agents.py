"""Builds single-file agents in Go and TypeScript with the SDKs of this checkout: those of the demo and the benchmarks.

`built(source)` answers the command that runs one. It is built into `.cache/agents` when it or its SDK has changed, and
needs a network only until the toolchain has what the SDK depends on. `python -m tools.agents SOURCE`, at the root,
prints the command as JSON and answers 0, 3 with one line when the toolchain is missing (which is for the caller to
judge), 1 when the build failed. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import node

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/agents"
GO_SDK = ROOT / "sdk/go"
COMPILER = node.SDK / "node_modules/typescript/bin/tsc"


class Missing(Exception):
    """There is no toolchain for it here; the message says which, and where to get it."""


class BuildFailed(Exception):
    """The message holds what the build printed."""


def built(source: Path) -> list[str]:
    """The command of the agent in `source`, a `.go` or an `.mts` file. Raises Missing, BuildFailed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two at once: the second waits, and finds it built
        return _go(source.resolve()) if source.suffix == ".go" else _typescript(source.resolve())


def _go(source: Path) -> list[str]:
    if shutil.which("go") is None:
        raise Missing("go is missing; install it from https://go.dev/dl")
    program = CACHE / source.stem
    # Go takes single files from anywhere, and finds what they import where it stands; it knows itself what is current.
    _run(["go", "build", "-buildvcs=false", "-o", str(program), str(source)], GO_SDK)
    return [str(program)]


def _typescript(source: Path) -> list[str]:
    if why := node.missing():
        raise Missing(why.removeprefix("not run: "))
    _run([sys.executable, str(ROOT / "tools/node.py"), "--build"], ROOT)
    mark, program = CACHE / f"{source.stem}.built", CACHE / f"{source.stem}.mjs"
    wanted = node.digest(source, source.parent / "tsconfig.json", node.SDK / "dist/antiphon-built")
    if not (program.is_file() and mark.is_file() and mark.read_text() == wanted):
        _run(["node", str(COMPILER), "--project", str(source.parent), "--outDir", str(CACHE)], ROOT)
        mark.write_text(wanted)
    package = CACHE / "node_modules/@antiphon/sdk"  # where Node looks for what the program imports
    if not package.exists():
        package.parent.mkdir(parents=True, exist_ok=True)
        package.symlink_to(node.SDK)
    return ["node", str(program)]


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)} failed:\n{done.stdout.strip()}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tools.agents SOURCE", file=sys.stderr)
        return 2
    try:
        print(json.dumps(built(Path(arguments[0]))))
    except Missing as error:
        print(error)
        return node.MISSING
    except BuildFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
