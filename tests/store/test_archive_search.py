"""Each way to search has its index, in the order of the listing, so that a page costs what is on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator.archive import RunFilter, archive_at, queries
from antiphon_orchestrator.archive.postgres import _has_label
from sqlalchemy.dialects import postgresql, sqlite
from test_archive import START, run

from tests.harness.postgres import Postgres

WAYS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "runs_by_time", "runs_by_time"),
    ({"created_after": START}, "runs_by_time", "runs_by_time"),
    ({"graph_name": "review"}, "runs_by_graph", "runs_by_graph"),
    ({"graph_name": "review", "graph_version": "2"}, "runs_by_graph", "runs_by_graph"),
    ({"states": ("FAILED",)}, "runs_by_state", "runs_by_state"),
    ({"parent": "run-001"}, "runs_by_parent", "runs_by_parent"),
    ({"parent": "run-001/t/0/1"}, "runs_by_parent", "runs_by_parent"),
    ({"failure": "disk"}, "runs_by_failure", "runs_by_failure"),
    ({"labels": (("team", "a"),)}, "run_labels USING PRIMARY KEY", "runs_by_label"),
    ({"labels": (("team", "a"), ("x", "y"))}, "run_labels USING PRIMARY KEY", "runs_by_label"),
]


def statement(restriction: dict[str, Any], dialect: Any, has_label: queries.HasLabel | None) -> str:
    query = queries.select_page(RunFilter("default", **restriction), 50, "", has_label)
    return str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


@pytest.mark.parametrize(("restriction", "index"), [(restriction, index) for restriction, index, _ in WAYS])
async def test_the_file_answers_from_an_index(tmp_path: Path, restriction: dict[str, Any], index: str) -> None:
    path = tmp_path / "archive.db"
    async with archive_at(f"sqlite:///{path}"):
        pass
    asked = statement(restriction, sqlite.dialect(), None)
    with closing(sqlite3.connect(path)) as connection:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked}")]
    assert index in steps[0] and steps[0].startswith("SEARCH"), steps
    # What an agent's run called for is few; all else comes in order, however much there is.
    assert "parent" in restriction or not any("TEMP B-TREE" in step for step in steps), steps


@pytest.mark.parametrize(("restriction", "index"), [(restriction, index) for restriction, _, index in WAYS])
async def test_the_server_can_answer_from_an_index(postgres: Postgres, restriction: dict[str, Any], index: str) -> None:
    url = postgres.database()
    async with archive_at(url) as archive:
        # Enough of them to make the index worth it, and few that fit.
        runs = [run(n, labels={"team": str(n)}, graph_name=f"g{n}", state="SUCCEEDED") for n in range(300)]
        await archive.write([replace(one, create_time=START - timedelta(days=1)) for one in runs], [])
    asked = statement(restriction, postgresql.dialect(), _has_label)
    settings = "ANALYZE runs; SET enable_seqscan = off;"
    plan = postgres.sql(f"{settings} EXPLAIN {asked}", url.rpartition("/")[2])
    assert index in plan, plan


async def test_labels_go_with_their_run_and_stay_when_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "archive.db"
    ended = run(1, labels={"team": "a", "x": "y"})
    async with archive_at(f"sqlite:///{path}") as archive:
        await archive.write([replace(ended, end_time=None, last_event_seq=1)], [])
        await archive.write([ended, run(2, labels={"team": "a"})], [])
        wanted = RunFilter("default", labels=(("team", "a"),))
        first, token = await archive.list_runs(wanted, 1)
        second, end = await archive.list_runs(wanted, 1, token)
        assert [one.run_id for one in (*first, *second)] == ["run-002", "run-001"] and not end
        assert await archive.delete_before(START + timedelta(days=1), 10) == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM run_labels").fetchall() == []
