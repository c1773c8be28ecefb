"""Answers for callers who are gone or slow, or that cannot be shown: the shard that gives them must not notice."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Grants, Identity, Kind
from antiphon_orchestrator.api import run_service
from antiphon_orchestrator.api.call import Caller, set_caller
from antiphon_orchestrator.api.pace import Pace
from antiphon_orchestrator.api.submit_stream import SubmitStream, _Waiting
from antiphon_orchestrator.archive import Archive
from antiphon_orchestrator.engine import events as e
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState, TaskState
from antiphon_orchestrator.runs.listing import RunListing
from antiphon_orchestrator.shards import codec
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.host import Host
from antiphon_orchestrator.store import StoreUnavailable

from tests.fakes.plans import Node, payload, plan, submitted


class Desk:
    """Stands for the host: keeps what shards are asked."""

    def __init__(self, shards: int) -> None:
        self.held = list(range(shards))
        self.complete = True
        self.asked: list[Any] = []
        self.all_asked = asyncio.Event()

    def put(self, shard: int, item: i.Input) -> None:
        self.asked.append(item)
        if len(self.asked) == len(self.held):
            self.all_asked.set()

    def submit(self, shard: int, item: i.Submit) -> None:
        self.put(shard, item)

    async def room(self, shard: int, namespace: str) -> None:
        """Always."""


class EmptyArchive:
    async def list_runs(self, *_: object) -> tuple[list[object], None]:
        return [], None


async def test_a_listing_whose_caller_left_takes_the_late_answers_of_the_shards() -> None:
    desk = Desk(3)
    listing = RunListing(cast(Host, desk), cast(Archive, EmptyArchive()))
    call = asyncio.create_task(listing.here("demo", api.ListRunsRequest()))
    await desk.all_asked.wait()
    desk.asked[0].sink([])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for survey in desk.asked[1:]:
        survey.sink(survey.question([]))


def a_run(output: int) -> Run:
    run = Run("r0000", plan(Node()), submitted("q"), 1)
    run.state, run.output = RunState.SUCCEEDED, payload("x" * output)
    return run


async def test_what_cannot_be_shown_is_the_callers_trouble() -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    run_service._sink(future, lambda run: 1 / 0)(a_run(1))
    with pytest.raises(ZeroDivisionError):
        await future


def kept(item: Any) -> None:
    """Every submission keeps the contract."""


def a_stream() -> SubmitStream:
    who = Caller(Identity("mesh.test", "demo", Kind.CLIENT, "p"), Grants(), "", "p")
    return SubmitStream(
        cast(Host, Desk(1)), cast(Any, Immediate()), cast(Any, None), cast(Any, None), Pace(), kept, who
    )


async def test_a_stream_that_is_over_keeps_no_answers() -> None:
    stream = a_stream()
    await stream.submit(api.SubmitRunRequest(request_id="1"))
    stream.closed = True
    stream._host.asked[0].sink(a_run(60_000))  # type: ignore[attr-defined]
    assert not stream.answers


async def nobody() -> AsyncIterator[api.SubmitRunsRequest]:
    return
    yield


async def test_a_stream_that_is_over_tries_nothing_again() -> None:
    stream = a_stream()
    async with asyncio.TaskGroup() as group:
        await stream.run(nobody(), group)
    stream.closed = True
    stream.again(_Waiting(api.SubmitRunRequest(request_id="1"), 0))  # its group would refuse another task
    assert not stream.answers


async def test_large_answers_come_in_messages_that_clients_accept() -> None:
    service = run_service.RunService(*[cast(Any, None)] * 11)
    stream = a_stream()
    for number in range(200):
        stream.outstanding += 1
        await stream.submit(api.SubmitRunRequest(request_id=str(number)))
        stream._host.asked[-1].sink(a_run(60_000))  # type: ignore[attr-defined]
    sizes = []
    while stream.answers:
        sizes.append((await service._batch(stream)).ByteSize())
    assert max(sizes) < 2 << 20 and stream.outstanding == 0


def test_watchers_get_messages_that_clients_accept() -> None:
    run = a_run(1)
    failure = Failure(FailureKind.PERMANENT, "m" * 4000, cause="c" * 16_000)
    raw = codec.encode("r0000", 2, 1, e.TaskEnded(0, 0, TaskState.FAILED, failure))
    responses = [*run_service._responses(run, [raw] * 600)]
    assert max(response.ByteSize() for response in responses) < 2 << 20
    assert sum(len(response.events) for response in responses) == 600


class Immediate:
    """Stands for admission: every submission is an input that keeps its sink."""

    async def prepare(self, *arguments: Any) -> tuple[int, Any]:
        return 0, SimpleNamespace(sink=arguments[-1])


async def test_a_caller_who_leaves_before_the_end_of_a_run_tells_the_shard() -> None:
    desk = Desk(1)
    service = run_service.RunService(cast(Host, desk), *[cast(Any, None)] * 10)
    leave = i.Leave("r0000", b"", lambda answer: None)
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(service._answered(future, 0, leave))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert desk.asked == [leave]


class Away:
    """Stands for admission that cannot look up what it has to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def prepare(self, *arguments: Any) -> tuple[int, Any]:
        raise self.error


async def requests() -> AsyncIterator[api.SubmitRunsRequest]:
    yield api.SubmitRunsRequest(submissions=[api.SubmitRunRequest(request_id="1")])
    await asyncio.Event().wait()  # the caller keeps its stream open


def service_with(error: Exception) -> run_service.RunService:
    set_caller(Caller(Identity("mesh.test", "demo", Kind.CLIENT, "p"), Grants(), "", "p"))
    desk, nothing = cast(Host, Desk(1)), cast(Any, None)
    return run_service.RunService(desk, cast(Any, Away(error)), *[nothing] * 7, Pace(), kept)


async def test_a_submission_for_which_the_store_is_away_is_refused_and_its_stream_goes_on() -> None:
    answers = service_with(StoreUnavailable("away")).SubmitRuns(requests(), cast(Any, None))
    (result,) = (await anext(answers)).results
    assert (result.request_id, result.error.reason) == ("1", ErrorReason.ERROR_REASON_STORE_UNAVAILABLE)
    await answers.aclose()


async def test_a_stream_that_cannot_be_read_on_ends_although_submissions_have_no_answer() -> None:
    answers = service_with(ZeroDivisionError()).SubmitRuns(requests(), cast(Any, None))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(10):
            await anext(answers)
    assert caught.value.subgroup(ZeroDivisionError) is not None
