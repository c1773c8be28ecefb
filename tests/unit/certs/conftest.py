"""A real authority, made once, and the ways tests get certificates from it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import Authority, Credential, Grants, Identity, Kind, new_key_and_csr

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def now() -> datetime:
    """The present of every test that does not open a connection."""
    return NOW


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority of trust domain `mesh.test` that is valid at `now`, and today."""
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test", now=NOW)


@pytest.fixture(scope="session")
def sidecar() -> Identity:
    """The identity most tests use."""
    return Identity("mesh.test", "team-a", Kind.SIDECAR, "edge-1")


@pytest.fixture(scope="session")
def credential_for() -> Callable[..., Credential]:
    """`credential_for(authority, identity, grants, ttl=, now=)` makes a key, has it signed and returns the whole."""

    def make(
        authority: Authority,
        identity: Identity,
        grants: Grants | None = None,
        *,
        ttl: timedelta = timedelta(hours=1),
        now: datetime | None = NOW,
    ) -> Credential:
        key_pem, csr_pem = new_key_and_csr(identity)
        chain_pem = authority.issue(csr_pem, identity, ttl, grants, now=now)
        return Credential.from_pem(key_pem, chain_pem, authority.bundle_pem)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "new"
