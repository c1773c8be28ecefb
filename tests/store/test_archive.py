"""The archive: idempotent, durable, paged without gaps or repeats, in both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator.archive import (
    Archive,
    ArchivedRequest,
    ArchivedRun,
    AuditPage,
    EventChunk,
    InvalidPageToken,
    RunFilter,
    archive_at,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.harness.postgres import Postgres

START = datetime(2026, 1, 1, tzinfo=UTC)


Place = Callable[[], Archive]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database, to be opened any number of times."""
    if request.param == "sqlite":
        return partial(archive_at, f"sqlite:///{tmp_path / 'archive.db'}")
    postgres: Postgres = request.getfixturevalue("postgres")
    return partial(archive_at, postgres.database())


def run(number: int = 1, **values: Any) -> ArchivedRun:
    made = ArchivedRun(
        run_id=f"run-{number:03}",
        namespace="default",
        graph_name="review",
        graph_version="1.2",
        state="SUCCEEDED",
        principal="spiffe://test/ns/default/client/me",
        request_key=b"\0key",
        request_digest=b"\xffdigest",
        create_time=START + timedelta(microseconds=number),
        last_event_seq=10,
        end_time=START + timedelta(seconds=number),
    )
    return replace(made, **values)


async def test_a_run_comes_back_as_it_was_written(place: Place) -> None:
    written = run(labels={"team": "ä", "q": '"'}, parent="run-000", failure_text="it broke\n", end_time=None)
    written = replace(written, failure_kind=9, failure_code="quota exceeded")
    async with place() as archive:
        await archive.write([written], [])
    async with place() as archive:
        assert await archive.get_run(written.run_id) == written
        assert await archive.get_run("other") is None


async def test_writing_again_changes_nothing_and_newer_replaces_older_in_any_order(place: Place) -> None:
    older, newer = run(state="RUNNING", last_event_seq=5, end_time=None), run(last_event_seq=9)
    chunks = EventChunk("run-001", 1, 5, b"old"), EventChunk("run-001", 1, 9, b"old+new")
    async with place() as archive:
        for records, parts in (([older], chunks[:1]), ([newer], chunks[1:]), ([older, newer, older], chunks), ([], [])):
            await archive.write(records, parts)
        await archive.write([older], chunks[:1])
        assert await archive.get_run("run-001") == newer
        assert await archive.events("run-001") == [chunks[1]]


async def test_events_come_in_order_from_after_the_cursor(place: Place) -> None:
    chunks = [EventChunk("r", first, first + 9, b"%d" % first) for first in (1, 11, 21)]
    inside = EventChunk("r", 12, 15, b"all of it is in the chunk before")
    async with place() as archive:
        await archive.write([], [chunks[2], inside, chunks[0], chunks[1], EventChunk("other", 1, 2, b"")])
        assert await archive.events("r") == chunks
        assert await archive.events("r", 10) == chunks[1:]
        assert await archive.events("r", 11) == chunks[1:]
        assert await archive.events("r", 30) == []


@pytest.mark.parametrize(
    ("restriction", "expected"),
    [
        ({}, [4, 3, 2, 1]),
        ({"graph_name": "other"}, [3]),
        ({"graph_name": "review", "graph_version": "1.2"}, [4, 1]),
        ({"graph_name": "other", "graph_version": "2"}, []),
        ({"states": ("FAILED", "CANCELLED")}, [4, 2]),
        ({"created_after": START + timedelta(microseconds=2)}, [4, 3, 2]),
        ({"created_before": START + timedelta(microseconds=2)}, [1]),
        ({"parent": "run-001"}, [3, 2]),
        ({"parent": "run-001/t/0/1"}, [2]),
        ({"parent": "run-00"}, []),
        ({"labels": (("a", "b"),)}, [2, 1]),
        ({"labels": (("a", "b"), ("c", "d"))}, [1]),
        ({"labels": (("a", "B"),)}, []),
        ({"failure": "DISK_"}, [4]),
        ({"failure": "DISK_", "labels": (("a", "b2"), ("ba", "b")), "states": ("CANCELLED",)}, [4]),
        ({"failure": "run-00"}, []),
        ({"failure": "%"}, []),
    ],
)
async def test_a_filter_shows_exactly_what_it_says(
    place: Place, restriction: dict[str, Any], expected: list[int]
) -> None:
    async with place() as archive:
        runs = [
            run(1, labels={"a": "b", "c": "d"}),
            run(2, state="FAILED", parent="run-001/t/0/1", labels={"a": "b"}, graph_version="2"),
            run(3, graph_name="other", parent="run-001/u/3/1", labels={"x": '{"a":"b"}', 'x,"a': "b"}),
            run(4, state="CANCELLED", failure_text="the disk_ was full", labels={"a": "b2", "ba": "b"}),
            run(5, namespace="elsewhere"),
        ]
        await archive.write(runs, [])
        found, token = await archive.list_runs(RunFilter("default", **restriction), 50)
        assert [int(one.run_id[4:]) for one in found] == expected
        assert token == ""


