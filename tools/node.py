"""Makes the TypeScript SDK's development environment and its build, where Node is there; tests and checks run it.

`sdk/typescript/node_modules` is current when its mark holds the digest of the lock file, and `dist` when its mark holds
that of the sources. Standard library only. Answers 0 when all is current, 3 with one line when Node is missing (which
is for the caller to judge), 1 when npm or the build failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "sdk/typescript"
OLDEST = 20
MISSING = 3


def missing() -> str:
    """Why nothing of TypeScript can be run here; empty when it can."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return f"not run: Node {OLDEST} or newer with npm is missing (Debian: apt-get install nodejs npm)"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        return f"not run: Node is {version}, and {OLDEST} or newer is needed"
    return ""


def digest(*paths: Path) -> str:
    """Of names and content of files."""
    content = hashlib.sha256()
    for path in sorted(paths):
        content.update(f"{path}\n".encode() + path.read_bytes())
    return content.hexdigest()


def ready(*, build: bool) -> None:
    """Install, and build if asked, what is not current. Raises `CalledProcessError`."""
    with open(SDK / "package.json") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two at once: the second waits, and finds it done
        installed = SDK / "node_modules/antiphon-installed"
        once(installed, digest(SDK / "package-lock.json"), "npm", "ci", "--ignore-scripts", "--no-progress")
        if build:
            sources = [SDK / name for name in ("package-lock.json", "tsconfig.json", "tsconfig.build.json")]
            sources += [*(SDK / "src").rglob("*.ts"), *(SDK / "conformance").glob("*.*")]
            once(SDK / "dist/antiphon-built", digest(*sources), "npm", "run", "--silent", "build")


def once(mark: Path, wanted: str, *command: str) -> None:
    if mark.is_file() and mark.read_text() == wanted:
        return
    if mark.parent.exists():
        shutil.rmtree(mark.parent)
    quiet = {**os.environ, "npm_config_loglevel": "error"}
    subprocess.run(command, cwd=SDK, stdout=subprocess.DEVNULL, env=quiet, check=True)
    mark.write_text(wanted)


def main(arguments: list[str]) -> int:
    if why := missing():
        print(why)
        return MISSING
    try:
        ready(build="--build" in arguments)
    except subprocess.CalledProcessError as error:
        print(f"sdk/typescript: {' '.join(error.cmd)} failed; see above, then run it again", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
