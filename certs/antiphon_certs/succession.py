"""Replacing the authority's root while the mesh works: prepare, switch, finish, with time between them.

    prepare   a new root, trusted beside the old one; the old one still signs     bundle: old, new
    switch    a new intermediate under the new root signs from now on             bundle: new, old
    finish    the old root is trusted no more                                     bundle: new

Everyone learns the bundle with the certificate that is renewed next. So `switch` waits until everyone who holds a valid
certificate has renewed it since `prepare`, and `finish` until every certificate of the old root has expired: both as
long as a leaf lives. Where a step stands is read from the folder alone, in which nothing but these files is written:
`next-root.key next-root.pem` are there from `prepare` to `switch`. A step that was interrupted is taken again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from .authority import INTERMEDIATE_LIFETIME, LEAF_LIFETIME, ROOT_LIFETIME, Authority, ca_certificate
from .certificate import (
    SKEW,
    fingerprint,
    issue_time_of,
    key_from_pem,
    key_to_pem,
    load_chain,
    new_key,
    to_pem,
    trust_domain_of,
)
from .errors import AuthorityError, RotationError
from .files import replace_private

OVERLAP = LEAF_LIFETIME + timedelta(minutes=5)
"""Between two steps: as long as a leaf lives, and a little for whoever is slow to take up the authority's files."""


class Step(StrEnum):
    """What was done last; SETTLED is both before the first rotation and after the last."""

    SETTLED = "settled"
    PREPARED = "prepared"
    SWITCHED = "switched"


@dataclass(frozen=True, slots=True)
class Succession:
    """How far the rotation of an authority is. `roots`: fingerprints of what is trusted, the one that signs first.
    `next_time`: when the next step is due; None when settled."""

    step: Step
    roots: tuple[str, ...]
    next_time: datetime | None


def succession_of(folder: Path) -> Succession:
    """How far it is. Raises `AuthorityError`."""
    return _in(folder, lambda: _read(folder))


def prepare_root(folder: Path, *, now: datetime | None = None) -> Succession:
    """Make the next root, and trust it beside the present one. Raises `AuthorityError`, `RotationError`."""
    moment = now or datetime.now(UTC)

    def act() -> Succession:
        if _read(folder).step is not Step.SETTLED:
            raise RotationError(
                "a rotation is under way already; go on with it: antiphon certs rotate switch, or finish"
            )
        authority = Authority.load(folder)
        key = new_key()
        # A name of its own, since whoever verifies looks for an issuer by name first.
        role = f"root {moment:%Y-%m-%d %H:%M:%S}"
        root = ca_certificate(authority.trust_domain, role, key, None, key, moment - SKEW, ROOT_LIFETIME)
        replace_private(folder / "next-root.key", key_to_pem(key))
        replace_private(folder / "next-root.pem", to_pem(root))
        replace_private(folder / "bundle.pem", _joined(authority.bundle_pem, to_pem(root)))
        return _read(folder)

    return _in(folder, act)


def switch_root(folder: Path, *, force: bool = False, now: datetime | None = None) -> Succession:
    """Let the next root's new intermediate sign. `force`: although some may not trust it yet.

    Needs `next-root.key` back in `folder`. Raises `AuthorityError`, `RotationError`.
    """
    moment = now or datetime.now(UTC)

    def act() -> Succession:
        state = _read(folder)
        if state.step is not Step.PREPARED:
            raise RotationError("no root is prepared; begin with: antiphon certs rotate prepare")
        _check_due(state, moment, force, "who has not renewed since does not trust the new root yet")
        root_key = key_from_pem((folder / "next-root.key").read_bytes())
        root = load_chain((folder / "next-root.pem").read_bytes())[0]
        key = new_key()
        intermediate = ca_certificate(
            trust_domain_of(root), "intermediate", key, root, root_key, moment - SKEW, INTERMEDIATE_LIFETIME
        )
        others = [other for other in load_chain((folder / "bundle.pem").read_bytes()) if other != root]
        replace_private(folder / "bundle.pem", _joined(to_pem(root), *map(to_pem, others)))
        replace_private(folder / "intermediate.key", key_to_pem(key))
        replace_private(folder / "intermediate.pem", to_pem(intermediate))
        replace_private(folder / "root.key", key_to_pem(root_key))
        replace_private(folder / "root.pem", to_pem(root))
        (folder / "next-root.pem").unlink()
        (folder / "next-root.key").unlink()
        return _read(folder)

    return _in(folder, act)


def finish_root(folder: Path, *, force: bool = False, now: datetime | None = None) -> Succession:
    """Trust the new root alone. `force`: although certificates of the old one may still be valid.

    Raises `AuthorityError`, `RotationError`.
    """
    moment = now or datetime.now(UTC)

    def act() -> Succession:
        state = _read(folder)
        if state.step is not Step.SWITCHED:
            raise RotationError("no rotation has been switched; there is nothing to finish")
        _check_due(state, moment, force, "certificates of the old root may still be valid")
        replace_private(folder / "bundle.pem", Authority.load(folder).root_pem)
        (folder / "next-root.key").unlink(missing_ok=True)  # of a switch that was interrupted at its very end
        return _read(folder)

    return _in(folder, act)


def _read(folder: Path) -> Succession:
    roots = load_chain((folder / "bundle.pem").read_bytes())
    marks = tuple(fingerprint(root) for root in roots)
    coming = folder / "next-root.pem"
    # The bundle is written last: without the coming root in it, nobody can have learnt of it.
    if coming.exists() and (root := load_chain(coming.read_bytes())[0]) in roots:
        return Succession(Step.PREPARED, marks, issue_time_of(root) + OVERLAP)
    if len(roots) == 1:
        return Succession(Step.SETTLED, marks, None)
    intermediate = load_chain((folder / "intermediate.pem").read_bytes())[0]
    return Succession(Step.SWITCHED, marks, issue_time_of(intermediate) + OVERLAP)


def _check_due(state: Succession, now: datetime, force: bool, why: str) -> None:
    if not force and state.next_time is not None and now < state.next_time:
        raise RotationError(f"wait until {state.next_time:%Y-%m-%d %H:%M} UTC: {why}; or add --force")


def _joined(*pems: bytes) -> bytes:
    return b"".join(pem if pem.endswith(b"\n") else pem + b"\n" for pem in pems)


def _in(folder: Path, act: Callable[[], Succession]) -> Succession:
    try:
        return act()
    except FileNotFoundError as error:
        raise AuthorityError(f"{error.filename} is missing; name the folder of an authority with --dir") from error
    except OSError as error:
        raise AuthorityError(f"cannot rotate the authority in {folder}: {error.strerror}: {error.filename}") from error
    except ValueError as error:
        raise AuthorityError(f"the authority in {folder} is damaged: {error}") from error
