"""The archive's migrations: an older database is brought up, a newer or a foreign one is refused with the remedy."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from antiphon_orchestrator.archive import ArchiveIncompatible, RunFilter, archive_at, schema
from antiphon_orchestrator.archive.migrations import versions
from test_archive import run

from tests.harness.postgres import Postgres

Execute = Callable[[str], list[str]]

INDEXES = {
    "sqlite": "SELECT name || ' ' || sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name",
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
}
COLUMNS = {
    "sqlite": "SELECT m.name || ' ' || c.name || ' ' || c.type || c.\"notnull\" || c.pk"
    " FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY 1",
    "postgresql": "SELECT concat_ws(' ', table_name, column_name, data_type, character_maximum_length, is_nullable,"
    " collation_name) FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], tuple[str, Execute]]:
    """Each call makes an empty database: its URL, and a way past the archive to it."""

    def file() -> tuple[str, Execute]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"

        def execute(statement: str) -> list[str]:
            with closing(sqlite3.connect(path)) as connection, connection:
                return [str(row[0]) for row in connection.execute(statement)]

        return f"sqlite:///{path}", execute

    def server() -> tuple[str, Execute]:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.database()
        return url, lambda statement: postgres.sql(statement, url.rpartition("/")[2]).splitlines()

    return file if request.param == "sqlite" else server


def first_version(execute: Execute) -> None:
    """The tables and the mark of before there were migrations."""
    execute("CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY)")
    execute("INSERT INTO schema_version VALUES (1)")
    collated = "" if "file" in execute.__qualname__ else ' COLLATE "C"'
    blob = "BYTEA" if collated else "BLOB"
    text = f"VARCHAR{collated} NOT NULL"
    execute(
        f"CREATE TABLE runs (run_id VARCHAR(128){collated} NOT NULL PRIMARY KEY, namespace {text}, graph_name {text},"
        f" graph_version {text}, state VARCHAR(32){collated} NOT NULL, principal {text}, request_key {blob} NOT NULL,"
        f" request_digest {blob} NOT NULL, parent {text}, labels {text}, failure_text {text},"
        " create_time BIGINT NOT NULL, end_time BIGINT, last_event_seq BIGINT NOT NULL)"
    )
    for name, columns in (
        ("runs_by_time", "namespace, create_time, run_id"),
        ("runs_by_state", "namespace, state, create_time, run_id"),
        ("runs_by_graph", "namespace, graph_name, create_time, run_id"),
        ("runs_by_end", "end_time"),
    ):
        execute(f"CREATE INDEX {name} ON runs ({columns})")
    execute(
        f"CREATE TABLE run_events (run_id VARCHAR(128){collated} NOT NULL, first_seq BIGINT NOT NULL,"
        f" last_seq BIGINT NOT NULL, data {blob} NOT NULL, PRIMARY KEY (run_id, first_seq))"
    )
    execute(
        "INSERT INTO runs VALUES ('run-001', 'default', 'review', '1.2', 'SUCCEEDED', 'me', '', '', '',"
        " '{\n\"a\":\"b\"\n}', '', 1, 2, 3)"
    )


async def test_an_older_database_is_migrated_with_what_it_holds(made: Callable[[], tuple[str, Execute]]) -> None:
    url, execute = made()
    first_version(execute)
    assert (await archive_at(url).state()).endswith("at migration 0001, 0006 when an orchestrator starts")
    async with archive_at(url) as archive:
        found, _ = await archive.list_runs(RunFilter("default", labels=(("a", "b"),)), 50)
        assert [(one.run_id, one.failure_kind, one.failure_code) for one in found] == [("run-001", 0, "")]
        await archive.write([run(2)], [])
        # As a replica of the version before writes, which does not know all columns.
        execute(
            "INSERT INTO runs (run_id, namespace, graph_name, graph_version, state, principal, request_key,"
            " request_digest, parent, labels, failure_text, create_time, end_time, last_event_seq) SELECT 'run-003',"
            " namespace, graph_name, graph_version, state, principal, request_key, request_digest, parent, '{}',"
            " failure_text, create_time, end_time, last_event_seq FROM runs WHERE run_id = 'run-002'"
        )
        written = await archive.get_run("run-003")
        assert written is not None and (written.failure_kind, written.failure_code) == (0, "")
    assert (await archive_at(url).state()).endswith("at migration 0006")
    assert execute("SELECT version_num FROM alembic_version") == ["0006"]


async def test_an_archive_has_one_id_for_all_its_life(made: Callable[[], tuple[str, Execute]]) -> None:
    for prepare in (lambda execute: None, first_version):
        url, execute = made()
        prepare(execute)
        assert await unopened(url) == ""
        archives = [archive_at(url) for _ in range(3)]
        await asyncio.gather(*(one.__aenter__() for one in archives))
        (here,) = {await one.identity() for one in archives}
        for one in archives:
            await one.__aexit__()
        assert len(here) == 32
        async with archive_at(url) as again:
            assert await again.identity() == here
        assert await unopened(url) == here
        assert execute("SELECT count(*) FROM archive_id") == ["1"]
        async with archive_at(made()[0]) as other:
            assert await other.identity() != here


async def unopened(url: str) -> str:
    archive = archive_at(url)
    try:
        return await archive.identity()
    finally:
        await archive.__aexit__()


async def test_migrations_end_where_an_empty_database_begins(made: Callable[[], tuple[str, Execute]]) -> None:
    (old, ask_old), (new, ask_new) = made(), made()
    first_version(ask_old)
    for url in (old, new):
        async with archive_at(url):
            pass
    kind = url.partition(":")[0]
    assert ask_old(INDEXES[kind]) == ask_new(INDEXES[kind])
    # SQLite keeps a type's name as it was written, and TEXT was: it means the same there.
    columns = [[line.replace("TEXT", "VARCHAR") for line in ask(COLUMNS[kind])] for ask in (ask_old, ask_new)]
    assert columns[0] == columns[1]


async def test_a_newer_database_is_refused_with_the_remedy_and_left_alone(
    made: Callable[[], tuple[str, Execute]],
) -> None:
    url, execute = made()
    async with archive_at(url):
        pass
    execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(ArchiveIncompatible, match="0099, and this antiphon knows none after 0006: use the version"):
        async with archive_at(url):
            pass
    with pytest.raises(ArchiveIncompatible):
        await archive_at(url).state()
    assert execute("SELECT version_num FROM alembic_version") == ["0099"]


async def test_tables_of_somebody_else_are_left_alone(made: Callable[[], tuple[str, Execute]]) -> None:
    url, execute = made()
    execute("CREATE TABLE runs (distance INTEGER)")
    with pytest.raises(ArchiveIncompatible, match="give it one of its own"):
        async with archive_at(url):
            pass
    assert execute("SELECT count(*) FROM runs") == ["0"]


async def test_several_may_start_at_once_on_an_empty_and_on_an_older_database(
    made: Callable[[], tuple[str, Execute]],
) -> None:
    for prepare in (lambda execute: None, first_version):
        url, execute = made()
        prepare(execute)
        archives = [archive_at(url) for _ in range(3)]
        await asyncio.gather(*(one.__aenter__() for one in archives))
        await asyncio.gather(*(one.write([run(number)], []) for number, one in enumerate(archives, 10)))
        found, _ = await archives[0].list_runs(RunFilter("default"), 50)
        assert {"run-010", "run-011", "run-012"} <= {one.run_id for one in found}
        for one in archives:
            await one.__aexit__()
        assert execute("SELECT version_num FROM alembic_version") == ["0006"]


def test_every_step_is_listed_in_order() -> None:
    steps = sorted(path.stem for path in Path(versions.__path__[0]).glob("r*.py"))
    assert [step[1:5] for step in steps] == list(schema.REVISIONS)
