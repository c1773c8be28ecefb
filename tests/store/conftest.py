"""Every backend in turn, for the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from backends import Backend, SqliteBackend


@pytest.fixture(params=[SqliteBackend])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty store's place."""
    made: Backend = request.param(tmp_path / "store.db")
    return made
