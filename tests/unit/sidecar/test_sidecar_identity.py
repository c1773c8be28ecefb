"""Which certificate a sidecar begins with: the one it kept, unless its token is of another identity or mesh."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    CertificateFiles,
    Credential,
    Grants,
    Identity,
    JoinToken,
    Kind,
    Profile,
    finish_root,
    mint,
    new_key_and_csr,
    prepare_root,
    profile_folder,
    switch_root,
)
from antiphon_sidecar.config import AgentConfig, Config
from antiphon_sidecar.identity import IdentityError, Place, locate

EDGE = Identity("mesh.test", "team-a", Kind.SIDECAR, "edge")
GRANTS = Grants(("hello",), ("hello.*",))
ADDRESS = ("127.0.0.1:1",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority.init(tmp_path / "ca", "mesh.test")
    return tmp_path / "ca"


def token(authority: Authority, grants: Grants = GRANTS) -> JoinToken:
    text, _ = mint(
        EDGE,
        grants,
        timedelta(minutes=1),
        root_pem=authority.root_pem,
        addresses=ADDRESS,
        join_addresses=("127.0.0.1:2",),
        now=datetime.now(UTC),
    )
    return JoinToken.parse(text)


def joined(
    state: Path,
    authority: Authority,
    by: JoinToken,
    *,
    lifetime: timedelta = timedelta(hours=1),
    grants: Grants = GRANTS,
) -> Credential:
    """What a join leaves in the state folder."""
    key, request = new_key_and_csr(EDGE)
    home = profile_folder("sidecar", {"ANTIPHON_HOME": str(state)})
    Profile(home, by.addresses, by.join_addresses, "mesh.test", "team-a", by.token_id).save()
    chain = authority.issue(request, EDGE, lifetime, grants)
    return CertificateFiles(home / "credential").store(key, chain, authority.bundle_pem)


def place(state: Path, given: JoinToken | None) -> Place:
    return locate(Config(token=given.text() if given else None, state=state), {})


def test_the_token_that_was_used_fits_also_when_its_root_has_been_replaced_since(folder: Path, tmp_path: Path) -> None:
    state, before = tmp_path / "state", Authority.load(folder)
    used, unused = token(before), token(before)
    joined(state, before, used)
    prepare_root(folder)
    switch_root(folder, force=True)
    finish_root(folder, force=True)
    kept = joined(state, Authority.load(folder), used)  # as it renews
    assert place(state, used).stored() == kept
    assert place(state, None).stored() == kept
    # One that was never used, with a root that is not trusted, may be of another mesh: it has to be joined with.
    assert place(state, unused).stored() is None
    assert place(state, token(Authority.load(folder))).stored() == kept


def test_a_token_with_other_grants_is_for_another_certificate(folder: Path, tmp_path: Path) -> None:
    authority, state = Authority.load(folder), tmp_path / "state"
    joined(state, authority, token(authority))
    wider = place(state, token(authority, Grants(("hello",), ("*",))))
    assert wider.stored() is None and wider.kept() is None


def test_an_expired_certificate_is_kept_but_not_begun_with(folder: Path, tmp_path: Path) -> None:
    authority, state = Authority.load(folder), tmp_path / "state"
    used = token(authority)
    kept = joined(state, authority, used, lifetime=timedelta(microseconds=1))
    for given in (used, None):
        there = place(state, given)
        assert there.stored() is None and there.kept() == kept
        assert there.join_addresses == ("127.0.0.1:2",)


def test_a_revoked_certificate_that_is_forgotten_is_not_there_at_the_next_start(folder: Path, tmp_path: Path) -> None:
    authority, state = Authority.load(folder), tmp_path / "state"
    joined(state, authority, token(authority))
    place(state, None).forget()
    assert place(state, None).kept() is None
    again = joined(state, authority, token(authority))
    assert place(state, None).stored() == again


def test_of_several_states_the_only_one_that_may_stand_beside_the_configured_agents_is_taken(
    folder: Path, tmp_path: Path
) -> None:
    authority, home = Authority.load(folder), tmp_path / "home"
    base, environ = home / "sidecars", {"ANTIPHON_HOME": str(home)}
    for name, agents in {"planner": ("planner", "critic"), "scribe": ("scribe",), "second": ("scribe", "x*")}.items():
        joined(base / name, authority, token(authority), grants=Grants(agents, ("*",)))
    (base / "empty").mkdir()

    def state(*names: str) -> Path | None:
        return locate(Config(agents=tuple(AgentConfig(name) for name in names)), environ).state

    assert state("planner") == state("critic", "planner") == base / "planner"
    assert locate(Config(agent="xy"), environ).state == base / "second"
    for names, said in {
        ("scribe",): "one of scribe, second",
        ("planner", "scribe"): "one of empty, planner, scribe, second",
        (): "one of empty, planner, scribe, second",
    }.items():
        with pytest.raises(IdentityError, match=f"give --state {base}/NAME, {said}$"):
            state(*names)
