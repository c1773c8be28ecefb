"""What the robustness tests share: long forms, the checker of histories, and that a failure shows its seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.robustness.linearizable import PorcupineMissing, checker

LONG = os.environ.get("ANTIPHON_ROBUST") == "1"
"""Whether `make robust` runs."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long forms to `make robust`; they count as deselected, not as passed or skipped."""
    if LONG:
        return
    left_out = [item for item in items if item.get_closest_marker("long_form")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def porcupine() -> Path:
    """The checker of histories; without Go, which builds it, the test is not run, and in CI it fails."""
    try:
        return checker()
    except PorcupineMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"not run: {missing}", pytrace=False)
        pytest.skip(f"not run: {missing}")
