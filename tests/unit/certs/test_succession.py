"""A root is replaced in three steps, and at no moment is somebody cut off who renewed in time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    AuthorityError,
    Credential,
    Identity,
    RotationError,
    StatementError,
    Step,
    finish_root,
    prepare_root,
    sign,
    succession_of,
    switch_root,
    verify_statement,
)

Issue = Callable[..., Credential]
HOUR = timedelta(hours=1)
OVERLAP = timedelta(hours=1, minutes=5)


def trusts(bundle_pem: bytes, credential: Credential, moment: datetime) -> bool:
    """Whether somebody with these roots believes the certificate."""
    try:
        verify_statement(b"x", sign(credential, b"x"), credential.chain_pem, bundle_pem, moment)
    except StatementError:
        return False
    return True


def test_each_step_is_trusted_by_whoever_renewed_since_the_one_before(
    folder: Path, now: datetime, sidecar: Identity, credential_for: Issue
) -> None:
    before = Authority.init(folder, "mesh.test", now=now)
    first = credential_for(before, sidecar, now=now)
    prepare_root(folder, now=now)
    prepared = Authority.load(folder)
    assert prepared.root_pem == before.root_pem and prepared.bundle_pem.count(b"BEGIN") == 2
    later = now + OVERLAP
    second = credential_for(prepared, sidecar, now=later)
    switch_root(folder, now=later)
    switched = Authority.load(folder)
    third = credential_for(switched, sidecar, now=later)
    for credential in (second, third):
        assert trusts(prepared.bundle_pem, credential, later) and trusts(switched.bundle_pem, credential, later)
    assert not trusts(before.bundle_pem, third, later), "who never renewed cannot know the new root"
    assert switched.root_pem == load_first(switched.bundle_pem)
    later += OVERLAP
    finish_root(folder, now=later)
    finished = Authority.load(folder)
    fourth = credential_for(finished, sidecar, now=later)
    assert trusts(switched.bundle_pem, fourth, later)
    assert not trusts(finished.bundle_pem, credential_for(before, sidecar, now=later), later)
    assert trusts(before.bundle_pem, first, now)


def load_first(bundle_pem: bytes) -> bytes:
    return bundle_pem[: bundle_pem.index(b"END CERTIFICATE-----") + len(b"END CERTIFICATE-----")] + b"\n"


def test_a_step_waits_until_everybody_has_renewed_unless_it_is_forced(folder: Path, now: datetime) -> None:
    Authority.init(folder, "mesh.test", now=now)
    assert succession_of(folder).step is Step.SETTLED
    state = prepare_root(folder, now=now)
    assert (state.step, state.next_time) == (Step.PREPARED, now + OVERLAP)
    with pytest.raises(RotationError, match="wait until"):
        switch_root(folder, now=now + HOUR)
    assert succession_of(folder).step is Step.PREPARED
    state = switch_root(folder, force=True, now=now + HOUR)
    assert (state.step, state.next_time) == (Step.SWITCHED, now + HOUR + OVERLAP)
    with pytest.raises(RotationError, match="wait until"):
        finish_root(folder, now=now + 2 * HOUR)
    assert finish_root(folder, now=now + HOUR + OVERLAP).step is Step.SETTLED
    assert sorted(path.name for path in folder.iterdir()) == [
        *("bundle.pem", "intermediate.key", "intermediate.pem", "root.key", "root.pem")
    ]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_steps_out_of_order_are_refused(folder: Path, now: datetime) -> None:
    Authority.init(folder, "mesh.test", now=now)
    with pytest.raises(RotationError, match="prepare"):
        switch_root(folder, now=now)
    with pytest.raises(RotationError, match="nothing to finish"):
        finish_root(folder, now=now)
    prepare_root(folder, now=now)
    with pytest.raises(RotationError, match="under way"):
        prepare_root(folder, now=now)


def test_a_step_that_was_interrupted_is_taken_again(folder: Path, now: datetime) -> None:
    Authority.init(folder, "mesh.test", now=now)
    bundle = (folder / "bundle.pem").read_bytes()
    prepare_root(folder, now=now)
    (folder / "bundle.pem").write_bytes(bundle)  # as if it had ended before its last write
    assert succession_of(folder).step is Step.SETTLED
    prepare_root(folder, now=now)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    switch_root(folder, now=now + OVERLAP)
    for name in ("next-root.key", "next-root.pem"):  # as if it had ended before these went
        (folder / name).write_bytes(kept[name])
    assert succession_of(folder).step is Step.PREPARED
    assert switch_root(folder, now=now + OVERLAP).step is Step.SWITCHED
    assert Authority.load(folder).bundle_pem.count(b"BEGIN") == 2


def test_the_key_of_the_next_root_may_be_elsewhere_until_the_switch(folder: Path, now: datetime) -> None:
    Authority.init(folder, "mesh.test", now=now)
    prepare_root(folder, now=now)
    key = (folder / "next-root.key").read_bytes()
    (folder / "next-root.key").unlink()
    with pytest.raises(AuthorityError, match=r"next-root\.key"):
        switch_root(folder, now=now + OVERLAP)
    (folder / "next-root.key").write_bytes(key)
    assert switch_root(folder, now=now + OVERLAP).step is Step.SWITCHED
    assert Authority.renew_intermediate(folder, now=now + OVERLAP).root_pem == Authority.load(folder).root_pem


def test_a_folder_that_is_no_authority_says_so(folder: Path) -> None:
    with pytest.raises(AuthorityError, match=r"bundle\.pem"):
        succession_of(folder)
