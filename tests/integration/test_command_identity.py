"""Joining and renewing as the commands do, where some of the addresses take connections and say nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon import RetryableError
from antiphon.cli.identity import join, renew_when_due
from antiphon_certs import JoinToken, Kind, Profile, profile_folder

from tests.harness import Mesh
from tests.harness.authority import DOMAIN, NAMESPACE

pytest_plugins = ("tests.harness.fixtures",)

HOUR = timedelta(hours=1)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address at which connections are taken, and nothing is said; patience is short."""
    monkeypatch.setattr("antiphon.cli.identity._EACH", 0.5)
    monkeypatch.setattr("antiphon.cli.identity._PATIENCE", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def due(home: Path, mesh: Mesh, addresses: tuple[str, ...], left: timedelta) -> Profile:
    """A profile whose certificate of one hour ends in that time."""
    profile = Profile(profile_folder("web", {"ANTIPHON_HOME": str(home)}), addresses, addresses, DOMAIN, NAMESPACE)
    profile.credential.store(*mesh.ca.issue(Kind.CLIENT, "web", lifetime=HOUR, now=datetime.now(UTC) + left - HOUR))
    profile.save()
    return profile


async def test_a_renewal_does_not_wait_for_an_address_that_is_silent(
    mesh: Mesh, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_HOME", str(tmp_path))
    profile = due(tmp_path, mesh, (silent, mesh.orchestrator.address), timedelta(minutes=20))
    old = profile.credential.load()
    await renew_when_due("web")
    assert profile.credential.load().not_before > old.not_before


async def test_a_certificate_that_holds_is_used_where_nobody_answers(
    mesh: Mesh, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_HOME", str(tmp_path))
    profile = due(tmp_path, mesh, (silent,), timedelta(minutes=20))
    old = profile.credential.load()
    await renew_when_due("web")
    assert profile.credential.load() == old
    due(tmp_path, mesh, (silent,), timedelta(seconds=2.5))
    with pytest.raises(RetryableError):
        await renew_when_due("web")


async def test_a_join_does_not_wait_for_an_address_that_is_silent(
    mesh: Mesh, silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_HOME", str(tmp_path))
    async with mesh.operator() as operator:
        token = JoinToken.parse((await operator.create_token("client", "new")).token)
    profile, credential = await join(replace(token, join_addresses=(silent, *token.join_addresses)), "new")
    assert profile.credential.load() == credential