def in_archive(place: Place, test: Callable[[Archive], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        async with place() as archive:
            while await archive.delete_before(START + timedelta(days=1), 1000):
                pass  # of the example before
            await test(archive)

    asyncio.run(body())


FIXTURE = [HealthCheck.function_scoped_fixture]  # an example begins with an empty database
LABELS = st.dictionaries(
    st.text(st.sampled_from('a,{}:"\\\n'), max_size=5), st.text(st.sampled_from('b,{}:"\\\n'), max_size=5)
)


@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURE)
@example([{",": ":"}, {"": ",", ":": ""}], {})
@given(st.lists(LABELS, min_size=1, max_size=5), LABELS)
def test_labels_are_found_whatever_they_contain(
    place: Place, all_labels: list[dict[str, str]], wanted: dict[str, str]
) -> None:
    async def check(archive: Archive) -> None:
        await archive.write([run(number, labels=labels) for number, labels in enumerate(all_labels)], [])
        for pair in [*wanted.items(), *(pair for labels in all_labels for pair in labels.items())]:
            found, _ = await archive.list_runs(RunFilter("default", labels=(pair,)), 50)
            assert {one.run_id for one in found} == {
                f"run-{number:03}" for number, labels in enumerate(all_labels) if pair in labels.items()
            }

    in_archive(place, check)


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 7))
def test_pages_show_every_run_once_newest_first_while_others_arrive(
    place: Place, times: list[int], page_size: int
) -> None:
    async def check(archive: Archive) -> None:
        runs = [run(n, create_time=START + timedelta(microseconds=time)) for n, time in enumerate(times)]
        await archive.write(runs, [])
        seen: list[ArchivedRun] = []
        token, pages = "", 0
        while pages == 0 or token:
            page, token = await archive.list_runs(RunFilter("default"), page_size, token)
            assert len(page) == page_size or not token
            seen += page
            pages += 1
            await archive.write([run(900 + pages, create_time=START + timedelta(seconds=1))], [])
        assert seen == sorted(runs, key=lambda one: (one.create_time, one.run_id), reverse=True)

    in_archive(place, check)


async def test_a_page_token_of_another_listing_or_of_nobody_is_refused(place: Place) -> None:
    async with place() as archive:
        await archive.write([run(n) for n in range(5)], [])
        _, token = await archive.list_runs(RunFilter("default"), 2)
        damaged = [token[:-1], token[:-4], "A" + token[1:], "x", "*", "ä", token + "AAAA", "AAAAAAAAAAA"]
        for wrong in damaged:
            with pytest.raises(InvalidPageToken):
                await archive.list_runs(RunFilter("default"), 2, wrong)
        with pytest.raises(InvalidPageToken):
            await archive.list_runs(RunFilter("other"), 2, token)
        with pytest.raises(ValueError):
            await archive.list_runs(RunFilter("default"), 0)


async def test_retention_deletes_the_oldest_ended_runs_with_their_events(place: Place) -> None:
    async with place() as archive:
        runs = [run(n) for n in range(5)] + [run(5, end_time=None)]
        await archive.write(runs, [EventChunk(one.run_id, 1, 2, b"e") for one in runs])
        limit = START + timedelta(seconds=3)
        assert await archive.delete_before(limit, 2) == 2
        assert await archive.delete_before(limit, 2) == 1
        assert await archive.delete_before(limit, 2) == 0
        left, _ = await archive.list_runs(RunFilter("default"), 50)
        assert [one.run_id for one in left] == ["run-005", "run-004", "run-003"]
        assert await archive.events("run-002") == []
        assert len(await archive.events("run-005")) == 1


async def test_a_scan_shows_every_chunk_of_every_run_once(place: Place) -> None:
    chunks = [EventChunk(f"r{n}", first, first + 1, b"e") for n in "aBb" for first in (1, 3, 11)]
    async with place() as archive:
        await archive.write([], list(reversed(chunks)))
        seen: list[EventChunk] = []
        after = ("", 0)
        while page := await archive.scan(after, 2):
            seen += page
            after = page[-1].run_id, page[-1].first_seq
        assert seen == sorted(chunks, key=lambda chunk: (chunk.run_id, chunk.first_seq))


async def test_large_writes_are_whole(place: Place) -> None:
    async with place() as archive:
        await archive.write([run(n) for n in range(300)], [EventChunk(f"run-{n:03}", 1, 2, b"e") for n in range(300)])
        found, _ = await archive.list_runs(RunFilter("default"), 500)
        assert len(found) == 300
        assert await archive.events("run-299") == [EventChunk("run-299", 1, 2, b"e")]


