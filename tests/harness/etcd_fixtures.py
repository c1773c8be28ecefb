"""Fixtures for tests on etcd: one member of each release for all tests of a session, or a cluster of one's own.

They are there for all tests (tests/conftest.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from .etcd import Etcd, StartEtcd
from .etcd_binary import EtcdMissing


def start(**options: Any) -> Etcd:
    """`Etcd.start`; without its server the test is not run, and in CI it fails."""
    try:
        return Etcd.start(**options)
    except EtcdMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"not run: {missing}", pytrace=False)
        pytest.skip(f"not run: {missing}")


@pytest.fixture(scope="session")
def etcd_debian() -> Iterator[Etcd]:
    """One member of the oldest release that is supported, in plain text."""
    with start(tls=False, version="debian") as etcd:
        yield etcd


@pytest.fixture(scope="session")
def etcd_current() -> Iterator[Etcd]:
    """One member of the newest release, by TLS with client certificates."""
    with start() as etcd:
        yield etcd


@pytest.fixture(scope="module")
def etcd_three() -> Iterator[Etcd]:
    """Three members of the newest release by TLS, for a module whose tests leave them running."""
    with start(nodes=3) as etcd:
        yield etcd


@pytest.fixture
def start_etcd() -> Iterator[StartEtcd]:
    """Starts clusters that end with the test; takes what `Etcd.start` takes."""
    started: list[Etcd] = []

    def begin(**options: Any) -> Etcd:
        started.append(start(**options))
        return started[-1]

    yield begin
    for etcd in started:
        etcd.close()
