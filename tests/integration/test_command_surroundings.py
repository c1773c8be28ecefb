"""What `antiphon orchestrator` says of surroundings in which it cannot serve: a line, and nothing of its insides."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from antiphon_orchestrator.store import Put, SqliteStore, Txn

from tests.harness import Ca, Mesh

pytest_plugins = ("tests.harness.fixtures",)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def refused(folder: Path, *words: str) -> str:
    """What it says on stderr, when it cannot."""
    ca = folder / "ca"
    if not ca.exists():
        Ca(ca)
    given = dict(zip(words[1::2], words[2::2], strict=True))
    given = {"--listen": "127.0.0.1:0", "--join-listen": "127.0.0.1:0", "--data": str(folder / "data"), **given}
    settings = [word for pair in given.items() for word in pair]
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", words[0], "--authority", str(ca), *settings]
    environ = {**os.environ, "GRPC_VERBOSITY": "NONE"}  # its core has a line of its own for an address
    quiet = ("--telemetry-log-level", "error")
    done = subprocess.run([*command, *quiet], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("setting", ["listen", "join_listen"])
def test_a_taken_address_is_named_with_its_setting(setting: str, taken: str, tmp_path: Path) -> None:
    said = refused(tmp_path, "serve", f"--{setting.replace('_', '-')}", taken)
    assert said == f"antiphon orchestrator: {setting}: cannot listen on {taken}: Address already in use\n"


def test_a_taken_port_of_metrics_is_named_with_its_setting(taken: str, tmp_path: Path) -> None:
    said = refused(tmp_path, "serve", "--telemetry-metrics-port", taken.rpartition(":")[2])
    wanted = f"antiphon orchestrator: telemetry.metrics_port: cannot listen on {taken}: Address already in use\n"
    assert said == wanted


def test_an_address_of_another_machine_is_not_called_taken(tmp_path: Path) -> None:
    said = refused(tmp_path, "serve", "--listen", "192.0.2.1:7600")
    wanted = "antiphon orchestrator: listen: cannot listen on 192.0.2.1:7600: Cannot assign requested address\n"
    assert said == wanted


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_store_that_is_no_database_is_refused_with_its_remedy(command: str, tmp_path: Path) -> None:
    store = tmp_path / "data/store.db"
    store.parent.mkdir()
    store.write_bytes(bytes(range(100)))
    said = refused(tmp_path, command)
    cause = f"cannot open the store {store}: file is not a database; restore a backup, as docs/operations.md says"
    assert said == f"antiphon orchestrator: {cause}\n"
    assert store.read_bytes() == bytes(range(100))


def test_a_store_that_is_damaged_behind_its_first_page_is_refused_with_its_remedy(tmp_path: Path) -> None:
    store = tmp_path / "data/store.db"

    async def make() -> None:
        async with SqliteStore(store) as made:
            await made.commit(Txn(ops=(Put(b"run/1", bytes(20_000)),)))

    asyncio.run(make())
    with store.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8192))
    said = refused(tmp_path, "serve")
    cause = "database disk image is malformed; restore a backup, as docs/operations.md says"
    assert said == f"antiphon orchestrator: cannot open the store {store}: {cause}\n"


@pytest.mark.parametrize("setting", ["data", "payloads"])
def test_a_file_where_a_folder_is_needed_is_named_with_its_setting(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "r1.env"
    file.touch()
    said = refused(tmp_path, "serve", f"--{setting}", file.as_uri() if setting == "payloads" else str(file))
    cause = f"{file} cannot be used as a folder: File exists; give another one"
    assert said == f"antiphon orchestrator: {setting}: {cause}\n"


def test_a_store_in_use_is_checked_as_it_is(mesh: Mesh) -> None:
    where = ("--authority", str(mesh.ca.folder), "--data", str(mesh.orchestrator.data))
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", "check", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "store.db: " in done.stdout, done.stdout + done.stderr
