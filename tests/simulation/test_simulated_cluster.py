"""Whole clusters, each from one seed, in processes of their own: clock and chance of the real code are replaced there.

ANTIPHON_ROBUST=1 plays twenty times as many. What went wrong is printed with the command that plays it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = 10_000 if os.environ.get("ANTIPHON_ROBUST") == "1" else 500
BATCH = 125
"""Worlds in one process: enough for its start not to count."""


def simulate(*arguments: str) -> str:
    """What the simulation has printed. Fails when it found anything, or said anything else than how it went."""
    command = [sys.executable, "-W", "error", "-m", "tests.simulation.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.proves(
    "sidecar dies",
    "runs beneath tasks, whatever breaks",
    "several agents for one task, whatever breaks",
    "undoing, whatever breaks",
    "steering, whatever breaks",
    "limits of policy and takeovers",
    "poison task",
)
@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_cluster_breaks_a_promise_whatever_befalls_it(first: int) -> None:
    assert f"{BATCH} worlds" in simulate("--seeds", f"{first}:{first + BATCH}")


def test_a_seed_plays_the_same_again_alone_or_among_others() -> None:
    def steps(*arguments: str) -> int:
        return int(simulate(*arguments).rpartition("worlds, ")[2].partition(" steps")[0])

    together = steps("--seeds", "40:60")
    assert steps("--seeds", "40:60") == together
    assert steps("--seeds", "40:50") + steps("--seeds", "50:60") == together


def test_every_planted_fault_is_found() -> None:
    printed = simulate("--find")
    assert "NOT FOUND" not in printed
    assert len(printed.splitlines()) >= 30


def test_a_seed_plays_the_same_again() -> None:
    # What follows the steps is how long they took, and how the world was cleared away.
    once, again = (simulate("--seed", "3", "--trace").partition("1 worlds, ")[0].splitlines() for _ in range(2))
    assert len(once) > 20
    assert once == again
