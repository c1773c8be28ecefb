"""The kit for users' own tests, used as they use it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from antiphon import (
    Agent,
    AntiphonError,
    Graph,
    PermanentFailure,
    PolicyDenied,
    Retry,
    SetupError,
    TaskContext,
    TransientFailure,
    output_of,
    ref,
    sync,
)
from antiphon.testing import Mesh, eventually
from antiphon.v1 import failure_pb2, run_pb2
from pydantic import BaseModel, field_validator

MINUTE = timedelta(minutes=1)
LIMIT = timedelta(seconds=60)
"""No run of these tests takes as long, unless something is wrong, and none of their minutes is waited for."""


class Person(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        if name == "Godot":
            raise ValueError("nobody has seen him")
        return name


def greeter(name: str = "greeter", **options: Any) -> Agent:
    agent = Agent(name, **options)

    @agent.capability("text.greet@1", effect="pure", idempotent=True)
    async def greet(person: Person) -> str:
        """Greets a person by name."""
        return f"Hello, {person.name}!"

    @agent.capability("text.shout@1", effect="pure")
    def shout(text: str) -> str:
        return text.upper()

    return agent


def welcome(**options: Any) -> Graph:
    graph = Graph("welcome", output=ref("tasks.greet.output"))
    graph.task("greet", "text.greet@1", input={"name": ref("input.name")}, **options)
    return graph


PATIENT = [Retry(on=["TRANSIENT", "LOST", "TIMEOUT"], max_attempts=4, backoff=MINUTE)]
ADA = {"name": "Ada"}


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        yield mesh


async def test_an_agent_handles_a_run_on_a_real_mesh(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    run = await mesh.client.submit(welcome(), ADA, wait=True, timeout=LIMIT)
    assert output_of(run) == "Hello, Ada!"
    (attempted,) = agent.attempts()
    assert (attempted.run_id, attempted.task_id, attempted.number) == (run.run_id, "greet", 1)
    assert (attempted.capability, attempted.state) == ("text.greet@1", "SUCCEEDED")
    assert (attempted.input, attempted.output, attempted.failure) == (ADA, "Hello, Ada!", None)
    (instance,) = (await mesh.client.get_agent("greeter")).instances
    assert instance.sidecar.startswith("spiffe://mesh.test/ns/default/sidecar/")


async def test_planted_failures_are_tried_again_and_no_pause_is_waited_for(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    agent.fail("text.greet@1", attempts=3)
    async with mesh.hurry():
        run = await mesh.client.submit(welcome(retry=PATIENT), ADA, wait=True, timeout=LIMIT)
    assert output_of(run) == "Hello, Ada!"
    assert [(one.number, one.state) for one in agent.attempts()] == [
        (1, "FAILED"), (2, "FAILED"), (3, "FAILED"), (4, "SUCCEEDED"),
    ]  # fmt: skip
    record = [one async for one in mesh.client.list_attempts(run.run_id, "greet")]
    passed = record[-1].offer_time.ToDatetime() - record[0].offer_time.ToDatetime()
    assert passed >= timedelta(minutes=3) / 2  # pauses are jittered; by the clock of the mesh they have passed


async def test_a_planted_failure_is_what_the_test_says(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    agent.fail("text.greet@1", failure=PermanentFailure("no licence", "unlicensed"))
    run = await mesh.client.submit(welcome(retry=PATIENT), ADA, wait=True, timeout=LIMIT)
    assert run.state == run_pb2.RUN_STATE_FAILED
    task = await mesh.client.get_task(run.run_id, "greet")
    assert (task.failure.kind, task.failure.code) == (failure_pb2.FAILURE_KIND_PERMANENT, "unlicensed")
    with pytest.raises(ValueError, match=r"does not offer 'text.great@1'; it offers text.greet@1, text.shout@1"):
        agent.fail("text.great@1")


async def test_what_a_model_refuses_is_invalid_input_with_its_own_words(mesh: Mesh) -> None:
    mesh.add(greeter())
    run = await mesh.client.submit(welcome(), {"name": "Godot"}, wait=True, timeout=LIMIT)
    task = await mesh.client.get_task(run.run_id, "greet")
    assert (task.failure.kind, task.failure.field) == (failure_pb2.FAILURE_KIND_INVALID_INPUT, "/name")
    assert task.failure.message == "/name: Value error, nobody has seen him"


async def test_a_timeout_is_turned_to_instead_of_waited_for(mesh: Mesh) -> None:
    agent = Agent("endless")
    begun = asyncio.Event()

    @agent.capability("text.greet@1")
    async def greet(person: Person) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    endless = mesh.add(agent)
    run = await mesh.client.submit(welcome(timeout=timedelta(minutes=10)), ADA)
    await begun.wait()
    mesh.turn(timedelta(minutes=11))
    run = await mesh.client.wait(run.run_id, timeout=LIMIT)
    assert (await mesh.client.get_task(run.run_id, "greet")).failure.kind == failure_pb2.FAILURE_KIND_TIMEOUT
    assert [one.state for one in await endless.ended()] == ["CANCELLED"]


async def test_plain_functions_are_seen_and_failed_as_well(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    agent.fail("text.shout@1")
    graph = Graph("shout", output=ref("tasks.shout.output"))
    graph.task("shout", "text.shout@1", input=ref("input"), retry=PATIENT)
    async with mesh.hurry():
        run = await mesh.client.submit(graph, "abba", wait=True, timeout=LIMIT)
    assert output_of(run) == "ABBA"
    assert [(one.state, one.output) for one in agent.attempts()] == [("FAILED", None), ("SUCCEEDED", "ABBA")]


async def test_a_delay_passes_with_the_time_that_is_turned(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    agent.delay("text.greet@1", timedelta(hours=1))
    run = await mesh.client.submit(welcome(timeout=timedelta(hours=2)), ADA)
    await agent.begun()
    mesh.turn(timedelta(hours=1))
    assert output_of(await mesh.client.wait(run.run_id, timeout=LIMIT)) == "Hello, Ada!"


async def test_a_task_that_nobody_takes_fails_at_once_in_a_hurry(mesh: Mesh) -> None:
    async with mesh.hurry():
        run = await mesh.client.submit(welcome(), ADA, wait=True, timeout=LIMIT)
    assert (await mesh.client.get_task(run.run_id, "greet")).failure.kind == failure_pb2.FAILURE_KIND_NO_AGENT


async def test_hurry_does_not_run_ahead_of_an_agent_that_works_or_is_about_to(mesh: Mesh) -> None:
    agent = Agent("slow")
    go = asyncio.Event()

    @agent.capability("text.greet@1")
    async def greet(person: Person, task: TaskContext) -> str:
        await go.wait()
        return "at last"

    async with mesh.hurry():
        slow = mesh.add(agent)
        run = await mesh.client.submit(welcome(timeout=MINUTE), ADA)
        await slow.begun()
        begun = mesh._clock.now()
        await eventually(lambda: mesh._clock.now() - begun > 100_000)
        go.set()
        assert output_of(await mesh.client.wait(run.run_id, timeout=LIMIT)) == "at last"


async def test_what_a_crashed_agent_was_at_is_lost_and_another_finishes_it(mesh: Mesh) -> None:
    first = mesh.add(greeter())
    first.hold("text.greet@1")
    run = await mesh.client.submit(welcome(retry=PATIENT), ADA)
    await first.begun()
    await first.crash()
    assert [one.state for one in first.attempts()] == ["LOST"]
    second = mesh.add(greeter())
    async with mesh.hurry():
        run = await mesh.client.wait(run.run_id, timeout=LIMIT)
    assert output_of(run) == "Hello, Ada!"
    (attempted,) = second.attempts()
    assert attempted.number == 2 and attempted.idempotency_key == first.attempts()[0].idempotency_key


@pytest.mark.parametrize("how", ["crash", "lose"])
async def test_what_a_handler_makes_of_the_end_of_its_agent_is_lost_too(mesh: Mesh, how: str) -> None:
    agent, at_work = Agent("stayer"), asyncio.Semaphore(0)

    @agent.capability("work.stay@1")
    async def stay(value: None) -> None:
        at_work.release()
        await asyncio.Event().wait()

    @agent.capability("work.ignore@1")
    async def ignore(value: None) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await stay(value)

    instance = mesh.add(agent)
    graph = Graph("both")
    graph.task("stay", "work.stay@1")
    graph.task("ignore", "work.ignore@1")
    await mesh.client.submit(graph)
    for _ in range(2):
        await at_work.acquire()
    await (instance.crash() if how == "crash" else instance.lose())
    assert [one.state for one in instance.attempts()] == ["LOST", "LOST"]


async def test_a_lost_sidecar_s_attempts_are_lost_and_it_may_come_back(mesh: Mesh) -> None:
    agent = mesh.add(greeter())
    agent.hold("text.greet@1")
    run = await mesh.client.submit(welcome(retry=PATIENT), ADA)
    await agent.begun()
    await agent.lose()

    async def lost() -> bool:
        states = [one.state async for one in mesh.client.list_attempts(run.run_id, "greet")]
        return run_pb2.ATTEMPT_STATE_LOST in states

    await eventually(lost)
    agent.release("text.greet@1")
    agent.start()
    await agent.attached()
    async with mesh.hurry():
        run = await mesh.client.wait(run.run_id, timeout=LIMIT)
    assert output_of(run) == "Hello, Ada!"
    assert [one.state for one in agent.attempts()] == ["LOST", "SUCCEEDED"]


async def test_batches_are_gathered_from_tasks_of_a_run(mesh: Mesh) -> None:
    agent = Agent("embedder", concurrency=16)
    sizes: list[int] = []

    @agent.batch("text.measure@1", max_size=8, max_wait=MINUTE)
    async def measure(texts: list[str]) -> list[int | TransientFailure]:
        sizes.append(len(texts))
        return [len(text) for text in texts]

    mesh.add(agent)
    graph = Graph("measure", output=ref("tasks.each.output"))
    graph.task("each", "text.measure@1", for_each=ref("input"), input=ref("item"))
    run = await mesh.client.submit(graph, ["a" * n for n in range(16)], wait=True, timeout=LIMIT)
    assert (output_of(run), sizes) == (list(range(16)), [8, 8])


async def test_users_policies_can_be_tried(tmp_path: Path) -> None:
    (tmp_path / "none.cedar").write_text('@id("no-runs")\nforbid (principal, action == Action::"submit", resource);\n')
    async with Mesh(policies=tmp_path) as mesh:
        with pytest.raises(PolicyDenied):
            await mesh.client.submit(welcome(), ADA)


async def test_a_capability_beyond_the_grants_is_refused_as_in_production(mesh: Mesh) -> None:
    agent = mesh.add(greeter(), capabilities=["audio.*"])
    with pytest.raises(AntiphonError, match=r"text\.greet"):
        await agent.attached()
    mesh.instances.remove(agent)  # what has ended it would be told at the end of the mesh, too
    with pytest.raises(AntiphonError):
        await agent.close()


async def test_what_ended_an_agent_is_told_at_the_end_to_whoever_did_not_wait_for_it() -> None:
    with pytest.raises(AntiphonError, match=r"text\.greet"):
        async with Mesh() as mesh:
            agent = mesh.add(greeter(), capabilities=["audio.*"])
            await eventually(lambda: agent._worker is not None and agent._worker.done())


async def test_several_meshes_do_not_meet_and_nothing_of_them_is_left() -> None:
    before = set(threading.enumerate())
    async with Mesh() as one, Mesh(namespace="team-b") as other:
        one.add(greeter())
        other.add(greeter())
        run = await other.client.submit(welcome(), ADA, wait=True, timeout=LIMIT)
        assert output_of(run) == "Hello, Ada!" and run.namespace == "team-b"
        assert [run async for run in one.client.list_runs()] == []
        folders = [mesh._serving.folder for mesh in (one, other)]
    assert not any(folder.exists() for folder in folders)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    others = [one for one in threading.enumerate() if not one.name.startswith("asyncio_")]
    ours = {one for one in others if "_poll_wrapper" not in one.name}
    assert ours <= before, "but for those of the loop, and the one of gRPC"
    gc.collect()
    with pytest.raises(SetupError, match="use it inside: async with Mesh"):
        one.add(greeter())


async def test_code_that_connects_by_its_profile_finds_the_mesh(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.add(greeter())
    monkeypatch.setenv("ANTIPHON_HOME", str(mesh.home))

    def script() -> Any:
        with sync.Client.connect() as client:
            return output_of(client.submit(welcome(), ADA, wait=True, timeout=LIMIT))

    assert await asyncio.to_thread(script) == "Hello, Ada!"


def test_without_the_server_it_says_what_to_install() -> None:
    script = """
import asyncio, sys
sys.modules["antiphon_orchestrator"] = None
from antiphon import SetupError
from antiphon.testing import Mesh

async def main():
    async with Mesh():
        pass

try:
    asyncio.run(main())
except SetupError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    wanted = (
        "antiphon.testing starts a real mesh, which needs the server; in a checkout of Antiphon, run: pip install"
        " ./sdk/python .\n"
    )
    assert (done.stdout, done.stderr) == (wanted, "")
