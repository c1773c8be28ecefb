"""Profiles: how a command knows who it is, and what it says when it does not."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from antiphon_certs import Authority, Credential, Identity, InvalidName, Profile, ProfileError, profile_folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ANTIPHON_HOME": str(tmp_path / "home")}


@pytest.fixture
def profile(environ: dict[str, str]) -> Profile:
    return Profile(
        profile_folder("work", environ), ("127.0.0.1:7443", "[::1]:7443"), ("127.0.0.1:7444",), "mesh.test", "team-a"
    )


def test_what_is_saved_is_loaded(profile: Profile, environ: dict[str, str]) -> None:
    profile.save()
    assert Profile.load("work", environ) == profile
    assert stat.S_IMODE((profile.folder / "profile.toml").stat().st_mode) == 0o600
    for folder in (profile.folder, profile.folder.parent, profile.folder.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    changed = replace(profile, namespace="team-b")
    changed.save()
    assert Profile.load("work", environ) == changed
    assert [path.name for path in profile.folder.iterdir()] == ["profile.toml"]


def test_the_argument_wins_over_the_environment_over_the_default(environ: dict[str, str]) -> None:
    assert profile_folder(None, environ).name == "default"
    environ["ANTIPHON_PROFILE"] = "work"
    assert profile_folder(None, environ).name == "work"
    assert profile_folder("home", environ).name == "home"


def test_the_home_folder_is_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_folder(None, {}) == tmp_path / ".antiphon" / "profiles" / "default"


def test_a_missing_profile_says_what_to_run(environ: dict[str, str]) -> None:
    with pytest.raises(ProfileError, match=r"no profile 'work'.*; run: antiphon certs join TOKEN --profile work$"):
        Profile.load("work", environ)


@pytest.mark.parametrize("name", ["../x", "a/b", "A", " "])
def test_a_name_cannot_leave_the_folder_of_profiles(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ProfileError):
        profile_folder(name, environ)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        'addresses = "127.0.0.1:1"\njoin_addresses = ["a:1"]\ntrust_domain = "a"\nnamespace = "b"',
        'addresses = []\njoin_addresses = ["a:1"]\ntrust_domain = "a"\nnamespace = "b"',
        'addresses = [1]\njoin_addresses = ["a:1"]\ntrust_domain = "a"\nnamespace = "b"',
        'addresses = ["nowhere"]\njoin_addresses = ["a:1"]\ntrust_domain = "a"\nnamespace = "b"',
        'addresses = ["a:1"]\njoin_addresses = ["a:1"]\ntrust_domain = "A"\nnamespace = "b"',
        'addresses = ["a:1"]\njoin_addresses = ["a:1"]\ntrust_domain = "a"\nnamespace = 1',
        b"\xff\xfe",
    ],
)
def test_a_damaged_profile_is_named_with_a_remedy(profile: Profile, environ: dict[str, str], text: str | bytes) -> None:
    profile.save()
    (profile.folder / "profile.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProfileError, match=r"profile\.toml is not a profile: .*antiphon certs join TOKEN"):
        Profile.load("work", environ)


def test_an_unreadable_profile_is_an_error_and_not_a_traceback(profile: Profile, environ: dict[str, str]) -> None:
    (profile.folder / "profile.toml").mkdir(parents=True)
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load("work", environ)


def test_values_that_could_break_the_file_are_refused(profile: Profile) -> None:
    with pytest.raises(InvalidName):
        replace(profile, namespace='a"\nb')


def test_a_profile_has_its_credential(
    profile: Profile, authority: Authority, sidecar: Identity, credential_for: Callable[..., Credential]
) -> None:
    credential = credential_for(authority, sidecar)
    profile.credential.store(credential.key_pem, credential.chain_pem, credential.bundle_pem)
    assert profile.credential.load() == credential
    assert profile.credential.folder.parent == profile.folder
