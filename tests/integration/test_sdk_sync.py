"""The client without asyncio, on a real mesh: as scripts, threads and notebooks use it."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import antiphon
import pytest
from antiphon import (
    ClaimHeld,
    ClaimLost,
    Client,
    DeadlineExceeded,
    Graph,
    GraphNotFound,
    RunNotFound,
    SetupError,
    output_of,
    ref,
    sync,
)
from antiphon._portal import PORTAL
from antiphon.v1 import context_service_pb2

from tests.harness import Mesh

pytest_plugins = ("tests.harness.fixtures",)

ECHO = Graph("echo", output=ref("tasks.echo.output"))
ECHO.task("echo", "work.echo@1", input=ref("input"))
HOLD = Graph("hold", output=ref("tasks.hold.output"))
HOLD.task("hold", "work.hold@1", input=ref("input"))
LIMIT = 60.0


def made(mesh: Mesh, name: str = "script") -> sync.Client:
    """A client that is not open yet."""
    return sync.Client.connect(address=mesh.orchestrator.address, credentials=mesh.ca.client(name))


@pytest.fixture
def client(mesh: Mesh) -> Iterator[sync.Client]:
    with made(mesh) as client:
        yield client
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "antiphon"]


def test_a_script_submits_a_run_and_has_its_output(client: sync.Client) -> None:
    run = client.submit(ECHO, {"text": "hello"}, wait=True)
    assert output_of(run) == {"text": "hello"}
    assert client.get_run(run.run_id).run_id == run.run_id


def test_errors_are_those_of_the_client(client: sync.Client) -> None:
    with pytest.raises(GraphNotFound) as caught:
        client.submit("no-such-graph")
    assert caught.value.remedy is antiphon.Remedy.FIX_REQUEST
    with pytest.raises(RunNotFound):
        list(client.list_tasks("r0000aaaaaaaaaaaaaaaaaaaaaa"))


def test_a_watch_is_iterated_to_its_end(client: sync.Client) -> None:
    run = client.submit(ECHO, 1)
    events = list(client.watch(run.run_id))
    assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
    assert client.wait(run.run_id).run_id == run.run_id


def test_a_watch_may_be_left_in_the_middle(client: sync.Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = client.submit(HOLD, str(gate))
    for event in client.watch(run.run_id):
        assert event.event_seq == 1
        break
    with pytest.raises(DeadlineExceeded):
        client.wait(run.run_id, timeout=timedelta(milliseconds=50))
    gate.touch()
    assert output_of(client.wait(run.run_id)) == "released"


def test_lists_are_iterated_over_pages(client: sync.Client) -> None:
    ids = [client.submit(ECHO, n, labels={"test": "pages"}, wait=True).run_id for n in range(3)]
    assert [run.run_id for run in client.list_runs(labels={"test": "pages"}, page_size=1)] == ids[::-1]


def test_many_runs_go_through_one_stream(client: sync.Client) -> None:
    with client.submitter() as submitter:
        answers = [submitter.submit(ECHO, n, wait=True) for n in range(50)]
        refused = submitter.submit("no-such-graph")
    assert [output_of(answer.result(LIMIT)) for answer in answers] == list(range(50))
    with pytest.raises(GraphNotFound):
        refused.result(LIMIT)


def test_a_claim_is_held_while_a_block_runs(client: sync.Client, mesh: Mesh) -> None:
    with client.claim("plan") as claim:
        client.put_entry("plan", {"n": 1}, claim=claim)
        with made(mesh, "other") as other, pytest.raises(ClaimHeld), other.claim("plan"):
            raise AssertionError
    with client.claim("plan"):
        pass


def test_what_a_block_raises_is_its_own_and_the_claim_is_given_up(client: sync.Client) -> None:
    with pytest.raises(KeyError, match="mine"), client.claim("plan"):
        raise KeyError("mine")
    with client.claim("plan"):
        pass


def test_a_claim_that_is_lost_meanwhile_is_an_error_at_the_end_of_its_block(client: sync.Client) -> None:
    with pytest.raises(ClaimLost), client.claim("brief", ttl=timedelta(seconds=1)) as claim:
        client.release_claim(context_service_pb2.ReleaseClaimRequest(claim=claim.claim))
        assert PORTAL.call(_left)


async def _left() -> bool:
    """Once the claim's keeper has found out, at its next renewal: its block has left the loop."""
    async with asyncio.timeout(LIMIT):
        while any(task.get_coro().__qualname__.endswith("hold") for task in asyncio.all_tasks()):  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return True


async def test_it_works_where_a_loop_runs_already(mesh: Mesh) -> None:
    with made(mesh) as client:
        assert output_of(client.submit(ECHO, "from a notebook", wait=True)) == "from a notebook"


def test_several_threads_use_one_client(client: sync.Client) -> None:
    found: list[object] = []

    def work(n: int) -> None:
        found.append(output_of(client.submit(ECHO, n, wait=True)))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT)
    assert sorted(found) == list(range(8))  # type: ignore[type-var]


def test_several_clients_share_one_thread_and_the_last_one_ends_it(mesh: Mesh) -> None:
    first, second = made(mesh, "one").open(), made(mesh, "two").open()
    assert len(threads()) == 1
    first.close()
    first.close()
    assert output_of(second.submit(ECHO, 2, wait=True)) == 2
    second.close()
    assert not threads()


def test_a_client_that_is_not_open_says_so(mesh: Mesh) -> None:
    client = made(mesh)
    for _ in range(2):
        with pytest.raises(SetupError, match=r"use it inside: with sync\.Client"):
            client.get_run("r")
        client.open()
        client.close()


def test_an_interrupt_ends_the_wait_and_the_script_and_leaves_no_trace_of_threads(mesh: Mesh, tmp_path: Path) -> None:
    credentials = mesh.ca.client("script")
    script = f"""
import sys
from antiphon import Credentials, Graph, sync
graph = Graph("hold")
graph.task("hold", "work.hold@1", input={str(tmp_path / "gate")!r})
credentials = Credentials.from_files({str(credentials.cert)!r}, {str(credentials.key)!r}, {str(credentials.bundle)!r})
client = sync.Client.connect(address={mesh.orchestrator.address!r}, credentials=credentials).open()
run = client.submit(graph)
try:
    for event in client.watch(run.run_id):
        print(event.event_seq, flush=True)
except KeyboardInterrupt:
    print(client.cancel(run.run_id).run_id == run.run_id, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        os.kill(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert (said.splitlines()[-1], errors, process.returncode) == ("True", "", 0)


def test_it_has_every_word_of_the_client() -> None:
    words = {name for name in dir(Client) if not name.startswith("_")}
    assert words <= set(dir(sync.Client))
    assert {name for name in dir(sync.Client) if not name.startswith("_")} - words == {"open", "close"}
    for name in words:
        asynchronous, plain = getattr(Client, name), getattr(sync.Client, name)
        assert plain.__doc__, name
        named = list(inspect.signature(asynchronous).parameters)
        assert list(inspect.signature(plain).parameters) == named, name
        streams = inspect.isasyncgenfunction(asynchronous) or _answers(asynchronous, AsyncIterator)
        assert inspect.iscoroutinefunction(asynchronous) or streams or name in ("connect", "claim", "submitter"), name


def _answers(function: object, what: type) -> bool:
    return str(inspect.signature(function).return_annotation).startswith(what.__name__)  # type: ignore[arg-type]
