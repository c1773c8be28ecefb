"""The archive in PostgreSQL: away, stalled, or somebody else; what it says then, and that it comes back by itself."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import asyncpg
import pytest
from antiphon_certs import Kind
from antiphon_orchestrator.archive import (
    ArchiveIncompatible,
    ArchiveRefused,
    ArchiveUnavailable,
    EventChunk,
    RunFilter,
    archive_at,
)
from antiphon_orchestrator.archive.postgres import PostgresArchive
from test_archive import run

from tests.conftest import RequireTool
from tests.harness import eventually
from tests.harness.authority import Ca
from tests.harness.postgres import PASSWORD, Postgres

BRIEFLY = 1.0
_SAID = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
_SHUT_DOWN = b"E" + struct.pack(">I", 4 + len(_SAID)) + _SAID
"""What PostgreSQL says behind an answer when it is stopped at that moment: ErrorResponse of its protocol."""


@pytest.fixture
def own(require_tool: RequireTool) -> Iterator[Postgres]:
    """A server that the test may harm."""
    require_tool("initdb", package="postgresql")
    with Postgres() as server:
        yield server


async def works_again(archive: PostgresArchive) -> None:
    async def look() -> bool:
        try:
            await archive.write([run(9)], [EventChunk("run-009", 1, 2, b"e")])
        except ArchiveUnavailable:
            return False
        return await archive.get_run("run-009") == run(9)

    await eventually(look)


async def test_a_server_that_is_away_at_the_start_is_used_once_it_comes(own: Postgres) -> None:
    url = own.database()
    own.stop()
    async with PostgresArchive(url) as archive:
        with pytest.raises(ArchiveUnavailable, match="cannot be reached"):
            await archive.write([run()], [])
        with pytest.raises(ArchiveUnavailable, match="cannot be reached"):
            await archive.identity()
        own.start()
        await works_again(archive)
        assert await archive.identity()


@pytest.mark.parametrize("end", ["kill9", "stop"])
async def test_a_server_that_ends_and_comes_back_lost_nothing_it_had_confirmed(own: Postgres, end: str) -> None:
    async with PostgresArchive(own.database()) as archive:
        await archive.write([run(1)], [EventChunk("run-001", 1, 2, b"e")])
        getattr(own, end)()
        with pytest.raises(ArchiveUnavailable):
            await archive.write([run(2)], [])
        own.start()
        assert await archive.get_run("run-001") == run(1)  # the old connections are no obstacle
        await works_again(archive)


async def test_a_server_may_end_after_any_of_its_answers(postgres: Postgres) -> None:
    """Also of those with which a new connection is set up, which another layer asks for each time."""
    url = postgres.database()
    async with PostgresArchive(url) as archive:
        await archive.write([run(1)], [])
    for answers in range(2, 100):  # the first says that there is no TLS, in one byte and no message
        async with (
            _ending(postgres.address, answers) as address,
            PostgresArchive(url.replace(postgres.address, address), call=5) as archive,
        ):
            try:
                assert await archive.get_run("run-001") == run(1)
            except ArchiveUnavailable:
                continue
        assert answers > 5, "it ended before the connection was set up"
        return
    pytest.fail("no number of answers is enough")


@asynccontextmanager
async def _ending(target: str, answers: int) -> AsyncIterator[str]:
    """In front of a server whose every connection ends with so many of its answers."""
    host, _, port = target.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_passing(reader, before, None), _passing(behind, writer, answers))

    server = await asyncio.start_server(serve, host)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


async def _passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: int | None) -> None:
    with closing(writer), suppress(ConnectionError):
        while pieces != 0 and (data := await reader.read(1 << 16)):
            pieces = pieces and pieces - 1
            writer.write(data if pieces != 0 else data + _SHUT_DOWN)
            await writer.drain()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_connection_may_end_as_soon_as_it_is_made(postgres: Postgres, times: int) -> None:
    class Ending(PostgresArchive):
        left = 0

        async def _connect(self) -> asyncpg.Connection:
            made = await super()._connect()
            if self.left:
                self.left -= 1
                made.terminate()
            return made

    async with Ending(postgres.database()) as archive:
        await archive.write([run(1)], [])
        archive.left = times  # of the readers, who have none yet
        if times > 1:
            with pytest.raises(ArchiveUnavailable, match="connection is closed"):
                await archive.get_run("run-001")
        assert await archive.get_run("run-001") == run(1)


async def test_a_server_that_stands_still_costs_a_deadline_and_not_more(own: Postgres) -> None:
    async with PostgresArchive(own.database(), call=BRIEFLY) as archive:
        await archive.write([run(1)], [])
        assert await archive.get_run("run-001") == run(1)
        own.pause()
        try:
            for call in (archive.write([run(2)], []), archive.get_run("run-001"), archive.get_run("run-001")):
                with pytest.raises(ArchiveUnavailable):
                    await call
        finally:
            own.resume()
        await works_again(archive)


async def test_readers_that_wait_for_a_connection_do_not_wait_for_ever(own: Postgres) -> None:
    async with PostgresArchive(own.database(), call=BRIEFLY) as archive:
        own.pause()
        try:
            answers = await asyncio.gather(*(archive.get_run("x") for _ in range(40)), return_exceptions=True)
        finally:
            own.resume()
        assert {type(answer).__mro__[-4] for answer in answers} == {ArchiveUnavailable.__mro__[1]}
        await works_again(archive)


async def test_a_caller_that_goes_away_in_the_middle_harms_nobody(postgres: Postgres) -> None:
    async with PostgresArchive(postgres.database()) as archive:
        await archive.write([run(n) for n in range(300)], [])
        for _ in range(20):
            calls = [asyncio.ensure_future(archive.list_runs(RunFilter("default"), 200)) for _ in range(8)]
            await asyncio.sleep(0)
            calls[0].cancel()
            for call in calls[1:]:
                assert len((await call)[0]) == 200
        await works_again(archive)


async def test_a_write_too_large_for_one_statement_is_still_whole(postgres: Postgres) -> None:
    chunks = [EventChunk(f"run-{n:03}", 1, 2, bytes([n]) * 1_500_000) for n in range(10)]
    async with PostgresArchive(postgres.database()) as archive:
        await archive.write([run(n) for n in range(10)], chunks)
        assert [await archive.events(chunk.run_id) for chunk in chunks] == [[chunk] for chunk in chunks]


async def test_a_text_that_postgresql_cannot_hold_does_not_stop_the_archive(postgres: Postgres) -> None:
    async with PostgresArchive(postgres.database()) as archive:
        await archive.write([run(failure_text="a\0b", failure_code="c\0", labels={"k": "v\0"})], [])
        found = await archive.get_run("run-001")
        assert found is not None
        assert (found.failure_text, found.failure_code, found.labels) == (
            "a\N{REPLACEMENT CHARACTER}b",
            "c\N{REPLACEMENT CHARACTER}",
            {"k": "v\N{REPLACEMENT CHARACTER}"},
        )
        assert (await archive.list_runs(RunFilter("default", labels=(("k", "v\0"),)), 5))[0] == [found]
        assert await archive.get_run("run-001\0") is None


@pytest.mark.parametrize(
    ("restriction", "index"),
    [
        (RunFilter("default"), "runs_by_time"),
        (RunFilter("default", graph_name="g7"), "runs_by_graph"),
        (RunFilter("default", states=("FAILED",)), "runs_by_state"),
        (RunFilter("default", labels=(("k", "7"),)), "runs_by_label"),
    ],
)
async def test_a_listing_uses_its_index(filled: str, restriction: RunFilter, index: str) -> None:
    from antiphon_orchestrator.archive import postgres as module
    from antiphon_orchestrator.archive import queries
    from sqlalchemy import text
    from sqlalchemy.dialects.postgresql import dialect

    query = queries.select_page(restriction, 50, "", module._has_label)
    spelled = str(query.compile(dialect=dialect(), compile_kwargs={"literal_binds": True}))
    archive = PostgresArchive(filled)
    async with archive._reading.connect() as connection:
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {spelled.replace(':', chr(92) + ':')}"))).scalars())
    await archive.__aexit__()
    assert index in plan, plan


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> str:
    """A database with 20,000 runs, analysed."""
    url = postgres.database()

    async def fill() -> None:
        async with archive_at(url) as archive:
            runs = [
                run(n, run_id=f"r{n:05}", graph_name=f"g{n % 500}", labels={"k": str(n % 1000)},
                    state="FAILED" if n % 2000 == 0 else "SUCCEEDED")
                for n in range(20_000)
            ]  # fmt: skip
            await archive.write(runs, [])

    asyncio.run(fill())
    postgres.sql("ANALYZE", url.rpartition("/")[2])
    return url


async def test_a_wrong_password_is_refused_and_no_password_is_told(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(password=None)
    file = tmp_path / "password"
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    for wrong in (postgres.url(password="not it"), f"{url}?password=not%20it"):
        with pytest.raises(ArchiveRefused, match=r"password authentication failed.*check user, password") as refused:
            async with archive_at(wrong):
                pass
        assert "not it" not in str(refused.value) and "not%20it" not in str(refused.value)
    with pytest.raises(ArchiveRefused, match="password: No such file"):
        await archive_at(url, file).state()
    file.write_text("nor it\n")
    with pytest.raises(ArchiveRefused) as refused:
        await archive_at(url, file).state()
    assert "nor it" not in str(refused.value)
    file.write_text(f"{PASSWORD}\n")
    assert "migration" in await archive_at(url, file).state()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert "migration" in await archive_at(url).state()
    assert PASSWORD not in await archive_at(postgres.url()).state()


async def test_a_database_that_is_not_there_is_refused(postgres: Postgres) -> None:
    with pytest.raises(ArchiveRefused, match='"nowhere" does not exist'):
        async with archive_at(postgres.url("nowhere")):
            pass


async def test_of_several_hosts_the_one_that_takes_writes_is_used(postgres: Postgres) -> None:
    url = postgres.database().replace("@", "@127.0.0.1:9,") + "?target_session_attrs=read-write"
    async with archive_at(url) as archive:
        await archive.write([run()], [])
        assert await archive.get_run("run-001") == run()


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Postgres) -> None:
    postgres.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(ArchiveIncompatible, match="is in LATIN1: give it one that is in UTF8"):
        async with archive_at(postgres.url("latin")):
            pass


async def test_a_user_without_rights_is_refused(postgres: Postgres) -> None:
    url = postgres.database()
    postgres.sql("CREATE ROLE reader LOGIN PASSWORD 'x'")
    with pytest.raises(ArchiveRefused, match="permission denied for schema public"):
        async with archive_at(re.sub("//.*@", "//reader:x@", url)):
            pass


@pytest.fixture(scope="module")
def tls(require_tool: RequireTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Path]]:
    """A server that speaks TLS as localhost, and the file of its authority."""
    require_tool("initdb", package="postgresql")
    folder = tmp_path_factory.mktemp("tls")
    ca = Ca(folder / "ca")
    key, chain, bundle = ca.issue(Kind.ORCHESTRATOR, "localhost")
    for name, content in (("key", key), ("chain", chain), ("bundle", bundle)):
        (folder / name).write_bytes(content)
    with Postgres((folder / "chain", folder / "key")) as server:
        yield server, folder / "bundle"


async def test_tls_is_taken_from_the_right_server_and_refused_from_any_other(
    tls: tuple[Postgres, Path], postgres: Postgres, tmp_path: Path
) -> None:
    server, bundle = tls
    ours = f"{server.database()}?sslmode=verify-ca&sslrootcert={bundle}"
    async with archive_at(ours) as archive:
        await archive.write([run()], [])
    assert server.sql("SELECT count(*) FROM runs", "archive1") == "1"
    foreign = tmp_path / "foreign"
    foreign.write_bytes(Ca(tmp_path / "third").authority.bundle_pem)
    for mode in ("verify-ca", "verify-full"):
        with pytest.raises(ArchiveRefused, match=r"certificate.*sslrootcert"):
            async with archive_at(f"{server.url()}?sslmode={mode}&sslrootcert={foreign}"):
                pass
    elsewhere = server.url().replace("127.0.0.1", "127.0.0.2")  # the right authority, and not a name it certified
    with pytest.raises(ArchiveRefused, match="certificate"):
        async with archive_at(f"{elsewhere}?sslmode=verify-full&sslrootcert={bundle}"):
            pass
    with pytest.raises(ArchiveRefused, match="rejected SSL"):
        async with archive_at(f"{postgres.url()}?sslmode=verify-full&sslrootcert={bundle}"):
            pass
    with pytest.raises(ArchiveRefused, match="absent: No such file"):
        async with archive_at(f"{server.url()}?sslmode=verify-full&sslrootcert={tmp_path / 'absent'}"):
            pass
