"""Every backend in turn, for the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from backends import Backend, EtcdBackend, SqliteBackend

from tests.harness.etcd import Etcd


@pytest.fixture
def embedded(tmp_path: Path) -> SqliteBackend:
    """An empty place of the embedded store, for what it alone does."""
    return SqliteBackend(tmp_path / "store.db")


@pytest.fixture(params=["sqlite", "etcd-debian", "etcd-current"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """An empty store's place."""
    kind: str = request.param
    if kind == "sqlite":
        yield request.getfixturevalue("embedded")
        return
    etcd: Etcd = request.getfixturevalue(kind.replace("-", "_"))
    yield EtcdBackend(etcd)
