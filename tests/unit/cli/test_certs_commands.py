"""The commands that need no network: making an authority, and showing a profile."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon_certs import Authority, Identity, Kind, Profile, new_key_and_csr, profile_folder

from tests.unit.cli.conftest import Command


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "authority", "mesh.test")


def make_profile(authority: Authority, ttl: timedelta = timedelta(hours=1)) -> Profile:
    identity = Identity("mesh.test", "team-a", Kind.OPERATOR, "ada")
    key_pem, csr_pem = new_key_and_csr(identity)
    profile = Profile(profile_folder(), ("127.0.0.1:1",), ("127.0.0.1:2",), "mesh.test", "team-a")
    profile.credential.store(key_pem, authority.issue(csr_pem, identity, ttl=ttl), authority.bundle_pem)
    profile.save()
    return profile


def test_init_makes_an_authority_and_says_what_comes_next(command: Command) -> None:
    shown = command("certs", "init", "--dir", "ca", "--trust-domain", "mesh.example")
    assert shown.code == 0 and shown.out == "ca\n"
    assert Authority.load(Path("ca")).trust_domain == "mesh.example"
    assert "root.key" in shown.err
    assert "  antiphon orchestrator serve --authority ca --policy-profile dev\n" in shown.err
    joining = (
        "antiphon certs token --authority ca --kind operator --name you | antiphon certs join - --profile operator"
    )
    assert f"  {joining}\n" in shown.err


def test_a_profile_that_is_missing_is_made_by_what_is_proposed(command: Command) -> None:
    shown = command("certs", "show", "--profile", "nobody")
    assert shown.code == 2 and shown.err.endswith("; run: antiphon certs join TOKEN --profile nobody\n")
    shown = command("run", "list")
    assert shown.code == 2 and shown.err.endswith("; run: antiphon dev  or  antiphon certs join TOKEN\n")


def test_init_overwrites_nothing(command: Command) -> None:
    command("certs", "init", "--dir", "ca")
    shown = command("certs", "init", "--dir", "ca")
    assert shown.code == 2 and "already holds" in shown.err


def test_init_speaks_to_programs(command: Command) -> None:
    told = json.loads(command("certs", "init", "--dir", "ca", "--json").out)
    assert told == {
        "folder": "ca",
        "trust_domain": "antiphon.local",
        "root_fingerprint": Authority.load(Path("ca")).root_fingerprint,
    }


def test_show_tells_who_the_profile_is(command: Command, authority: Authority) -> None:
    make_profile(authority)
    shown = command("certs", "show")
    assert shown.code == 0
    assert "spiffe://mesh.test/ns/team-a/operator/ada" in shown.out and "min" in shown.out
    assert json.loads(command("certs", "show", "--json").out)["addresses"] == ["127.0.0.1:1"]


def test_an_expired_profile_is_told_so_before_anybody_is_called(command: Command, authority: Authority) -> None:
    make_profile(authority, ttl=timedelta(microseconds=1))
    shown = command("agent", "list")
    assert shown.code == 2 and "expired at" in shown.err and "antiphon certs join TOKEN" in shown.err


def test_a_sidecar_token_must_say_what_it_allows(command: Command, authority: Authority) -> None:
    make_profile(authority)
    shown = command("certs", "token", "--kind", "sidecar", "--name", "edge")
    assert shown.code == 2 and "--capability" in shown.err


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(command: Command, authority: Authority) -> None:
    make_profile(authority)
    shown = command("certs", "token", "--kind", "clint", "--name", "me")
    assert shown.code == 2 and shown.err.count("\n") == 1 and "sidecar or client or operator" in shown.err


def test_an_unreachable_orchestrator_is_one_line(command: Command, authority: Authority) -> None:
    make_profile(authority)
    shown = command("run", "get", "r-1")
    assert shown.code == 2
    assert shown.err.count("\n") == 1 and "is it running" in shown.err


def test_a_token_that_is_none_is_refused_before_anybody_is_called(command: Command) -> None:
    shown = command("certs", "join", "nonsense")
    assert shown.code == 2 and "not a join token" in shown.err


def test_a_rotation_says_how_far_it_is_what_to_copy_and_when_to_go_on(command: Command) -> None:
    command("certs", "init", "--dir", "ca")
    assert "settled" in command("certs", "rotate", "--dir", "ca").out
    shown = command("certs", "rotate", "prepare", "--dir", "ca")
    assert shown.code == 0 and "prepared" in shown.out
    assert "bundle.pem" in shown.err and "antiphon certs rotate switch --dir ca" in shown.err
    early = command("certs", "rotate", "switch", "--dir", "ca")
    assert early.code == 2 and "wait until" in early.err and "--force" in early.err
    told = json.loads(command("certs", "rotate", "switch", "--dir", "ca", "--force", "--json").out)
    assert told["step"] == "switched" and len(told["roots"]) == 2 and told["next_time"]
    assert told["roots"][0] == Authority.load(Path("ca")).root_fingerprint
    assert command("certs", "rotate", "finish", "--dir", "ca", "--force").code == 0
    assert json.loads(command("certs", "rotate", "--dir", "ca", "--json").out)["roots"] == told["roots"][:1]


def test_a_rotation_knows_four_words(command: Command) -> None:
    shown = command("certs", "rotate", "swap")
    assert shown.code == 2 and "prepare, switch or finish" in shown.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--name", "edge"),
        ("--kind", "robot", "--name", "edge"),
        ("--kind", "sidecar", "--name", "edge", "--serial", "1f"),
    ],
)
def test_what_is_to_be_revoked_is_said_in_one_way(command: Command, words: tuple[str, ...]) -> None:
    shown = command("certs", "revoke", "--cause", "lost", *words)
    assert shown.code == 2 and "--serial HEX" in shown.err
