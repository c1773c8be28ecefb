"""Which language each agent of the demo is run in that has a twin: its own where that can be built, else Python.

Twins are built by the checkout (its tools/agents.py, run as a program): what is installed never needs it. A
language that cannot be had here is no failure of the demo, and is told in one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BUILDER = "tools.agents"
_MISSING = 3
"""How the builder says that a toolchain is not there."""
_LONGEST = 240.0
_REASON = 160
PROGRAMS = {"inventory": "inventory.py", "classifier": "classify.py", "reporter": "report.py"}
"""Agents that their sidecar starts, in Python."""
TWINS = {"classifier": ("TypeScript", "classify.mts"), "reporter": ("Go", "report.go")}
"""Agents that there are in another language, too."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How an agent is started."""

    command: tuple[str, ...]
    why_not: str = ""
    """Why it is not in the language of its twin; empty when it is, when it has none, and when Python was asked for."""


def python(programs: Path) -> dict[str, Choice]:
    """Every agent in Python."""
    return {agent: Choice((sys.executable, str(programs / name))) for agent, name in PROGRAMS.items()}


async def choose(programs: Path, folder: Path) -> dict[str, Choice]:
    """Build the twins, or find them built; `folder` gets a log of each. `programs`: examples/compliance."""
    chosen = python(programs)
    twins = await asyncio.gather(
        *(_built(source, folder / f"build-of-{agent}.log") for agent, source in _sources(programs).items())
    )
    for agent, found in zip(TWINS, twins, strict=True):
        chosen[agent] = Choice(chosen[agent].command, found) if isinstance(found, str) else Choice(tuple(found))
    return chosen


def _sources(programs: Path) -> dict[str, Path]:
    """Where they really are: in a checkout the folder of the programs is a link to the examples."""
    return {agent: (programs / name).resolve() for agent, (_, name) in TWINS.items()}


async def _built(source: Path, log: Path) -> Sequence[str] | str:
    """The command of the program, or in one line why there is none."""
    root = source.parents[2]
    if not _is_checkout(root):
        return "it is built in a checkout alone"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _BUILDER, str(source)),
            cwd=root,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(_LONGEST):
            said, _ = await process.communicate()
    except TimeoutError:
        return f"it was not built within {_LONGEST:.0f} s"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers it has started
            await process.wait()
    if process.returncode == 0:
        command: list[str] = json.loads(said)
        return command
    if process.returncode == _MISSING:
        return said.decode("utf-8", "replace").strip()
    whole = f"python -m {_BUILDER} {source.relative_to(root)}"
    return f"it cannot be built: {_last_line(log)} (all that is wrong: {whole})"


def _is_checkout(root: Path) -> bool:
    return root.joinpath(*_BUILDER.split(".")).with_suffix(".py").is_file()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:_REASON] if lines else "it said nothing"
