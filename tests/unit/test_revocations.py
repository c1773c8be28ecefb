"""Revocations between replicas that hear of each other late, whose clocks differ, and that forget in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_certs import LONGEST_RECOVERY, Grants, Identity, Kind, Peer
from antiphon_orchestrator import revocations
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.revocations import MARGIN, Revocations, Subject
from antiphon_orchestrator.store import RangeResult, SqliteStore

from tests.harness import eventually

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EDGE = Identity("mesh.test", "team-a", Kind.SIDECAR, "edge")
SECOND = timedelta(seconds=1)


class Turned:
    """A clock that is set by hand."""

    def __init__(self, time: datetime = NOW) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


def issued(moment: datetime, serial: int = 1) -> Peer:
    return Peer(EDGE, Grants(), moment + timedelta(hours=1), serial, moment.replace(microsecond=0))


def refuses(here: Revocations, peer: Peer) -> bool:
    try:
        here.check(peer)
    except ApiError as error:
        assert error.spec.name == "CERTIFICATE_REVOKED"
        return True
    return False


async def revoke(here: Revocations, subject: Subject | None = None) -> None:
    await here.revoke(subject or Subject.of(EDGE), "lost", "spiffe://mesh.test/ns/team-a/operator/olga")


async def test_what_another_replica_revoked_is_not_renewed_here_before_the_watch_tells(store: SqliteStore) -> None:
    here, there = Revocations(store, Turned()), Revocations(store, Turned())
    await here.load()
    peer = issued(NOW)
    issue_at = await here.not_before(EDGE)
    await revoke(there)
    assert not refuses(here, peer), "it has not been told"
    with pytest.raises(ApiError, match="revoked"):
        await here.confirm(peer, issue_at)


async def test_one_that_was_issued_while_it_was_revoked_elsewhere_is_revoked_although_that_clock_is_behind(
    store: SqliteStore,
) -> None:
    ahead, behind = Turned(NOW + MARGIN - SECOND), Turned()
    here, there = Revocations(store, ahead), Revocations(store, behind)
    issue_at = await here.not_before(EDGE)
    await here.confirm(issued(NOW - timedelta(minutes=10)), issue_at)
    await revoke(there)
    await here.load()
    assert refuses(here, issued(issue_at))


class Slow(SqliteStore):
    """One whose answers wait on their way when they are told to."""

    free: asyncio.Event | None = None

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        found = await super().range(start, end, limit=limit)
        if self.free is not None and end:
            await self.free.wait()
        return found


async def test_reading_all_again_does_not_undo_what_has_been_revoked_since_the_store_answered(tmp_path: Path) -> None:
    async with Slow(tmp_path / "store.db") as store:
        here = Revocations(store, Turned())
        await here.load()
        store.free = asyncio.Event()
        reading = asyncio.create_task(here.load())
        await revoke(here)
        assert refuses(here, issued(NOW)) and not reading.done()
        store.free.set()
        await reading
        assert refuses(here, issued(NOW))


async def test_what_is_issued_on_purpose_afterwards_is_dated_after_it_each_time(store: SqliteStore) -> None:
    here = Revocations(store, Turned(NOW + timedelta(microseconds=999_999)))
    before = issued(NOW)
    for _ in range(3):
        await revoke(here)
        after = await here.not_before(EDGE)
        assert refuses(here, before)
        before = issued(after)
        assert not refuses(here, before)
        await here.confirm(before, await here.not_before(EDGE))
    assert after - NOW < timedelta(minutes=1), "it would not be valid yet"


async def test_other_replicas_follow_also_what_is_forgotten(store: SqliteStore) -> None:
    clock = Turned()
    here, there = Revocations(store, clock), Revocations(store, clock)
    await there.load()
    following = asyncio.create_task(there.run())
    try:
        await revoke(here)
        await revoke(here, Subject("team-a", serial="2a"))

        await eventually(lambda: len(list(there.listed("team-a"))) == 2)
        assert refuses(there, issued(NOW)) and refuses(there, issued(NOW + timedelta(days=1), serial=0x2A))
        assert not refuses(there, issued(NOW + timedelta(days=1)))
        clock.time += LONGEST_RECOVERY + timedelta(hours=24)
        await here.forget()
        assert len(list(here.listed("team-a"))) == 2, "an unused token, or a lost key, may still be there"
        clock.time += timedelta(hours=2)
        await here.forget()
        await eventually(lambda: not list(there.listed("team-a")))
        assert not refuses(there, issued(NOW))
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_there_is_a_most_of_them_and_revoking_again_needs_no_more_room(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "LIMIT", 1)
    here = Revocations(store, Turned())
    await revoke(here)
    await revoke(here)
    with pytest.raises(ApiError) as refused:
        await revoke(here, Subject("team-b", serial="1"))
    assert refused.value.spec.name == "REVOCATIONS_EXHAUSTED"


async def test_two_that_revoke_at_once_both_succeed(store: SqliteStore) -> None:
    here, there = Revocations(store, Turned()), Revocations(store, Turned())
    await asyncio.gather(revoke(here), revoke(there))
    assert refuses(here, issued(NOW)) and refuses(there, issued(NOW))


async def test_a_commit_that_took_longer_than_the_margin_is_made_again(store: SqliteStore) -> None:
    class Late(Turned):
        """Answers the start, then a time after the margin, then stands still."""

        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def now(self) -> datetime:
            self.asked += 1
            return NOW if self.asked == 1 else NOW + MARGIN

    here = Revocations(store, Late())
    await revoke(here)
    assert refuses(here, issued(NOW + MARGIN))
