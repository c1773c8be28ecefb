"""Request ids of a day: the store keeps the newest, a new owner reads the others from the archive."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.archive import ArchivedRequest, ArchivedRun, ArchiveUnavailable
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.shards import remembering
from antiphon_orchestrator.shards.recovery import remember_requests
from antiphon_orchestrator.shards.remembering import AWAY, EVERY, PAGE, Kept, Remembering
from antiphon_orchestrator.shards.turn import REQUEST_KEPT
from shard_rig import Rig

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Clock:
    def __init__(self, sleeps: int = 0) -> None:
        self.slept: list[timedelta] = []
        self.rests = asyncio.Event()
        self._sleeps = sleeps

    def now(self) -> datetime:
        return NOW

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration)
        if len(self.slept) > self._sleeps:
            self.rests.set()
            await asyncio.Event().wait()


class Shards:
    """Two shards, of which one has been here for long."""

    requests_kept = 1 << 20

    def __init__(self) -> None:
        self.asking = [1]
        self.found: dict[int, Kept] = {}

    def forgetful(self) -> list[int]:
        return self.asking

    def shard_of_run(self, run_id: str) -> int | None:
        return int(run_id[1:5])

    def remember(self, shard: int, older: Kept) -> None:
        self.found[shard] = older
        self.asking.remove(shard)


class Away(SqliteArchive):
    away = 0

    async def requests(self, after: Any, limit: int) -> list[ArchivedRequest]:
        if self.away:
            self.away -= 1
            raise ArchiveUnavailable("it is away")
        return await super().requests(after, limit)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Away]:
    opened = Away(f"sqlite:///{tmp_path / 'archive.db'}")
    async with opened:
        yield opened


def ended(shard: int, number: int, end: datetime) -> ArchivedRun:
    key = b"%d-%d" % (shard, number)
    run_id = f"r{shard:04}{number:06}"
    return ArchivedRun(run_id, "n", "g", "", "SUCCEEDED", "me", key, b"digest", end, 1, end)


async def test_the_ids_of_a_day_are_read_for_the_shards_that_were_taken(archive: Away) -> None:
    count = PAGE + 50
    young = [ended(shard, n, NOW - timedelta(minutes=n)) for shard in (0, 1) for n in range(count)]
    old = [ended(1, 5000 + n, NOW - timedelta(hours=25)) for n in range(10)]
    await archive.write([*young, *old], [])
    shards = Shards()
    await Remembering(archive, shards, Clock()).look()
    assert list(shards.found) == [1]
    found = shards.found[1]
    assert list(found) == [b"1-%d" % n for n in reversed(range(count))]  # the oldest first
    last = int((NOW - timedelta(minutes=7)).timestamp() * 1e6) + REQUEST_KEPT
    assert found[b"1-7"] == ("r0001000007", b"digest", last)


async def test_a_shard_with_nothing_to_remember_says_nothing(archive: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    telemetry.configure_logging(stream=said)
    monkeypatch.setattr(remembering, "log", telemetry.logger("shards"))  # the module's own may be another test's
    shards = Shards()
    await Remembering(archive, shards, Clock()).look()
    assert shards.found == {1: {}} and said.getvalue() == ""
    await archive.write([ended(1, 1, NOW)], [])
    shards.asking = [1]
    await Remembering(archive, shards, Clock()).look()
    assert json.loads(said.getvalue())["count"] == 1


async def test_no_more_ids_are_read_than_a_shard_remembers_and_the_newest_stay(archive: Away) -> None:
    await archive.write([ended(1, n, NOW - timedelta(minutes=n)) for n in range(PAGE + 50)], [])
    shards = Shards()
    shards.requests_kept = 20
    await Remembering(archive, shards, Clock()).look()
    assert list(shards.found[1]) == [b"1-%d" % n for n in reversed(range(20))]


def test_what_was_read_is_taken_as_it_is_however_much_it_is() -> None:
    """Nothing goes through a million ids at once: what it costs is what the shard had before."""
    rig = Rig()
    rig.shard.kept = {b"new": ("r1", b"d", 100)}
    older = {b"a": ("r9", b"d", 50)}
    remember_requests(rig.shard, older)
    assert rig.shard.kept is older and list(older) == [b"a", b"new"]


async def test_an_archive_that_is_away_is_asked_again(archive: Away) -> None:
    await archive.write([ended(1, 1, NOW)], [])
    archive.away = 2
    shards, clock = Shards(), Clock(sleeps=3)
    running = asyncio.create_task(Remembering(archive, shards, clock).run())
    await asyncio.wait_for(clock.rests.wait(), 20)
    running.cancel()
    await asyncio.wait({running})
    assert clock.slept == [EVERY, AWAY, AWAY, EVERY]
    assert list(shards.found[1]) == [b"1-1"]


def test_older_ids_go_before_those_that_are_there_and_replace_none() -> None:
    rig = Rig()
    rig.shard.kept = {b"new": ("r1", b"d", 100), b"newest": ("r2", b"d", 200)}
    rig.shard.requests = {b"live": ("r3", b"d")}
    rig.shard.requests_kept = 4
    older = {name: ("r9", b"other", 50) for name in (b"a", b"b", b"live", b"c", b"new")}
    remember_requests(rig.shard, older)
    assert list(rig.shard.kept) == [b"b", b"c", b"new", b"newest"]
    assert rig.shard.kept[b"new"] == ("r1", b"d", 100) and rig.shard.requests == {b"live": ("r3", b"d")}
    rig.shard.settle_retained((), 60)
    assert list(rig.shard.kept) == [b"new", b"newest"]
