"""The agent without an SDK is short, is built from the contracts of this checkout, and passes `antiphon verify`."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from antiphon.verify.cases import ALL, Play
from antiphon.verify.playing import PASSED, verify
from antiphon.verify.stage import Stage

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/raw"
TARGET = ROOT / ".cache/raw-agent"
MOST_LINES = 100
BUILD = 1_800.0  # seconds: everything that tonic needs, on a machine that has other things to do


def not_run(why: str) -> None:
    """In CI everything is run."""
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(f"not run: {why}")


@pytest.fixture(scope="module")
def program() -> Path:
    """Build it; crates come from where cargo is told to get them."""
    cargo = shutil.which("cargo")
    if cargo is None:
        not_run("cargo is missing; install Rust 1.77 or newer")
    done = subprocess.run(
        [str(cargo), "build", "--locked", "--quiet"],
        cwd=FOLDER,
        env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)},
        capture_output=True,
        text=True,
        timeout=BUILD,
    )
    if done.returncode and "failed to download" in done.stderr:
        not_run("its crates cannot be downloaded")
    assert done.returncode == 0, done.stderr
    return TARGET / "debug/raw-agent"


def test_it_passes_every_case(program: Path) -> None:
    stage = Stage([str(program)], patience=10.0, boot=10.0)
    report = asyncio.run(verify(Play(stage, seed=11), ALL))
    assert {case.name: case.seen for case in report.cases if case.outcome != PASSED} == {}
    assert report.complete and report.agent == "shouter" and report.runtime == "rust"


def test_it_is_one_short_file_that_knows_stubs_alone() -> None:
    (source,) = FOLDER.glob("src/*")
    assert len(source.read_text().splitlines()) < MOST_LINES
    assert "antiphon" not in (FOLDER / "Cargo.toml").read_text().lower().replace("an antiphon agent", "")
