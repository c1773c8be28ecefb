"""Runs every check that needs no running system, says one line of each, and shows the output of those that failed.

All of them run, so that one look shows all there is to mend. `make check` calls it; names as arguments choose some:
`make check ARGS="types lint"`. A check changes nothing in the checkout. Exit code 0 only when all passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "protos/baseline.binpb"
AGENTS = ("examples/compliance", "benchmarks/agents")
"""Where there are agents in Go and TypeScript, a file each."""
SOURCES = (
    "orchestrator/antiphon_orchestrator",
    "sidecar/antiphon_sidecar",
    "certs/antiphon_certs",
    "sdk/python/antiphon",
    "sdk/python/conformance.py",
    "tools",
    "protos/generate.py",
    "protos/golang.py",
    "protos/reference.py",
    "protos/typescript.py",
    "benchmarks",
)

Outcome = tuple[bool, str]


def run(program: str, *arguments: str) -> Outcome:
    """Run a program of the environment at the root; whether it succeeded, and what it printed."""
    code, said = execute([str(Path(sys.executable).with_name(program)), *arguments])
    return code == 0, said


def execute(command: list[str], folder: Path = ROOT) -> tuple[int, str]:
    """Run a command in a folder; its exit code, and what it printed."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def types() -> Outcome:
    return run("mypy", *(source for source in SOURCES if (ROOT / source).exists()))


def breaking() -> Outcome:
    """Each package has its own promise (see the table of packages in protos/README.md)."""
    if not BASELINE.exists():
        return True, "no release yet"
    outcomes = []
    packages = {path.name for path in (ROOT / "protos/antiphon").iterdir()}
    for rule, folders in (("FILE", {"v1", "store"}), ("WIRE", {"mesh", "options"})):
        # Left out by name: `--path` would choose among the files of the baseline too, whose paths begin elsewhere.
        ignored = ["protos/buf", *(f"protos/antiphon/{name}" for name in sorted(packages - folders))]
        rules = {"use": [rule], "ignore": ignored}
        config = json.dumps({"version": "v2", "modules": [{"path": "protos"}], "breaking": rules})
        outcomes.append(run("buf", "breaking", "--against", str(BASELINE), "--config", config))
    return all(passed for passed, _ in outcomes), "".join(text for _, text in outcomes)


def typescript() -> Outcome:
    """Types and lint of the TypeScript SDK, types of the agents that use it. Without Node not run, in CI a failure."""
    ready, said = execute([sys.executable, "tools/node.py", "--build"])
    if ready == 3:
        return os.environ.get("CI") != "true", said
    if ready:
        return False, said
    compiler = "sdk/typescript/node_modules/typescript/bin/tsc"
    outcomes = [execute(["npm", "--prefix", "sdk/typescript", "run", "--silent", "check"])]
    outcomes += [execute(["node", compiler, "--noEmit", "--project", folder]) for folder in AGENTS]
    return not any(failed for failed, _ in outcomes), "".join(text for _, text in outcomes)


def go() -> Outcome:
    """Format, vet and staticcheck of the Go SDK and the agents that use it, where Go is there, as it must be in CI."""
    sys.path.insert(0, str(ROOT / "protos"))
    import golang

    try:
        if not golang.available():
            return True, "not run: go is not on the PATH"
        staticcheck = golang.tools() / "staticcheck"
    except (OSError, subprocess.CalledProcessError) as error:
        return False, str(error)
    # Each of them is a program of its own, and the SDK's folder is where Go finds what it imports.
    programs = [str(path) for folder in AGENTS for path in sorted((ROOT / folder).glob("*.go"))]
    unformatted = execute(["gofmt", "-l", ".", *programs], ROOT / golang.SDK)
    outcomes = [(int(unformatted != (0, "")), unformatted[1])]
    outcomes += [
        execute([*command, what], ROOT / golang.SDK)
        for command in (["go", "vet"], [str(staticcheck)])
        for what in ("./...", *programs)
    ]
    return not any(failed for failed, _ in outcomes), "".join(text for _, text in outcomes)


CHECKS: dict[str, Callable[[], Outcome]] = {
    "format": lambda: run("ruff", "format", "--check", "."),
    "lint": lambda: run("ruff", "check", "."),
    "types": types,
    "boundaries": lambda: run("lint-imports", "--no-cache"),
    "protos-format": lambda: run("buf", "format", "--diff", "--exit-code"),
    "protos-lint": lambda: run("buf", "lint"),
    "protos-breaking": breaking,
    "typescript": typescript,
    "generated": lambda: run("python", "protos/generate.py", "--check"),
    "failures": lambda: run("python", "tools/failures.py", "--check"),
    "settings": lambda: run("python", "tools/settings.py", "--check"),
    "go": go,
}


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        print(f"no check is called {', '.join(unknown)}; there are: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or CHECKS:
        begun = time.monotonic()
        passed, output = CHECKS[name]()
        spent = f"{time.monotonic() - begun:.1f} s"
        last = output.rstrip().rpartition("\n")[2]
        print(
            f"{'ok    ' if passed else 'FAILED'}  {name:<16}  {spent:>7}  {last if passed else ''}".rstrip(), flush=True
        )
        if not passed:
            failed.append(name)
            print(output, flush=True)
    if failed:
        print(f"make check: {len(failed)} failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
