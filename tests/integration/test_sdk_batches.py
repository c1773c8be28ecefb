"""Functions that handle several tasks at once, at a sidecar double's real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon import Agent, InvalidInput, Payload, PermanentFailure, TaskContext, TaskFailure, TransientFailure
from antiphon.v1 import failure_pb2
from antiphon.v1.agent_service_pb2 import WorkResponse

from tests.fakes.agent_socket import WAIT, Line, agent_socket, assignment, output

LONG = timedelta(minutes=1)
"""No batch of these tests begins because its time has come, unless that is what they are about."""


@dataclass
class Text:
    text: str


@asynccontextmanager
async def serving(agent: Agent, folder: Path) -> AsyncIterator[Line]:
    """The agent in this process, attached."""
    path = folder / "a.sock"
    async with agent_socket(path) as sidecar:
        life = asyncio.create_task(agent.serve(socket=str(path)))
        try:
            yield await sidecar.line()
        finally:
            life.cancel()
            await asyncio.wait((life,))


def of(*texts: str, capability: str = "text.embed@1", **options: Any) -> list[Any]:
    """An assignment for each text, named after it."""
    return [assignment(f"r/{text}/0/1", capability, {"text": text}, **options) for text in texts]


class Embedder:
    """An agent whose batches are seen, and held until the test lets them go."""

    def __init__(self, *, max_size: int = 4, max_wait: timedelta = LONG, held: bool = False) -> None:
        self.agent = Agent("embedder")
        self.batches: list[list[str]] = []
        self.contexts: list[TaskContext] = []
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()
        if not held:
            self.go.set()
        self.agent.batch("text.embed@1", max_size=max_size, max_wait=max_wait)(self.embed)

    async def embed(self, texts: list[Text], tasks: list[TaskContext]) -> list[int | TaskFailure]:
        self.batches.append([one.text for one in texts])
        self.contexts = tasks
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return [PermanentFailure("no words", "silent") if one.text == "-" else len(one.text) for one in texts]


async def test_a_full_batch_begins_at_once_and_each_task_gets_its_own_outcome(tmp_path: Path) -> None:
    embedder = Embedder()
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "bb", "-", "dddd"))
        await line.results(4)
        assert embedder.batches == [["a", "bb", "-", "dddd"]]
        assert [output(await line.result(f"r/{text}/0/1")) for text in ("a", "bb", "dddd")] == [1, 2, 4]
        failure = (await line.result("r/-/0/1")).failure
        assert (failure.kind, failure.code) == (failure_pb2.FAILURE_KIND_PERMANENT, "silent")
        assert [one.attempt_id for one in embedder.contexts] == ["r/a/0/1", "r/bb/0/1", "r/-/0/1", "r/dddd/0/1"]


@dataclass
class Span:
    start: float | None
    end: float

    def __post_init__(self) -> None:
        if self.start > self.end:  # type: ignore[operator]  # what fails here is what the test is about
            raise ValueError("it ends before it starts")


async def test_an_input_whose_decoding_breaks_is_its_own_outcome_and_ends_nothing_else(tmp_path: Path) -> None:
    agent = Agent("embedder")

    @agent.batch("text.embed@1", max_size=2)
    async def lengths(spans: list[Span]) -> list[float]:
        return [span.end for span in spans]

    async with serving(agent, tmp_path) as line:
        line.assign(assignment("r/bad/0/1", "text.embed@1", {"start": None, "end": 1.0}))
        assert "TypeError" in (await line.result("r/bad/0/1")).failure.message
        line.assign(assignment("r/good/0/1", "text.embed@1", {"start": 0.0, "end": 1.0}))
        assert output(await line.result("r/good/0/1")) == 1.0


async def test_what_is_announced_is_the_schema_of_one_task(tmp_path: Path) -> None:
    async with serving(Embedder().agent, tmp_path) as line:
        (capability,) = line.hello.description.capabilities
        assert (
            capability.input_schema == '{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}'
        )
        assert capability.output_schema == '{"type":"integer"}'


async def test_a_batch_that_is_not_full_begins_when_its_first_task_has_waited_long_enough(tmp_path: Path) -> None:
    embedder = Embedder(max_wait=timedelta(milliseconds=50))
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "bb"))
        await line.results(2)
        assert embedder.batches == [["a", "bb"]]


async def test_a_task_with_little_time_takes_its_batch_along_before_half_of_it_is_over(tmp_path: Path) -> None:
    embedder = Embedder()
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("patient"))
        line.assign(*of("hurried", seconds=3.0))
        await line.results(2)
        assert embedder.batches == [["patient", "hurried"]]
        assert embedder.contexts[1].remaining() is not None and embedder.contexts[0].remaining() is None


async def test_more_tasks_than_a_batch_holds_make_several(tmp_path: Path) -> None:
    embedder = Embedder(max_size=2)
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "b", "c", "d", "e", "f"))
        await line.results(6)
        assert embedder.batches == [["a", "b"], ["c", "d"], ["e", "f"]]


async def test_a_cancelled_task_ends_at_once_and_the_others_of_its_batch_go_on(tmp_path: Path) -> None:
    embedder = Embedder(max_size=2, held=True)
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "bb"))
        await embedder.begun.wait()
        line.cancel("r/a/0/1")
        failure = (await line.result("r/a/0/1")).failure
        assert failure.kind == failure_pb2.FAILURE_KIND_CANCELLED
        assert [one.is_cancelled for one in embedder.contexts] == [True, False]
        embedder.go.set()
        assert output(await line.result("r/bb/0/1")) == 2
        assert not embedder.cancelled.is_set()


async def test_the_function_is_cancelled_when_all_its_tasks_are(tmp_path: Path) -> None:
    embedder = Embedder(max_size=2, held=True)
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "bb"))
        await embedder.begun.wait()
        line.cancel("r/a/0/1")
        line.cancel("r/bb/0/1")
        async with asyncio.timeout(WAIT):
            await embedder.cancelled.wait()
        kinds = {result.failure.kind for result in await line.results(2)}
        assert kinds == {failure_pb2.FAILURE_KIND_CANCELLED}


async def test_a_task_that_is_cancelled_while_it_waits_is_never_handed_over(tmp_path: Path) -> None:
    embedder = Embedder(max_size=3)
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a", "b"))
        line.cancel("r/a/0/1")
        assert "before it began" in (await line.result("r/a/0/1")).failure.message
        line.assign(*of("c", "d"))
        await line.results(4)
        assert embedder.batches == [["b", "c", "d"]]


async def test_a_batch_that_everybody_left_is_forgotten(tmp_path: Path) -> None:
    embedder = Embedder(max_size=2, max_wait=timedelta(milliseconds=1))
    async with serving(embedder.agent, tmp_path) as line:
        line.send(WorkResponse(assignments=of("a"), cancels=[{"attempt_id": "r/a/0/1", "reason": "cancelled"}]))  # type: ignore[list-item]
        await line.result("r/a/0/1")
        line.assign(*of("b"))
        assert output(await line.result("r/b/0/1")) == 1
        assert embedder.batches == [["b"]]


async def test_an_input_that_does_not_fit_fails_alone_and_takes_no_place(tmp_path: Path) -> None:
    embedder = Embedder(max_size=2)
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(assignment("r/bad/0/1", "text.embed@1", {"text": 7}), *of("a"))
        failure = (await line.result("r/bad/0/1")).failure
        assert (failure.kind, failure.field) == (failure_pb2.FAILURE_KIND_INVALID_INPUT, "/text")
        line.assign(*of("b"))
        await line.results(3)
        assert embedder.batches == [["a", "b"]]


async def test_what_the_function_raises_fails_every_task_as_it_says(tmp_path: Path) -> None:
    agent = Agent("embedder")

    @agent.batch("text.embed@1", max_size=2, max_wait=LONG)
    async def embed(texts: list[Text]) -> list[int]:
        raise TransientFailure("the model is away", "away")

    async with serving(agent, tmp_path) as line:
        line.assign(*of("a", "b"))
        failures = [result.failure for result in await line.results(2)]
        assert [(one.kind, one.code) for one in failures] == [(failure_pb2.FAILURE_KIND_TRANSIENT, "away")] * 2


async def test_an_outcome_too_few_fails_all_since_nobody_knows_whose_is_missing(tmp_path: Path) -> None:
    agent = Agent("embedder")

    @agent.batch("text.embed@1", max_size=2, max_wait=LONG)
    async def embed(texts: list[Text]) -> list[int]:
        return [1]

    async with serving(agent, tmp_path) as line:
        line.assign(*of("a", "b"))
        for result in await line.results(2):
            assert result.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
            assert "2 tasks were handed over and 1 outcomes came back" in result.failure.message


async def test_an_output_that_does_not_fit_fails_its_task_alone(tmp_path: Path) -> None:
    agent = Agent("embedder")

    @agent.batch("text.embed@1", max_size=2, max_wait=LONG)
    async def embed(texts: list[Text]) -> list[int]:
        return [1, "two"]  # type: ignore[list-item]

    async with serving(agent, tmp_path) as line:
        line.assign(*of("a", "b"))
        assert output(await line.result("r/a/0/1")) == 1
        assert (await line.result("r/b/0/1")).failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT


async def test_a_plain_function_handles_its_batch_in_a_thread(tmp_path: Path) -> None:
    agent = Agent("embedder")

    @agent.batch("text.embed@1", max_size=2, max_wait=LONG)
    def embed(payloads: list[Payload]) -> list[Any]:
        names = [threading.current_thread().name for _ in payloads]
        return [names[0], InvalidInput("too short", field="/text")]

    async with serving(agent, tmp_path) as line:
        line.assign(*of("a", "b"))
        assert output(await line.result("r/a/0/1")).startswith("antiphon")
        assert (await line.result("r/b/0/1")).failure.field == "/text"


async def test_a_drained_agent_does_not_keep_tasks_waiting_for_company_that_will_not_come(tmp_path: Path) -> None:
    embedder = Embedder()
    async with serving(embedder.agent, tmp_path) as line:
        line.assign(*of("a"))
        line.send(WorkResponse(drain=True))
        assert output(await line.result("r/a/0/1")) == 1
        async with asyncio.timeout(WAIT):
            await line.closed.wait()


async def embed_one(text: str) -> list[int]:
    return [1]


async def embed_none() -> list[int]:
    return []


async def embed_into_one(texts: list[str]) -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (embed_one, {"max_size": 2}, "'text' must be a list"),
        (embed_none, {"max_size": 2}, "must take a list of inputs"),
        (embed_into_one, {"max_size": 2}, "its outcomes must be a list"),
        (embed_one, {"max_size": 1}, "max_size 1 must be 2 to 1,024"),
        (embed_one, {"max_size": 64}, "give it a concurrency of 64"),
        (embed_one, {"max_size": 2, "max_wait": timedelta(hours=1)}, "must be 0 to 0:01:00"),
    ],
)
def test_a_batch_that_could_not_work_is_refused_when_it_is_written(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Agent("embedder").batch("text.embed@1", **options)(function)
