"""Rotation under a clock of our own: renewed at half life, retried after failures, never worse than before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from antiphon_certs import (
    Authority,
    CertificateFiles,
    Credential,
    CredentialError,
    CredentialReason,
    ExternalFiles,
    Identity,
    Renew,
    RenewalError,
    Source,
    is_due,
    new_key_and_csr,
    renew_at,
    run_rotation,
)
from antiphon_certs.rotation import POLL, retry_after
from hypothesis import given
from hypothesis import strategies as st

HOUR = timedelta(hours=1)


class Stopped(Exception):
    """The test's time is over."""


@dataclass
class FakeClock:
    """Sleeping moves time; at `end` the sleeper is stopped. `at` runs a function when its time comes."""

    time: datetime
    end: datetime
    events: list[tuple[datetime, Callable[[], object]]] = field(default_factory=list)
    pauses: list[timedelta] = field(default_factory=list)

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        assert duration > timedelta(0)
        self.pauses.append(duration)
        self.time += duration
        while self.events and self.events[0][0] <= self.time:
            self.events.pop(0)[1]()
        if self.time >= self.end:
            raise Stopped


class StillClock(FakeClock):
    """Time stands still: sleep never ends."""

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.get_running_loop().create_future()


@dataclass
class Mesh:
    """A credential folder, an authority that renews it, and what the loop told."""

    files: CertificateFiles
    authority: Authority
    clock: FakeClock
    outages: list[Exception] = field(default_factory=list)
    renewals: list[datetime] = field(default_factory=list)
    changes: list[tuple[datetime, Credential]] = field(default_factory=list)
    delays: list[Exception] = field(default_factory=list)

    def issue(self, identity: Identity) -> Credential:
        key_pem, csr_pem = new_key_and_csr(identity)
        chain_pem = self.authority.issue(csr_pem, identity, now=self.clock.now())
        return self.files.store(key_pem, chain_pem, self.authority.bundle_pem)

    async def renew(self, current: Credential) -> None:
        self.renewals.append(self.clock.now())
        if self.outages:
            raise self.outages.pop(0)
        self.issue(current.identity)

    async def run(self, source: Source | None = None, renew: Renew | None = None, jitter: float = 0.0) -> None:
        with pytest.raises(Stopped):
            await run_rotation(
                source or self.files,
                renew,
                self.clock,
                changed=lambda credential: self.changes.append((self.clock.now(), credential)),
                delayed=self.delays.append,
                jitter=lambda: jitter,
            )


@pytest.fixture
def mesh(folder: Path, authority: Authority, sidecar: Identity, now: datetime) -> Mesh:
    mesh = Mesh(CertificateFiles(folder), authority, FakeClock(now, now + 2 * HOUR))
    mesh.issue(sidecar)
    return mesh


times = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1))


@given(times, st.timedeltas(timedelta(seconds=1), timedelta(days=400)), st.floats(0, 1, exclude_max=True))
def test_renewal_is_due_between_two_fifths_and_half_of_the_life(
    start: datetime, life: timedelta, jitter: float
) -> None:
    moment = renew_at(start, start + life, jitter)
    slack = timedelta(microseconds=2)
    assert start + life * 0.4 - slack <= moment <= start + life * 0.5 + slack


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_retry_comes_neither_at_once_nor_late(failures: int, jitter: float) -> None:
    assert timedelta(seconds=0.5) <= retry_after(failures, jitter) <= POLL


def test_is_due_turns_at_the_moment_of_renewal(mesh: Mesh) -> None:
    credential = mesh.files.load()
    moment = renew_at(credential.not_before, credential.not_after, 0.5)
    assert not is_due(credential, moment - timedelta(microseconds=1), 0.5)
    assert is_due(credential, moment, 0.5)


@pytest.mark.asyncio
async def test_a_credential_is_renewed_at_half_life_again_and_again(mesh: Mesh, now: datetime) -> None:
    first = mesh.files.load()
    await mesh.run(renew=mesh.renew)
    assert mesh.renewals[0] == renew_at(first.not_before, first.not_after, 0)
    assert len(mesh.renewals) == len(mesh.changes) == 4  # every 29.5 minutes in two hours
    assert not mesh.delays
    assert mesh.files.load() == mesh.changes[-1][1]


