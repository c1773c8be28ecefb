"""The reader of profiles and credential folders agrees with the package that writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from antiphon import Credentials, SetupError
from antiphon._credentials import SERVER_NAME, load_profile
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Authority, CertificateFiles, Profile, profile_folder

from tests.fakes.orchestrator import DOMAIN, credential


def test_the_server_name_is_that_of_every_orchestrator() -> None:
    assert SERVER_NAME == ORCHESTRATOR_DNS_NAME


@pytest.mark.parametrize("environ", [{}, {"ANTIPHON_PROFILE": "work"}])
def test_a_profile_is_found_where_it_was_written(tmp_path: Path, environ: dict[str, str]) -> None:
    environ = {**environ, "ANTIPHON_HOME": str(tmp_path)}
    written = Profile(profile_folder(None, environ), ("one:1", "[::1]:2"), ("one:3",), DOMAIN, "team-a")
    written.save()
    made = credential(Authority.init(tmp_path / "ca", DOMAIN))
    written.credential.store(made.key_pem, made.chain_pem, made.bundle_pem)
    found = load_profile(None, environ)
    pem = found.credentials.read()
    assert found.addresses == ("one:1", "[::1]:2")
    assert (pem.key, pem.chain, pem.bundle) == (made.key_pem, made.chain_pem, made.bundle_pem)
    assert b"PRIVATE" not in repr(pem).encode()
    assert load_profile("work" if "ANTIPHON_PROFILE" in environ else "default", environ) == found


@pytest.mark.parametrize("text", ["addresses = 5", "addresses = []", "addresses = [1]", "= ", "other = 1"])
def test_a_broken_profile_says_what_to_do(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "profiles/default"
    folder.mkdir(parents=True)
    (folder / "profile.toml").write_text(text)
    with pytest.raises(SetupError, match=r"is not a profile: .*antiphon certs join"):
        load_profile(None, {"ANTIPHON_HOME": str(tmp_path)})


def test_what_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no profile 'default' in .*antiphon dev"):
        load_profile(None, {"ANTIPHON_HOME": str(tmp_path)})
    with pytest.raises(SetupError, match="inner hyphens"):
        load_profile("../etc", {"ANTIPHON_HOME": str(tmp_path)})
    with pytest.raises(SetupError, match="no certificate"):
        Credentials.from_folder(CertificateFiles(tmp_path / "none").folder).read()
    with pytest.raises(SetupError, match="cannot be read"):
        Credentials.from_files(tmp_path, tmp_path, tmp_path).read()
