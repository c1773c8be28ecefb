"""Joining and renewing as the commands do, where some of the addresses take connections and say nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon import RetryableError
from antiphon.cli.identity import join, renew_when_due
from antiphon.cli.problems import Problem
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


async def test_a_profile_is_joined_again_by_its_own_identity_alone(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_HOME", str(tmp_path))
    async with mesh.operator() as operator:
        mine, mine_again, others = [
            JoinToken.parse((await operator.create_token("client", name)).token) for name in ("web", "web", "other")
        ]
    await join(mine, "web")
    profile, credential = await join(mine_again, "web")
    with pytest.raises(Problem, match=r"client/web, and the token is for .*client/other") as caught:
        await join(others, "web")
    assert "--profile NAME" in caught.value.remedy
    assert profile.credential.load() == credential
    joined, _ = await join(others, "other")  # its token is not spent
    late = mesh.ca.issue(Kind.CLIENT, "web", lifetime=HOUR, now=datetime.now(UTC) - 2 * HOUR)
    joined.credential.store(*late)
    async with mesh.operator() as operator:
        third = JoinToken.parse((await operator.create_token("client", "third")).token)
    await join(third, "other")  # nobody could use what was there


def test_who_asks_the_join_listener_for_a_token_is_told_which_one_is_meant(mesh: Mesh, tmp_path: Path) -> None:
    at = ("--authority", str(mesh.ca.folder), "--address", mesh.orchestrator.join_address)
    command = [sys.executable, "-m", "antiphon.command", "certs", "token", *at, "--kind", "operator", "--name", "olga"]
    environ = {**os.environ, "ANTIPHON_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert "this is the listener for joining" in done.stderr and "call that of `listen` (mutual TLS" in done.stderr


def test_what_is_proposed_after_a_join_and_a_revocation_is_for_the_same_profile(mesh: Mesh, tmp_path: Path) -> None:
    environ = {**os.environ, "ANTIPHON_HOME": str(tmp_path)}

    def antiphon(*words: str, **given: str) -> str:
        command = [sys.executable, "-m", "antiphon.command", *words]
        done = subprocess.run(command, env={**environ, **given}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    at = ("--authority", str(mesh.ca.folder), "--address", mesh.orchestrator.address, "--namespace", NAMESPACE)
    token = antiphon("certs", "token", *at, "--kind", "operator", "--name", "ada").split()[0]
    assert antiphon("certs", "join", "--profile", "operator", ANTIPHON_TOKEN=token).endswith(
        "Next: antiphon agent list --profile operator\n"
    )
    asked = ("--kind", "sidecar", "--name", "edge", "--agent", "worker", "--capability", "*")
    token = antiphon("certs", "token", "--profile", "operator", *asked).split()[0]
    next_step = antiphon("certs", "join", "--profile", "edge", ANTIPHON_TOKEN=token).partition("Next: ")[2]
    assert f"in {tmp_path}/profiles/edge/credential/current as [identity] of the sidecar" in next_step
    assert "antiphon certs renew --profile edge\n" in next_step and "antiphon sidecar run --token" in next_step
    revoke = ("certs", "revoke", "--profile", "operator", "--kind", "sidecar", "--name", "edge-9", "--cause", "stolen")
    said = antiphon(*revoke)
    assert "Whether there is one is not known: see that the name is spelt right." in said, "nobody is called edge-9"
    assert said.endswith(
        "antiphon certs token --profile operator --kind sidecar --name edge-9 --agent NAME --capability PATTERN\n"
    )
