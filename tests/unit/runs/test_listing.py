"""Live and archived runs in one list: each once, whatever moves meanwhile, however many have the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from antiphon.v1 import run_pb2
from antiphon.v1 import run_service_pb2 as api
from antiphon_orchestrator.archive import Archive, ArchivedRun, ArchiveUnavailable, EventChunk
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.engine.events import (
    CancelRequested,
    RunPaused,
    TaskCompleted,
    TaskEscalated,
    TaskExpanded,
    TaskWaiting,
)
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.run import Run, apply
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.runs.listing import RunListing
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.host import Host

from tests.fakes.plans import Node, plan, submitted

START = datetime(2026, 1, 1, tzinfo=UTC)
MICROS = int(START.timestamp()) * 1_000_000


def archived(number: int) -> ArchivedRun:
    return ArchivedRun(f"r{number:04}", "demo", "g", "", "SUCCEEDED", "me", b"", b"", START, 1, START)


class OneShard:
    """Stands for the host: one shard with these runs, which answers at once."""

    def __init__(self, *runs: Run) -> None:
        self.held = [0]
        self.runs = list(runs)

    def put(self, shard: int, item: i.Input) -> None:
        assert isinstance(item, i.Survey)
        item.sink(item.question(self.runs))


@pytest_asyncio.fixture
async def archive(tmp_path: Path) -> AsyncIterator[SqliteArchive]:
    async with SqliteArchive(f"sqlite:///{tmp_path / 'archive.db'}") as archive:
        yield archive


async def listed(listing: RunListing, size: int) -> list[str]:
    found, token = list[str](), ""
    while True:
        request = api.ListRunsRequest(page_size=size, page_token=token)
        live, _ = await listing.here("demo", request)
        page = await listing.page("demo", request, live)
        assert len(page.runs) <= size
        found += [run.run_id for run in page.runs]
        if not (token := page.next_page_token):
            return found


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
async def test_runs_of_one_moment_are_listed_once_each(archive: SqliteArchive, size: int) -> None:
    runs = [archived(number) for number in range(150)]
    await archive.write(runs, [EventChunk(run.run_id, 1, 1, b"") for run in runs])
    live = [Run(f"r{number:04}", plan(Node()), submitted(f"q{number}"), MICROS) for number in range(140, 160)]
    listing = RunListing(cast(Host, OneShard(*live)), cast(Archive, archive))
    assert await listed(listing, size) == [f"r{number:04}" for number in reversed(range(160))]


async def test_a_run_that_is_archived_while_a_page_is_made_is_on_it(archive: SqliteArchive) -> None:
    class Ending(SqliteArchive):
        """Whoever asks it, the run has just been archived, and its shard has forgotten it."""

        async def list_runs(self, *given: Any) -> Any:
            if host.runs:
                host.runs.clear()
                await archive.write([archived(1)], [EventChunk("r0001", 1, 1, b"")])
            return await archive.list_runs(*given)

    host = OneShard(Run("r0001", plan(Node()), submitted("q"), MICROS))
    ending = cast(Archive, Ending("sqlite://"))
    assert await listed(RunListing(cast(Host, host), ending), 10) == ["r0001"]


@pytest.mark.parametrize(
    ("restriction", "expected"),
    [
        ({"parent": "r7"}, ["r0004", "r0002", "r0001"]),
        ({"parent": "r7/call/0/1"}, ["r0004", "r0001"]),
        ({"parent": "r"}, []),
        ({"failure_text": "DISK"}, ["r0004", "r0003"]),
        ({"failure_text": "disk", "parent": "r7"}, ["r0004"]),
        ({"failure_text": "100%"}, []),
        ({"waiting_for_person": True}, ["r0005"]),
        ({"waiting_for_person": True, "failure_text": "disk"}, []),
        ({"waiting_for_signal": True}, ["r0006"]),
        ({"graph_name": "fake"}, ["r0007", "r0006", "r0005", "r0004", "r0002"]),
        ({"graph_name": "fake@1"}, ["r0007", "r0006", "r0005", "r0004"]),
        ({"graph_name": "fake@1.1"}, ["r0002"]),
        ({"graph_name": "g"}, ["r0003", "r0001"]),
        ({"graph_name": "g@1"}, []),
        ({"waiting_for_signal": True, "parent": "r7"}, []),
        ({"waiting_for_signal": True, "waiting_for_person": True}, ["r0006", "r0005"]),
    ],
)
async def test_live_and_archived_runs_are_found_by_the_same_words(
    archive: SqliteArchive, restriction: dict[str, Any], expected: list[str]
) -> None:
    old = [
        replace(archived(1), parent="r7/call/0/1"),
        replace(archived(2), parent="r7/call/0/2", graph_name="fake", graph_version="1.1"),
        replace(archived(3), failure_text="no disk left", state="FAILED"),
    ]
    await archive.write(old, [])
    live = Run("r0004", plan(Node()), submitted("q4", parent_attempt_id="r7/call/0/1"), MICROS)
    live.failure = Failure(FailureKind.PERMANENT, "the Disk was full")
    other = Run("r0005", plan(Node()), submitted("q5", parent_attempt_id="r70/call/0/1"), MICROS)
    apply(other, TaskEscalated(0, 0, Failure(FailureKind.PERMANENT, "no")), MICROS)
    third = Run("r0006", plan(Node(wait="go"), Node(wait=1)), submitted("q6"), MICROS)
    for index in (0, 1):
        apply(third, TaskWaiting(index, 0, index, ""), MICROS)
    later = Run("r0007", plan(Node(), Node((0,), wait="go")), submitted("q7"), MICROS)
    listing = RunListing(cast(Host, OneShard(live, other, third, later)), cast(Archive, archive))
    request = api.ListRunsRequest(**restriction)
    here, _ = await listing.here("demo", request)
    page = await listing.page("demo", request, here)
    assert [run.run_id for run in page.runs] == expected


class Away(SqliteArchive):
    """It does not answer."""

    async def list_runs(self, *given: Any) -> Any:
        raise ArchiveUnavailable("away")


@pytest.mark.parametrize(
    ("restriction", "expected"),
    [
        ({"states": [run_pb2.RUN_STATE_RUNNING]}, ["r0001"]),
        ({"states": [run_pb2.RUN_STATE_PAUSED, run_pb2.RUN_STATE_RUNNING]}, ["r0001"]),
        ({"states": [run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_FAILED]}, None),
        ({"waiting_for_person": True}, []),
        ({"waiting_for_signal": True}, []),
        ({}, None),
    ],
)
async def test_what_can_only_live_is_listed_while_the_archive_is_away(
    restriction: dict[str, Any], expected: list[str] | None
) -> None:
    live = Run("r0001", plan(Node()), submitted("q"), MICROS)
    listing = RunListing(cast(Host, OneShard(live)), cast(Archive, Away("sqlite://")))
    request = api.ListRunsRequest(**restriction)
    here, _ = await listing.here("demo", request)
    if expected is None:
        with pytest.raises(ArchiveUnavailable):
            await listing.page("demo", request, here)
    else:
        assert [run.run_id for run in (await listing.page("demo", request, here)).runs] == expected


def test_a_quorum_that_waits_for_a_person_is_counted_beside_its_members() -> None:
    run = Run("r", plan(Node(agree=2, members=2)), submitted("q"), MICROS)
    apply(run, TaskExpanded(0, 2, 1, [b"", b""]), MICROS)
    assert (views.run_message(run).totals.total, run.asking) == (2, 0)
    apply(run, TaskEscalated(0, 0, Failure(FailureKind.NO_QUORUM, "no")), MICROS)
    totals = views.run_message(run).totals
    assert (totals.total, totals.ready, totals.escalated, run.asking) == (3, 2, 1, 1)


def test_a_run_names_the_signals_that_it_waits_for_once_each_and_not_more_than_a_list_has_room_for() -> None:
    names = [f"s{number:02}" for number in range(views.SIGNALS + 4)]
    run = Run("r", plan(*(Node(wait=name) for name in (*reversed(names), names[0]))), submitted("q"), MICROS)
    for index, known in ((0, names[-1:]), (len(names), [names[0], names[-1]]), (len(names) - 1, [names[0], names[-1]])):
        apply(run, TaskWaiting(index, 0, 0, ""), MICROS)
        assert views.run_message(run).awaited_signals == known
    for index in range(1, len(names) - 1):
        apply(run, TaskWaiting(index, 0, 0, ""), MICROS)
    assert views.run_message(run).awaited_signals == names[: views.SIGNALS]
    apply(run, TaskCompleted(len(names) - 1, 0, b"", 0), MICROS)
    apply(run, TaskCompleted(len(names), 0, b"", 0), MICROS)
    assert views.run_message(run).awaited_signals == names[1 : views.SIGNALS + 1]


def test_who_asked_for_the_end_of_a_run_is_told_and_its_deadline_is_nobody() -> None:
    run = Run("r", plan(Node()), submitted("q"), MICROS)
    assert not views.run_message(run).HasField("cancelled")
    apply(run, RunPaused("olga", ""), MICROS + 1)
    apply(run, CancelRequested("peter", "enough"), MICROS + 2)
    message = views.run_message(run)
    assert not message.HasField("paused")
    told = (message.cancelled.principal, message.cancelled.reason, message.cancelled.create_time.ToMicroseconds())
    assert told == ("peter", "enough", MICROS + 2)
    late = Run("r", plan(Node()), submitted("q"), MICROS)
    apply(late, CancelRequested("", "the run's deadline passed"), MICROS + 1)
    assert not views.run_message(late).HasField("cancelled")


async def test_an_archived_failure_has_its_kind_and_code_and_none_where_the_archive_has_none(
    archive: SqliteArchive,
) -> None:
    failed = replace(archived(1), failure_text="no", failure_kind=FailureKind.BUDGET, failure_code="c", state="FAILED")
    silent = replace(archived(2), failure_kind=FailureKind.LOST, state="FAILED")
    before = replace(archived(3), failure_text="no", state="FAILED")
    await archive.write([failed, silent, before, archived(4)], [])
    page = await RunListing(cast(Host, OneShard()), cast(Archive, archive)).page("demo", api.ListRunsRequest(), ())
    told = [(run.HasField("failure"), run.failure.kind, run.failure.code, run.failure.message) for run in page.runs]
    assert told == [(False, 0, "", ""), (True, 0, "", "no"), (True, 6, "", ""), (True, 10, "c", "no")]
