"""Retention: what is old goes in batches, what is young stays, and an archive that is away is asked again later."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from antiphon_orchestrator.archive import ArchivedRun, EventChunk, RunFilter
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.runs.retention import BATCH, BETWEEN, EVERY, Retention

START = datetime(2026, 1, 1, tzinfo=UTC)
MONTH = timedelta(days=30)


class Clock:
    """Lets a sleeper go on at once for `steps` sleeps, then keeps it asleep."""

    def __init__(self, steps: int) -> None:
        self.time = START + MONTH
        self.slept: list[timedelta] = []
        self._steps = steps
        self.done = asyncio.Event()

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration)
        self.time += duration
        if len(self.slept) == self._steps:
            self.done.set()
            await asyncio.Event().wait()


def ended(number: int, end: datetime | None) -> ArchivedRun:
    return ArchivedRun(f"r{number:04}", "n", "g", "", "SUCCEEDED", "me", b"", b"", START, 1, end)


async def until_it_rests(archive: SqliteArchive, clock: Clock) -> None:
    running = asyncio.create_task(Retention(archive, MONTH, clock).run())
    await asyncio.wait(
        {running, asyncio.create_task(clock.done.wait())}, return_when=asyncio.FIRST_COMPLETED, timeout=20
    )
    assert running.cancel()
    await asyncio.wait({running})


async def test_runs_older_than_kept_go_in_batches_with_their_events_and_others_stay(tmp_path: Path) -> None:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as archive:
        old = [ended(n, START - timedelta(seconds=1)) for n in range(BATCH + 50)]
        young = [ended(5000, START + timedelta(hours=1)), ended(5001, None)]
        await archive.write([*old, *young], [EventChunk(run.run_id, 1, 1, b"e") for run in [*old, *young]])
        clock = Clock(steps=3)
        await until_it_rests(archive, clock)
        assert clock.slept == [BETWEEN, BETWEEN, EVERY]
        found, _ = await archive.list_runs(RunFilter("n"), 1000)
        assert {run.run_id for run in found} == {"r5000", "r5001"}
        assert await archive.events("r0000") == [] and len(await archive.events("r5000")) == 1


async def test_what_becomes_old_goes_at_a_later_look(tmp_path: Path) -> None:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as archive:
        await archive.write([ended(1, START + EVERY / 2)], [])
        await until_it_rests(archive, Clock(steps=3))
        assert await archive.get_run("r0001") is None


async def test_an_archive_that_is_away_is_asked_again(tmp_path: Path) -> None:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}?timeout=0") as archive:
        await archive.write([ended(1, START - timedelta(seconds=1))], [])
        other = SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}")
        with other._engine.connect() as holder:
            holder.exec_driver_sql("BEGIN IMMEDIATE")
            await until_it_rests(archive, Clock(steps=2))
            assert await archive.get_run("r0001") is not None
        await until_it_rests(archive, Clock(steps=2))
        assert await archive.get_run("r0001") is None
        await other.__aexit__()
