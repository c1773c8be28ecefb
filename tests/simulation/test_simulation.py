"""Many small worlds, each from one seed. ANTIPHON_SEEDS=n runs n of them, ANTIPHON_SEED=k only that one."""

from __future__ import annotations

import os

import pytest

from tests.simulation.world import World

SEEDS = int(os.environ.get("ANTIPHON_SEEDS", "200"))
CHOSEN = os.environ.get("ANTIPHON_SEED")
BATCH = 20
"""Worlds in one test: few enough to say which failed, enough to keep the report short."""


def batches() -> list[list[int]]:
    if CHOSEN is not None:
        return [[int(CHOSEN)]]
    return [list(range(first, min(first + BATCH, SEEDS))) for first in range(0, SEEDS, BATCH)]


@pytest.mark.parametrize("seeds", batches(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_every_world_comes_to_its_end_and_nobody_was_told_anything_untrue(seeds: list[int]) -> None:
    for seed in seeds:
        try:
            World(seed).run(steps=1000)
        except Exception as error:
            error.add_note(f"reproduce with ANTIPHON_SEED={seed}")
            raise