@pytest.mark.asyncio
async def test_an_outage_is_retried_with_growing_pauses_and_costs_nothing_else(mesh: Mesh) -> None:
    outages: list[Exception] = [RenewalError("no orchestrator answers"), TimeoutError(), ConnectionError("refused")]
    mesh.outages = outages * 3
    await mesh.run(renew=mesh.renew, jitter=0.999)
    assert [type(error) for error in mesh.delays[:3]] == [RenewalError, TimeoutError, ConnectionError]
    assert len(mesh.delays) == 9
    assert mesh.changes[0][0] == mesh.renewals[9]
    waits = [later - earlier for earlier, later in pairwise(mesh.renewals[:10])]
    assert waits == sorted(waits)
    assert timedelta(seconds=1) <= waits[0] < waits[-1] <= POLL


@pytest.mark.asyncio
async def test_renewal_goes_on_being_tried_after_expiry(mesh: Mesh, now: datetime) -> None:
    expired = mesh.files.load().not_after
    mesh.outages = [RenewalError("no orchestrator answers") for _ in range(10_000)]
    await mesh.run(renew=mesh.renew)
    assert mesh.renewals[-1] > expired
    assert not mesh.changes


@pytest.mark.asyncio
async def test_a_renewal_that_changes_nothing_is_not_asked_for_without_pause(mesh: Mesh) -> None:
    asked: list[datetime] = []

    async def renew(_: Credential) -> None:
        asked.append(mesh.clock.now())

    mesh.clock.end = mesh.clock.now() + HOUR
    await mesh.run(renew=renew)
    assert len(asked) > 1
    assert all(later - earlier >= timedelta(seconds=0.5) for earlier, later in pairwise(asked))


@pytest.mark.asyncio
async def test_a_bug_in_the_renewer_ends_the_loop(mesh: Mesh) -> None:
    mesh.outages = [KeyError("bug")]
    with pytest.raises(KeyError):
        await mesh.run(renew=mesh.renew)


@pytest.mark.asyncio
async def test_a_suspended_machine_renews_at_its_first_look(mesh: Mesh) -> None:
    def suspend() -> None:
        mesh.clock.time += timedelta(minutes=50)

    mesh.clock.events = [(mesh.clock.now() + timedelta(minutes=5), suspend)]
    woken = mesh.clock.now() + timedelta(minutes=55)
    await mesh.run(renew=mesh.renew)
    assert mesh.renewals[0] - woken <= POLL


@pytest.mark.asyncio
async def test_a_credential_replaced_by_another_process_is_noticed(mesh: Mesh, sidecar: Identity) -> None:
    replaced = mesh.clock.now() + timedelta(minutes=5)
    mesh.clock.events = [(replaced, lambda: mesh.issue(sidecar))]
    mesh.clock.end = mesh.clock.now() + timedelta(minutes=10)
    await mesh.run(renew=mesh.renew)
    assert not mesh.renewals
    assert [credential for _, credential in mesh.changes] == [mesh.files.load()]
    assert mesh.changes[0][0] - replaced <= POLL


@pytest.mark.asyncio
async def test_torn_external_files_are_reported_until_they_agree(
    mesh: Mesh, tmp_path: Path, sidecar: Identity, now: datetime
) -> None:
    external = ExternalFiles(tmp_path / "tls.key", tmp_path / "tls.crt", tmp_path / "ca.crt")
    old, new = mesh.files.load(), mesh.issue(sidecar)
    external.key.write_bytes(old.key_pem)
    external.cert.write_bytes(old.chain_pem)
    external.bundle.write_bytes(old.bundle_pem)
    agreed = now + timedelta(minutes=2)
    mesh.clock.events = [
        (now + timedelta(minutes=1), lambda: external.cert.write_bytes(new.chain_pem)),
        (agreed, lambda: external.key.write_bytes(new.key_pem)),
    ]
    mesh.clock.end = now + timedelta(minutes=5)
    await mesh.run(external)
    assert mesh.delays
    assert all(
        isinstance(error, CredentialError) and error.reason is CredentialReason.INCONSISTENT for error in mesh.delays
    )
    assert mesh.changes == [(agreed, new)]


@pytest.mark.asyncio
async def test_nothing_to_start_from_is_an_error(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(CredentialError):
        await mesh.run(CertificateFiles(tmp_path / "empty"), mesh.renew)


@pytest.mark.asyncio
async def test_cancelling_stops_the_loop(mesh: Mesh) -> None:
    mesh.clock = StillClock(mesh.clock.time, mesh.clock.end)
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(mesh.run(renew=mesh.renew))
        await asyncio.sleep(0)
        loop.cancel()
    assert loop.cancelled()
