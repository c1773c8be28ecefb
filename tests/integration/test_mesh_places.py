"""A mesh whose archive is in PostgreSQL and whose payloads are in an object store, from the command to the record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from antiphon import Graph
from antiphon.v1 import run_pb2

from tests.harness import Mesh, eventually
from tests.harness.objects import S3Server
from tests.harness.postgres import PASSWORD, Postgres


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An object store that processes find by their environment."""
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def check(*settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", "check", *settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def graph() -> Graph:
    made = Graph("places")
    made.task("t", "work.echo@1", input=1)
    return made


async def test_archive_and_payloads_elsewhere_do_all_they_do_here(postgres: Postgres, objects: S3Server) -> None:
    url, place = postgres.database(), objects.bucket()
    with Mesh("--archive", url, "--payloads", place) as mesh:
        mesh.sidecar()
        settings = ("--authority", str(mesh.ca.folder), "--data", str(mesh.folder / "other"))
        said = check(*settings, "--archive", url, "--payloads", place, "--json")
        facts = json.loads(said.stdout)
        assert facts["archive"].endswith("at migration 0006")
        assert facts["payloads"] == f"{place}: can be written and read"
        async with mesh.client() as client:
            await mesh.attached(client)
            large = "x" * 200_000
            run = await client.submit(graph(), large, wait=True, labels={"team": "blue"})
            assert run.state == run_pb2.RUN_STATE_SUCCEEDED and run.input.HasField("blob")

            async def archived() -> bool:
                rows = postgres.sql("SELECT run_id FROM runs", url.rpartition("/")[2])
                return rows == run.run_id

            await eventually(archived)
            mesh.orchestrator.restart()
            async with mesh.client("bob") as other:
                assert await other.get_run(run.run_id) == run
                assert [one.run_id async for one in other.list_runs(labels={"team": "blue"})] == [run.run_id]
                assert [one.run_id async for one in other.list_runs(labels={"team": "red"})] == []
                assert await other.download_payload(run.input) == json.dumps(large).encode()
        assert not (mesh.orchestrator.data / "archive.db").exists()
        assert not (mesh.orchestrator.data / "payloads").exists()
        for secret in (PASSWORD, PASSWORD.replace(" ", "%20"), os.environ["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in mesh.orchestrator.said() + said.stdout + said.stderr


def test_a_start_that_somebody_must_mend_ends_in_one_line_with_the_remedy(postgres: Postgres, tmp_path: Path) -> None:
    newer = postgres.database()
    with Mesh("--archive", newer) as mesh:
        postgres.sql("UPDATE alembic_version SET version_num = '0099'", newer.rpartition("/")[2])
        for url, remedy in (
            (postgres.url(password="wrong"), "check user, password, database"),
            (postgres.url("nowhere"), "check user, password, database"),
            (newer, "use the version that migrated it or a newer one, or restore the backup"),
        ):
            mesh.orchestrator.kill9()
            mesh.orchestrator.settings = ("--policy-profile", "dev", "--archive", url)
            mesh.orchestrator.begin()
            assert mesh.orchestrator.end() == 2
            (line,) = re.findall("^antiphon orchestrator: .*$", mesh.orchestrator.said(), re.MULTILINE)[-1:]
            assert remedy in line
            said = check("--authority", str(mesh.ca.folder), "--archive", url)
            assert said.returncode == 2 and remedy in said.stderr and said.stderr.count("\n") == 1
        assert "Traceback" not in mesh.orchestrator.said()


def test_check_says_that_an_archive_is_away_or_not_made_yet(postgres: Postgres, tmp_path: Path) -> None:
    with Mesh() as mesh:
        settings = ("--authority", str(mesh.ca.folder), "--data", str(tmp_path))
        said = check(*settings)
        assert said.returncode == 0
        assert re.search("^archive .*none yet, migration 0006 when it is first used$", said.stdout, re.MULTILINE)
        assert re.search("^payloads .*none yet, made when an orchestrator starts$", said.stdout, re.MULTILINE)
        assert list(tmp_path.iterdir()) == []
        away = check(*settings, "--archive", f"postgresql://antiphon:{'hush'}@127.0.0.1:9/archive")
        assert away.returncode == 2 and "cannot be reached" in away.stderr and "hush" not in away.stderr


def test_an_orchestrator_with_files_of_its_own_carries_no_library_of_the_other_places(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from antiphon_orchestrator import app
from antiphon_orchestrator.config import load
config = load({"data": sys.argv[1]}, {})
async def main():
    async with app.archive_at(config.archive_url) as archive, app.ObjectBlobs(config.payloads_url) as blobs:
        assert [found async for found in blobs.all()] == []
        await archive.state()
asyncio.run(main())
print(sorted({"alembic", "asyncpg", "mako", "obstore", "sqlalchemy.dialects.postgresql"} & sys.modules.keys()))
"""
    for _ in range(2):
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[]", done.stderr
