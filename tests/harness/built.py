"""Agents in Go and TypeScript, built; tests that ask for one are not run without its toolchain, and in CI fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import agents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built() -> Callable[[str], list[str]]:
    """Answers the command of the agent in a source, which is named from the root of the checkout."""

    def build(source: str) -> list[str]:
        try:
            return agents.built(ROOT / source)
        except agents.Missing as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(f"not run: {error}")

    return build