async def test_texts_are_compared_by_their_bytes_and_ascii_letters_in_either_case(place: Place) -> None:
    async with place() as archive:
        ids = ["run-a", "run-B", "run-_", "run-b"]
        await archive.write([run(1, run_id=run_id, failure_text="Grün ÄRGER") for run_id in ids], [])
        found, _ = await archive.list_runs(RunFilter("default"), 50)
        assert [one.run_id for one in found] == sorted(ids, reverse=True)
        for part, expected in (("grün", 4), ("ärger", 0), ("n Ärger", 4), ("N ÄR", 4)):
            assert len((await archive.list_runs(RunFilter("default", failure=part), 50))[0]) == expected


async def test_two_writers_of_the_same_runs_do_not_disturb_each_other(place: Place) -> None:
    async with place() as one, place() as other:
        runs = [run(n) for n in range(100)]
        chunks = [EventChunk(run.run_id, 1, 10, b"e") for run in runs]
        await asyncio.gather(
            *(one.write(runs, chunks) for _ in range(5)),
            *(other.write(list(reversed(runs)), list(reversed(chunks))) for _ in range(5)),
        )
        found, _ = await one.list_runs(RunFilter("default"), 500)
        assert found == list(reversed(runs))


async def test_the_state_says_where_it_is_and_at_which_migration_and_changes_nothing(place: Place) -> None:
    for _ in range(2):
        assert "none yet, migration 0006 when it is first used" in await place().state()
    async with place():
        pass
    assert (await place().state()).endswith("at migration 0006")


def audit_page(first: int, last: int, chain: str = "calls", **values: Any) -> AuditPage:
    made = AuditPage(chain, first, last, START + timedelta(seconds=last), b"\0page %d" % first)
    return replace(made, **values)


async def test_pages_of_audit_chains_are_found_by_any_record_of_theirs(place: Place) -> None:
    pages = [audit_page(1, 3), audit_page(4, 4), audit_page(5, 90), audit_page(91, 92)]
    async with place() as archive:
        await archive.write_audit([pages[3], pages[1], audit_page(1, 60, "shard-0000"), pages[0]])
        await archive.write_audit([pages[2]])
        await archive.write_audit([])
    async with place() as archive:
        assert await archive.audit_pages("calls", 1, 1000, 10) == pages
        assert await archive.audit_pages("calls", 1, 1000, 2) == pages[:2]
        assert await archive.audit_pages("calls", 3, 4, 10) == pages[:2]
        assert await archive.audit_pages("calls", 50, 90, 10) == [pages[2]]
        assert await archive.audit_pages("calls", 93, 1000, 10) == []
        assert await archive.audit_pages("shard-0001", 1, 1000, 10) == []


async def test_a_page_that_is_archived_is_never_replaced(place: Place) -> None:
    page, forged = audit_page(1, 3), audit_page(1, 30, data=b"forged")
    async with place() as archive:
        for pages in ([page], [page, page], [forged]):
            await archive.write_audit(pages)
        assert await archive.audit_pages("calls", 1, 100, 10) == [page]


async def test_the_oldest_pages_of_one_chain_go_some_at_a_time(place: Place) -> None:
    pages = [audit_page(first, first + 9) for first in range(1, 60, 10)]
    other = audit_page(1, 10, "shard-0000")
    async with place() as archive:
        await archive.write_audit([*pages, other])
        assert await archive.delete_audit("calls", 45, 3) == 3
        assert await archive.delete_audit("calls", 45, 3) == 1
        assert await archive.delete_audit("calls", 45, 3) == 0
        assert await archive.audit_pages("calls", 1, 100, 10) == pages[4:]
        assert await archive.audit_pages("shard-0000", 1, 100, 10) == [other]


async def test_requests_of_ended_runs_are_read_in_the_order_of_their_end(place: Place) -> None:
    ended = [run(n, request_key=b"%d" % n, end_time=START + timedelta(seconds=n // 2)) for n in (5, 3, 2, 4, 1)]
    async with place() as archive:
        await archive.write([*ended, run(9, end_time=None)], [])
        found = await archive.requests((START - timedelta(days=1), ""), 3)
        assert [one.request_key for one in found] == [b"1", b"2", b"3"]
        assert found[0] == ArchivedRequest("run-001", b"1", b"\xffdigest", START)
        rest = await archive.requests((found[-1].end_time, found[-1].run_id), 3)
        assert [one.request_key for one in rest] == [b"4", b"5"]
        assert await archive.requests((START + timedelta(seconds=9), ""), 3) == []
