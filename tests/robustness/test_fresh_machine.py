"""A machine that never saw the checkout: both wheels in a new environment, and what a newcomer does with them.

Only in the long form: everything is built and installed anew. The server's wheel is built without compiled code, which
tests/compiled is about.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, eventually

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 900.0

pytestmark = pytest.mark.long_form


class Machine:
    """A home and an environment, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANTIPHON_", "PYTHON"))}
        self.programs = folder / "environment/bin"
        self.environ = {**kept, "HOME": str(folder), "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}
        self.processes: list[Process] = []

    def run(self, *words: str, folder: str = "", **variables: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder / folder, env={**self.environ, **variables}, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    async def stay(self, sign: str, *words: str, folder: str = "", **variables: str) -> None:
        """Start something that stays, and wait until it says the sign."""
        process = Process(f"stays-{len(self.processes)}", self.folder)
        self.processes.append(process)
        process.spawn(["env", "-C", str(self.folder / folder), *words], {**self.environ, **variables})

        def said() -> bool:
            assert process.alive, process.said()
            return sign in process.said()

        await eventually(said, limit=LIMIT)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    for project in (ROOT / "sdk/python", ROOT):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels")],
            cwd=project, env={**os.environ, "HATCH_BUILD_NO_HOOKS": "true"}, check=True, capture_output=True,
        )  # fmt: skip
    venv.create(tmp_path / "environment", with_pip=True)
    wheels = map(str, (tmp_path / "wheels").iterdir())
    made.run("pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *wheels)
    yield made
    for process in reversed(made.processes):
        process.term(60)


async def test_what_a_newcomer_does_works_without_the_checkout(machine: Machine) -> None:
    where = machine.run("python", "-c", "import antiphon_orchestrator as one, antiphon as two; print(one, two)")
    assert str(ROOT) not in where
    assert "antiphon dev" in machine.run("antiphon", "dev", "--help") and machine.run("antiphon", "--help")
    await machine.stay("Ctrl-C stops it", "antiphon", "dev", "--port", "0")
    machine.run("antiphon", "new", "agent", "hello")
    grants = ("--name", "edge", "--agent", "hello", "--capability", "hello.*")
    token = machine.run("antiphon", "certs", "token", "--profile", "operator", "--kind", "sidecar", *grants).strip()
    sidecar = ("antiphon", "sidecar", "run", "--config", "sidecar.toml")
    await machine.stay("agent present", *sidecar, folder="hello", ANTIPHON_TOKEN=token)
    said = machine.run("antiphon", "run", "submit", "hello/graph.yaml", "--input", '{"name": "Ada"}', "--wait")
    assert json.loads(said) == {"greet": {"text": "Hello, Ada!"}}
    assert " passed; seed" in machine.run("antiphon", "verify", "--", "python", "agent.py", folder="hello")
