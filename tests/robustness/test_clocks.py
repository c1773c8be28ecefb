"""The clock of one process jumps, forwards and backwards, while it works: by libfaketime, in the process alone.

Its monotonic clock goes on as ever, as when an administrator or a time server sets a machine's clock.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import run_pb2

from tests.conftest import RequireLibrary
from tests.harness import Mesh, Process, eventually, journal_of

JUMPS = [timedelta(minutes=20), timedelta(0), -timedelta(seconds=45)]
"""Where the clock is set, relative to the true time, one after the other. Not further back than certificates allow:
who is behind the beginning of one refuses it, here as everywhere."""

PATIENCE = timedelta(seconds=120)
RULE = Retry(["LOST", "TRANSIENT"], max_attempts=20, backoff=timedelta(seconds=1), max_backoff=timedelta(seconds=1))


class Clock:
    """The wall clock of processes that are started with its `environment`."""

    def __init__(self, library: str, path: Path) -> None:
        self._path = path
        self.set(timedelta(0))
        self.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: timedelta) -> None:
        seconds = offset.total_seconds()
        # Renamed into place: whoever reads meets a whole line.
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{seconds:+g}\n")
        fresh.replace(self._path)


@pytest.fixture
def faketime(require_library: RequireLibrary) -> str:
    return require_library("libfaketimeMT.so.1", package="libfaketime")


@pytest.mark.proves("clock set forwards or backwards")
@pytest.mark.parametrize("whose", ["orchestrator", pytest.param("sidecar", marks=pytest.mark.long_form)])
async def test_runs_go_on_and_nothing_is_lost_or_run_again_when_a_clock_is_set(faketime: str, whose: str) -> None:
    mesh = Mesh()
    clock = Clock(faketime, mesh.path("clock"))
    if whose == "orchestrator":
        mesh.orchestrator.environment |= clock.environment
    with mesh:
        try:
            sidecar = mesh.sidecar(concurrency=16, start=False)
            if whose == "sidecar":
                sidecar.environment |= clock.environment
            sidecar.start()
            async with mesh.client(timeout=PATIENCE) as client:
                await mesh.attached(client)
                await jump(mesh, client, clock, mesh.orchestrator if whose == "orchestrator" else None)
        finally:
            mesh.show()


async def jump(mesh: Mesh, client: Client, clock: Clock, orchestrator: Process | None) -> None:
    held, gate = Graph("held"), mesh.path("gate")
    held.task("t", "work.hold@1", input=str(gate))
    again = Graph("again")
    again.task("t", "work.fail@1", input={"kind": "transient", "times": 2}, retry=[RULE])
    long = await client.submit(held)
    await eventually(lambda: journal_of(mesh.journal))
    for offset in JUMPS:
        # Between its attempts it waits for a time that the jump may seem to move.
        retried = await client.submit(again)
        await eventually(lambda run=retried: failed_once(mesh, run))  # type: ignore[misc]
        clock.set(offset)
        assert output_of(await client.wait(retried.run_id, timeout=PATIENCE)) == {"t": 3}
        echo = Graph("echo")
        echo.task("t", "work.echo@1", input="fine")
        assert output_of(await client.submit(echo, wait=True, timeout=PATIENCE)) == {"t": "fine"}
    gate.touch()
    assert output_of(await client.wait(long.run_id)) == {"t": "released"}
    assert (await client.get_task(long.run_id, "t")).attempt_count == 1


def failed_once(mesh: Mesh, run: run_pb2.Run) -> bool:
    return any(e.event == "failed" and e.attempt_id.startswith(run.run_id) for e in journal_of(mesh.journal))
