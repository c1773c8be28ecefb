"""Archived runs: rebuilt once, kept within bounds, as new as the archive, gone when it forgets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from antiphon_orchestrator.admission import Values
from antiphon_orchestrator.archive import Archive, ArchivedRun, EventChunk
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.runs import archived
from antiphon_orchestrator.runs.archived import ArchivedRuns
from antiphon_orchestrator.runs.catalog import Catalog
from antiphon_orchestrator.shards import codec
from antiphon_orchestrator.store import SqliteStore
from shard_rig import Rig, instance

from tests.fakes.plans import Node, plan

DAY = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = plan(Node())


class OnePlan(Catalog):
    """All runs are of the one plan, which has no graph."""

    async def plan_of(self, submitted: RunSubmitted) -> Plan:
        return PLAN


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as opened:
        yield opened


@pytest.fixture
async def runs(archive: Archive, tmp_path: Path) -> AsyncIterator[ArchivedRuns]:
    async with SqliteStore(tmp_path / "store.db") as store:
        yield ArchivedRuns(archive, OnePlan(store, Values()))


async def keep(archive: Archive, run_id: str, *, until: int | None = None) -> int:
    """Archives a run of one task as it ended, or its first events alone; how many they are."""
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit(run_id, PLAN), rig.report(f"{run_id}/t0/0/1"))
    records = [raw for _, turn in rig.log for raw in turn][:until]
    ended = DAY if until is None else None
    summary = ArchivedRun(
        run_id, "demo", "fake", "1", "SUCCEEDED", "me", b"key", b"digest", DAY, len(records), end_time=ended
    )
    await archive.write([summary], [EventChunk(run_id, 1, len(records), codec.frame(records))])
    return len(records)


async def test_an_ended_run_is_rebuilt_once_and_is_of_its_namespace_alone(archive: Archive, runs: ArchivedRuns) -> None:
    await keep(archive, "r1")
    first = await runs.load("r1", "demo")
    assert first is not None and first.state.name == "SUCCEEDED"
    assert await runs.load("r1", "demo") is first
    assert await runs.load("r1", "other") is None


async def test_a_run_that_goes_on_is_read_again(archive: Archive, runs: ArchivedRuns) -> None:
    await keep(archive, "r1", until=2)
    part = await runs.load("r1", "demo")
    await keep(archive, "r1")
    whole = await runs.load("r1", "demo")
    assert part is not None and whole is not None and part.event_seq < whole.event_seq


async def test_a_run_that_the_archive_has_forgotten_is_gone(archive: Archive, runs: ArchivedRuns) -> None:
    await keep(archive, "r1")
    assert await runs.load("r1", "demo") is not None
    await archive.delete_before(DAY + timedelta(days=1), 10)
    assert await runs.load("r1", "demo") is None


@pytest.mark.parametrize("bound", ["KEPT_RECORDS", "KEPT_BYTES"])
async def test_what_was_not_used_for_longest_makes_room(
    archive: Archive, runs: ArchivedRuns, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    sizes = [await keep(archive, run_id) for run_id in ("r1", "r2", "r3")]
    size = sizes[0]
    if bound == "KEPT_BYTES":
        size = sum([len(raw) async for some in runs.records("r1", 0) for raw in some])
    monkeypatch.setattr(archived, bound, 2 * size)
    first, second = await runs.load("r1", "demo"), await runs.load("r2", "demo")
    assert await runs.load("r1", "demo") is first
    await runs.load("r3", "demo")
    assert await runs.load("r1", "demo") is first
    assert await runs.load("r2", "demo") is not second


async def test_a_run_larger_than_all_room_is_kept_for_a_while_and_pushes_nothing_out(
    archive: Archive, runs: ArchivedRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = await keep(archive, "r1")
    kept = await runs.load("r1", "demo")
    await keep(archive, "r2")
    monkeypatch.setattr(archived, "KEPT_RECORDS", size - 1)
    monkeypatch.setattr(archived, "LARGE_KEPT", 0.0)
    large = await runs.load("r2", "demo")
    await asyncio.sleep(0)  # what is due comes now
    assert await runs.load("r2", "demo") is not large
    monkeypatch.setattr(archived, "LARGE_KEPT", 3600.0)
    assert await runs.load("r2", "demo") is await runs.load("r2", "demo")
    assert await runs.load("r1", "demo") is kept
