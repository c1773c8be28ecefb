"""Callers that mean harm, and somebody honest beside them: they meet their limits, and what is honest gets done.

The short form looks at what each is told and that all honest work ends well. How much gets done is a ratio of slices in
turn, with and without them, of one run on one machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from antiphon import Client, Graph
from antiphon.v1 import run_pb2
from antiphon_certs import Kind

from tests.harness import LIMIT, Mesh
from tests.robustness.attacks import ATTACKS

STREAMS = 64
CALLERS, SLICE, PAIRS, ENOUGH = 16, 3.0, 7, 0.8
REFUSED = {
    "silent_sockets": {"closed"},
    "silent_tls": {"closed"},
    "large_metadata": {"RESOURCE_EXHAUSTED"},
    "unread_watches": {"OVERLOADED"},
    "attaches_of_strangers": {"CERTIFICATE_REQUIRED", "ACCESS_DENIED"},
}
"""What each is told at once; others hold what they have until it is too old, and are not read any further."""

LOST = {"UNAVAILABLE", "refused"}
"""What else calls and connections are told, as may be on a machine that has far too much to do: who means harm is then
too slow to finish a handshake in time, or to keep a connection alive."""


def echo() -> Graph:
    graph = Graph("one")
    graph.task("t", "work.echo@1", input=1)
    return graph


class Attacked:
    """The program of attacks while it plays them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self) -> dict[str, Counter[str]]:
        """How often each attack was told what, so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(LIMIT):
            line = await self._process.stdout.readline()
        return {name: Counter(told) for name, told in json.loads(line).items()}


def reasons(told: Counter[str]) -> set[str]:
    return {what.partition(":")[0] for what in told}


@asynccontextmanager
async def attacked(mesh: Mesh, client: Client, names: Sequence[str]) -> AsyncIterator[Attacked]:
    """Plays attacks meanwhile, from a process of their own."""
    folder = mesh.path("mallory")
    for attack in names:
        (folder / attack).mkdir(parents=True)
        pem = mesh.ca.issue(Kind.CLIENT, attack.replace("_", "-"))
        for name, data in zip(("key", "chain", "bundle"), pem, strict=True):
            (folder / attack / f"{name}.pem").write_bytes(data)
    graph = Graph("open")
    graph.task("t", "work.nobody@1")
    run = await client.submit(graph)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.robustness.attacks",
        mesh.orchestrator.address, mesh.orchestrator.join_address, str(folder), run.run_id, *names,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(2 * LIMIT):
            assert await process.stdout.readline() == b"ready\n"
        yield Attacked(process)
    finally:
        process.kill()
        await process.wait()


async def press(client: Client, seconds: float) -> float:
    """Runs a second that honest callers get done; each of them must end well."""
    done = 0
    begin = time.monotonic()

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < begin + seconds:
            run = await client.submit(echo(), wait=True)
            assert run.state == run_pb2.RUN_STATE_SUCCEEDED
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / (time.monotonic() - begin)


@pytest.mark.proves("callers that mean harm")
async def test_whoever_means_harm_is_refused_and_whoever_is_honest_is_served() -> None:
    with Mesh("--api-caller-streams", str(STREAMS)) as mesh:
        mesh.sidecar()
        async with mesh.client(timeout=timedelta(seconds=60)) as client:
            await mesh.attached(client)
            async with attacked(mesh, client, list(ATTACKS)) as harm:
                for _ in range(30):
                    run = await client.submit(echo(), wait=True)
                    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
                await press(client, 3.0)
                told = await harm.told()
                until = time.monotonic() + LIMIT
                # On a machine that has far too much to do, first calls of strangers may still be on their way.
                while time.monotonic() < until and not all(REFUSED[name] <= reasons(told[name]) for name in REFUSED):
                    await press(client, 1.0)
                    told = await harm.told()
        lines = mesh.orchestrator.said().splitlines()
        said = [line for line in lines if not line.startswith("{") or '"level": "error"' in line]
    for name, expected in REFUSED.items():
        assert expected <= reasons(told[name]) <= expected | LOST, (name, told[name])
    assert told["unread_watches"].total() >= 200 - STREAMS
    assert set(told["unread_submissions"]) <= {"not read any further"}
    assert said == []


@pytest.mark.long_form
@pytest.mark.proves("callers that mean harm")
@pytest.mark.parametrize("name", ATTACKS)
async def test_whoever_is_honest_gets_nearly_as_much_done_as_without_them(name: str) -> None:
    ratios = []
    with Mesh("--api-caller-streams", str(STREAMS)) as mesh:
        mesh.sidecar()
        async with mesh.client(timeout=timedelta(seconds=60)) as client:
            await mesh.attached(client)
            await press(client, SLICE)
            for _ in range(PAIRS):
                alone = await press(client, SLICE)
                async with attacked(mesh, client, [name]):
                    ratios.append(await press(client, SLICE) / alone)
    print(f"{name}: {statistics.median(ratios):.2f} of what is done without, {min(ratios):.2f} to {max(ratios):.2f}")
    assert statistics.median(ratios) >= ENOUGH
