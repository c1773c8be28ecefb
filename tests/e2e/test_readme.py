"""Every console block of the README and of docs/ is run as it stands, with real processes, in a home of its own.

A block is a script for bash; lines that begin with `$ ` are its commands, the others are what it must print, in that
order. "console stays" marks one whose last command stays in the foreground: it runs until the end of the test. A
page's blocks run in order; those above its first journey start the mesh. Blocks in `sh` are the two commands of make,
which other tests and the continuous integration run.

So that tests do not meet in a port, `antiphon dev` gets `--port 0`, an orchestrator's listeners get free ones, and the
ports that examples listen on are exchanged for free ones, in commands, in what they print and in a copy of the
examples. A page that speaks of PostgreSQL on localhost finds one there, at a port of its own. Nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RequireTool
from tests.harness.ports import free_ports
from tests.harness.postgres import PASSWORD, USER, Postgres, find
from tests.harness.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console( stays)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LIMIT = 120.0
PORTS = {"8080": "http.server in service.py", "9000": "http.server in counter.py"}
MESH = "antiphon dev"
SERVE = "antiphon orchestrator serve"
DATABASE = "@localhost/"


@dataclass(frozen=True)
class Block:
    """One block: its commands, what they must print, and whether the last of them stays."""

    commands: tuple[str, ...]
    printed: tuple[str, ...]
    stays: bool


def blocks(text: str) -> list[Block]:
    found = []
    for stays, body in BLOCK.findall(text):
        lines = body.splitlines()
        commands = tuple(line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        found.append(Block(commands, tuple(line for line in lines if not line.startswith("$ ")), bool(stays)))
    return found


def journeys() -> dict[str, list[Block]]:
    """By heading for the README, by file for the rest: each begins with what starts the mesh."""
    parts = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    by_heading = {part.partition("\n")[0]: blocks(part) for part in parts[1:]}
    start = by_heading.pop("See it work")
    found = {heading: start + steps for heading, steps in by_heading.items() if steps}
    # Calling from a service needs the agent of the journey before it.
    agent = [block for block in by_heading["Write an agent"] if block.stays]
    found["Call it from another service"] = start + agent + by_heading["Call it from another service"]
    for page in sorted((ROOT / "docs").glob("*.md")):
        if steps := blocks(page.read_text()):
            found[f"docs/{page.name}"] = start + steps
    return found


class Terminal:
    """A user's home, a copy of the examples, and the processes that stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres: Postgres | None = None
        shutil.copytree(ROOT / "examples", folder / "examples")
        self.ports = {port: str(other) for port, other in zip(PORTS, free_ports(len(PORTS)), strict=True)}
        for path in (folder / "examples").rglob("*.*"):
            if path.suffix in (".py", ".toml"):
                path.write_text(self.exchanged(path.read_text()))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANTIPHON_", "XDG_"))}
        path_ = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environ = {**kept, "HOME": str(folder), "PATH": path_}
        self.staying: list[tuple[subprocess.Popen[bytes], Path]] = []

    def exchanged(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(port, free)
        if self.postgres is not None:
            text = text.replace(DATABASE, f"@{self.postgres.address}/")
        return text

    def bring_database(self) -> None:
        """A server for whoever says localhost, and its programs, which know where it is and who may."""
        self.postgres = Postgres().__enter__()
        programs = f"{Path(str(find('pg_dump'))).parent}{os.pathsep}{self.environ['PATH']}"
        host, _, port = self.postgres.address.partition(":")
        self.environ |= {"PATH": programs, "PGHOST": host, "PGPORT": port, "PGUSER": USER, "PGPASSWORD": PASSWORD}

    def run(self, block: Block) -> None:
        script = self.exchanged("set -euo pipefail\n" + "\n".join(block.commands))
        expected = [self.exchanged(line) for line in block.printed]
        if block.stays:
            self._start(own_ports(script), [line.replace("7443", "") for line in expected])
            return
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}{self.logs()}"
        assert not missing(expected, done.stdout), f"{script}\nprinted\n{done.stdout}"

    def _start(self, script: str, expected: list[str]) -> None:
        log = self.folder / f"stays-{len(self.staying)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=self.environ, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.staying.append((process, log))
        self.waiting = (log, expected)

    async def settled(self) -> None:
        """What was started last has printed what it must, and nothing that stays has ended."""
        log, expected = self.waiting

        def printed() -> bool:
            for process, own in self.staying:
                assert process.poll() is None, f"it did not stay:\n{own.read_text()}{self.logs()}"
            return not missing(expected, log.read_text())

        await eventually(printed)

    def logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{log.read_text()}" for _, log in self.staying)

    def close(self) -> None:
        self._end()
        if self.postgres is not None:
            self.postgres.close()

    def _end(self) -> None:
        for process, _ in reversed(self.staying):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def own_ports(script: str) -> str:
    listeners = "--listen 127.0.0.1:0 --join-listen 127.0.0.1:0"
    return script.replace(MESH, f"{MESH} --port 0").replace(SERVE, f"{SERVE} {listeners}")


def missing(expected: list[str], printed: str) -> list[str]:
    """Lines that were not printed, or not in that order; a line may go on."""
    position = 0
    for place, line in enumerate(expected):
        found = printed.find(line, position)
        if found < 0:
            return expected[place:]
        position = found + len(line)
    return []


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("journey", journeys())
async def test_what_the_pages_show_works_as_it_stands(
    journey: str, terminal: Terminal, require_tool: RequireTool
) -> None:
    if any(DATABASE in command for block in journeys()[journey] for command in block.commands):
        require_tool("initdb", package="postgresql")
        terminal.bring_database()
    for block in journeys()[journey]:
        terminal.run(block)
        if block.stays:
            await terminal.settled()


def test_the_agent_in_the_readme_is_the_example() -> None:
    shown = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown[0] in (ROOT / "examples/hello_agent/agent.py").read_text()


def test_the_three_journeys_are_there() -> None:
    assert {"Write an agent", "Call it from another service", "Put a sidecar beside an existing process"} <= set(
        journeys()
    )


def test_every_link_of_the_pages_leads_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("examples/*/*.md"),
    ]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)\)", CODE.sub("", page.read_text()))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []
