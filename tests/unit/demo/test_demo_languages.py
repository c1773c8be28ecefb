"""Which language an agent of the demo runs in: what cannot be built runs in Python, with one line of why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from antiphon_orchestrator.demo.languages import PROGRAMS, TWINS, choose, python

BUILDERS = {
    "import json, sys; print(json.dumps(['run', sys.argv[1]]))": None,
    "import sys; print('go is missing; install it'); sys.exit(3)": "go is missing; install it",
    "import sys; sys.exit('first\\n\\nthe last word\\n')": "it cannot be built: the last word",
    "import sys; sys.exit(1)": "it cannot be built: it said nothing",
}


def checkout(folder: Path, builder: str) -> Path:
    """The folder of the programs, in a checkout whose builder is this program."""
    programs = folder / "examples/compliance"
    programs.mkdir(parents=True)
    if builder:
        (folder / "tools").mkdir()
        (folder / "tools/agents.py").write_text(builder)
    return programs


@pytest.mark.parametrize(("builder", "why"), BUILDERS.items(), ids=["built", "missing", "failed", "silent"])
async def test_a_twin_is_taken_when_it_is_built_and_python_otherwise(
    builder: str, why: str | None, tmp_path: Path
) -> None:
    programs = checkout(tmp_path, builder)
    chosen = await choose(programs, tmp_path)
    assert chosen.keys() == PROGRAMS.keys()
    assert chosen["inventory"] == python(programs)["inventory"]
    for agent, (_, source) in TWINS.items():
        if why is None:
            assert chosen[agent].command == ("run", str(programs / source)) and not chosen[agent].why_not
        else:
            assert chosen[agent].command == (sys.executable, str(programs / PROGRAMS[agent]))
            assert chosen[agent].why_not.startswith(why) and "\n" not in chosen[agent].why_not


async def test_what_is_installed_without_a_checkout_runs_in_python(tmp_path: Path) -> None:
    chosen = await choose(checkout(tmp_path, ""), tmp_path)
    assert {chosen[agent].why_not for agent in TWINS} == {"it is built in a checkout alone"}
