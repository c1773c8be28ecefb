"""RunService: converts, asks the shards, converts back. See protos/antiphon/v1/run_service.proto."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from antiphon.partials import Pieces
from antiphon.v1 import error_pb2, run_pb2, run_service_pb2_grpc
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf.message import Message

from ..archive import ArchiveUnavailable
from ..blobs import Blobs
from ..cluster.gathering import Gathering, coverage
from ..cluster.peers import Peers
from ..cluster.routing import Routing, moved
from ..engine import steer
from ..engine.run import Run
from ..placement.fleet import Fleet
from ..runs import steering, views
from ..runs.archived import ArchivedRuns
from ..runs.listing import InvalidToken, RunListing, names_graph
from ..runs.submit import Submissions
from ..shards import inputs as i
from ..shards.host import Host
from ..shards.inputs import RequestIdReused
from .call import FORWARDED, caller, now_waiting
from .errors import ApiError, Violation, request_invalid
from .pace import Pace
from .paging import decode_token, encode_token
from .submit_stream import SubmitStream

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

RESULTS = 256
"""Answers in one message of SubmitRuns."""

EVENTS = 512
"""Events in one message of WatchRun."""

MESSAGE_BYTES = 1024 * 1024
"""Size at which a message of a stream, or a page, is full, whatever its count: with what is added last it stays far
below the 4 MiB that clients accept."""

ATTEMPTS_EXPLAINED = 20


class RunService(run_service_pb2_grpc.RunServiceServicer):
    def __init__(
        self,
        host: Host,
        submissions: Submissions,
        archived: ArchivedRuns,
        listing: RunListing,
        fleet: Fleet,
        routing: Routing,
        peers: Peers,
        gathering: Gathering,
        blobs: Blobs,
        pace: Pace,
        check_item: Callable[[Message], None],
    ) -> None:
        self._host = host
        self._submissions = submissions
        self._archived = archived
        self._listing = listing
        self._fleet = fleet
        self._routing = routing
        self._peers = peers
        self._gathering = gathering
        self._blobs = blobs
        self._pace = pace
        self._check_item = check_item

    async def SubmitRun(self, request: api.SubmitRunRequest, context: Context) -> api.SubmitRunResponse:
        who = caller()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request_id = request.request_id
        shard, item = await self._submissions.prepare(
            request, who.principal, who.namespace, who.traceparent, _sink(future, views.run_message)
        )
        if self._host.full(shard, who.namespace):
            raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="the shard's inbox")
        if item.wait:
            now_waiting()
        self._host.submit(shard, item)
        value = await self._answered(future, shard, i.Leave("", item.key, item.sink))
        return api.SubmitRunResponse(run=await self._answer(value, request_id))

    async def _answered(self, future: asyncio.Future[Any], shard: int, leave: i.Leave) -> Any:
        """What a run's shard answers, at the run's end perhaps; a caller who goes before that leaves nothing behind."""
        try:
            return await future
        except asyncio.CancelledError:
            self._host.put(shard, leave)
            raise

    async def _answer(self, value: Any, request_id: str) -> run_pb2.Run:
        """What a shard says of a submission: the run, its id when it is archived, or a refusal."""
        if isinstance(value, RequestIdReused):
            raise ApiError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, request_id=request_id)
        if isinstance(value, i.SetAside):
            raise _set_aside(value)
        if isinstance(value, i.Unanswered):  # of one submission, perhaps of many in a stream
            raise ApiError(ErrorReason.ERROR_REASON_INTERNAL, trace_id=request_id)
        if isinstance(value, str):
            run = await self._load(value)
            return views.run_message(run)
        assert isinstance(value, run_pb2.Run)
        return value

    async def SubmitRuns(
        self, request_iterator: AsyncIterator[api.SubmitRunsRequest], context: Context
    ) -> AsyncIterator[api.SubmitRunsResponse]:
        stream = SubmitStream(
            self._host, self._submissions, self._routing, self._peers, self._pace, self._check_item, caller()
        )
        reader = asyncio.create_task(self._read(stream, request_iterator))
        reader.add_done_callback(lambda _: stream.wake.set())
        try:
            while True:
                await stream.wake.wait()
                stream.wake.clear()
                while stream.answers:
                    yield await self._batch(stream)
                if reader.done() and not stream.answers:
                    reader.result()  # raises what ended it, whatever still has no answer
                    return
        finally:
            stream.closed = True
            reader.cancel()

    async def _read(self, stream: SubmitStream, requests: AsyncIterator[api.SubmitRunsRequest]) -> None:
        async with asyncio.TaskGroup() as group:
            await stream.run(requests, group)

    async def _batch(self, stream: SubmitStream) -> api.SubmitRunsResponse:
        response = api.SubmitRunsResponse()
        size = 0
        while stream.answers and len(response.results) < RESULTS and size < MESSAGE_BYTES:
            request_id, value = stream.answers.popleft()
            result = response.results.add(request_id=request_id)
            try:
                if isinstance(value, ApiError):
                    raise value
                if isinstance(value, error_pb2.Error):
                    result.error.CopyFrom(value)
                    continue
                result.run.CopyFrom(await self._answer(value, request_id))
            except ApiError as error:
                result.error.CopyFrom(error.to_error())
            size += result.ByteSize()
        stream.answered(len(response.results))
        return response

    async def GetRun(self, request: api.GetRunRequest, context: Context) -> api.GetRunResponse:
        return api.GetRunResponse(run=await self._ask(request.run_id, views.run_message))

    async def ListTasks(self, request: api.ListTasksRequest, context: Context) -> api.ListTasksResponse:
        found = decode_token(request, int, int)
        after = (-1, 0) if found is None else (int(found[0]), int(found[1]))
        size = request.page_size or 100
        states = set(request.states)

        def question(run: Run) -> api.ListTasksResponse:
            response = api.ListTasksResponse()
            last = (-1, 0)
            bytes_left = MESSAGE_BYTES
            for task in run.tasks_behind(*after):
                place = (task.plan.index, task.member)
                if (states and task.state.value not in states) or not views.shown(task):
                    continue
                if len(response.tasks) == size or bytes_left <= 0:
                    response.next_page_token = encode_token(request, last)
                    break
                message = views.task_message(run, task, payloads=request.include_payloads)
                bytes_left -= message.ByteSize()
                response.tasks.append(message)
                last = place
            return response

        return await self._ask(request.run_id, question)

    async def GetTask(self, request: api.GetTaskRequest, context: Context) -> api.GetTaskResponse:
        def question(run: Run) -> api.GetTaskResponse:
            return api.GetTaskResponse(task=views.task_message(run, steering.task_of(run, request.key)))

        return await self._ask(request.run_id, question)

    async def ListAttempts(self, request: api.ListAttemptsRequest, context: Context) -> api.ListAttemptsResponse:
        found = decode_token(request, int)
        after = 0 if found is None else max(0, int(found[0]))
        size = request.page_size or 100

        def question(run: Run) -> api.ListAttemptsResponse:
            task = steering.task_of(run, request.key)
            page = task.attempts[after : after + size]
            more = after + size < len(task.attempts)
            return api.ListAttemptsResponse(
                attempts=[views.attempt_message(run, task, attempt) for attempt in page],
                next_page_token=encode_token(request, (after + size,)) if more else "",
            )

        return await self._ask(request.run_id, question)

    async def ListRuns(self, request: api.ListRunsRequest, context: Context) -> api.ListRunsResponse:
        who = caller()
        # SQLite ends a text there and would find everything, PostgreSQL has no such text.
        if nul := [name for name in ("graph_name", "parent", "failure_text") if "\0" in getattr(request, name)]:
            raise request_invalid([Violation(name, "must not hold a NUL character") for name in nul])
        if request.graph_name and not names_graph(request.graph_name):
            form = "must be NAME or NAME@VERSION, with a version of one to three numbers, such as review@2"
            raise request_invalid([Violation("graph_name", form)])
        try:
            if who.forwarded:
                runs, shards = await self._listing.here(who.namespace, request)
                context.set_trailing_metadata(((FORWARDED, coverage(shards)),))
                return api.ListRunsResponse(runs=runs)
            path = "/antiphon.v1.RunService/ListRuns"
            runs, parts = await self._gathering.whole(
                path, request.SerializeToString(), who, lambda: self._listing.here(who.namespace, request)
            )
            elsewhere = [run for part in parts for run in api.ListRunsResponse.FromString(part).runs]
            return await self._listing.page(who.namespace, request, (*elsewhere, *runs))
        except InvalidToken as error:
            raise ApiError(ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID) from error
        except ArchiveUnavailable as error:
            raise ApiError(ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE) from error

    async def CancelRun(self, request: api.CancelRunRequest, context: Context) -> api.CancelRunResponse:
        await self._ask(request.run_id, lambda run: True)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        shard = self._shard(request.run_id)
        item = i.Cancel(request.run_id, caller().principal, request.reason, _sink(future, views.run_message))
        self._host.put(shard, item)
        try:
            now_waiting()
        except ApiError:
            # Whoever waits for as many runs as it may can cancel them all the same, and is told how far this one is.
            future.cancel()
            self._host.put(shard, i.Leave(request.run_id, b"", item.sink))
            return api.CancelRunResponse(run=await self._ask(request.run_id, views.run_message))
        message = await self._answered(future, shard, i.Leave(request.run_id, b"", item.sink))
        if message is None:
            message = views.run_message(await self._load(request.run_id))
        return api.CancelRunResponse(run=message)

    async def PauseRun(self, request: api.PauseRunRequest, context: Context) -> api.PauseRunResponse:
        principal, reason = caller().principal, request.reason
        wish = steering.about_run(lambda run: steer.pause(run, principal, reason))
        return api.PauseRunResponse(run=await self._steer(request.run_id, "pause", reason, {}, wish))

    async def ResumeRun(self, request: api.ResumeRunRequest, context: Context) -> api.ResumeRunResponse:
        principal, reason = caller().principal, request.reason
        wish = steering.about_run(lambda run: steer.resume(run, principal, reason))
        return api.ResumeRunResponse(run=await self._steer(request.run_id, "resume", reason, {}, wish))

    async def CancelTask(self, request: api.CancelTaskRequest, context: Context) -> api.CancelTaskResponse:
        principal, reason, dependents = caller().principal, request.reason, request.dependents
        wish = steering.about_task(
            request.key, lambda run, task: steer.cancel_task(run, task, dependents, principal, reason)
        )
        details = _named(request.key) | ({"dependents": "true"} if dependents else {})
        return api.CancelTaskResponse(task=await self._steer(request.run_id, "cancel_task", reason, details, wish))

    async def RetryTask(self, request: api.RetryTaskRequest, context: Context) -> api.RetryTaskResponse:
        principal, reason = caller().principal, request.reason
        expected = request.expected_end_time.ToMicroseconds() if request.HasField("expected_end_time") else None
        wish = steering.about_task(
            request.key, lambda run, task: steer.retry_task(run, task, expected, principal, reason)
        )
        task = await self._steer(request.run_id, "retry", reason, _named(request.key), wish)
        return api.RetryTaskResponse(task=task)

    async def ResolveTask(self, request: api.ResolveTaskRequest, context: Context) -> api.ResolveTaskResponse:
        who = caller()
        wish = await steering.resolve(request, who.principal, who.namespace, self._blobs, self._fleet)
        details = _named(request.key) | {"answer": request.WhichOneof("answer") or ""}
        task = await self._steer(request.run_id, "resolve", request.reason, details, wish)
        return api.ResolveTaskResponse(task=task)

    async def SignalRun(self, request: api.SignalRunRequest, context: Context) -> api.SignalRunResponse:
        who = caller()
        run_id, details = request.run_id, {"signal": request.signal, "request_id": request.request_id}
        wish = await steering.signal(request, who.principal, who.namespace, self._blobs)
        answer: api.SignalRunResponse = await self._steer(run_id, "signal", "", details, wish)
        return answer

    async def _steer(self, run_id: str, action: str, reason: str, details: dict[str, str], wish: steering.Wish) -> Any:
        """The answer to a wish of a run in the caller's namespace."""
        who = caller()
        # First, since the shard answers for a run that stands aside itself, and does not ask whose it is.
        await self._ask(run_id, lambda run: True)

        def guarded(run: Run, now: int) -> i.Steered:
            if run.submitted.namespace != who.namespace:  # one that was not here yet when it was asked for
                return steering.refused(_not_found(run_id))
            try:
                return wish(run, now)
            except Exception as error:  # the shard's loop asks; whatever goes wrong is this call's trouble alone
                return steering.refused(error)

        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sink = _sink(future, lambda answer: answer)
        self._host.put(self._shard(run_id), i.Steer(run_id, who.principal, action, reason, details, guarded, sink))
        answer = await future
        if answer is None:
            run = await self._load(run_id)
            answer = guarded(run, 0).answer(run)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ExplainTask(self, request: api.ExplainTaskRequest, context: Context) -> api.ExplainTaskResponse:
        def question(run: Run) -> api.ExplainTaskResponse:
            task = steering.task_of(run, request.key)
            response = api.ExplainTaskResponse(
                task=views.task_message(run, task),
                references=task.plan.references,
                dependencies=views.dependencies(run, task),
                attempts=[views.attempt_message(run, task, a) for a in task.attempts[-ATTEMPTS_EXPLAINED:]],
            )
            if task.state.name == "READY" and task.plan.graph is None:
                key = (run.run_id, task.plan.index, task.member)
                response.pending.CopyFrom(self._fleet.explain(self._host.need(run, task), key))
            return response

        return await self._ask(request.run_id, question)

    async def WatchRun(self, request: api.WatchRunRequest, context: Context) -> AsyncIterator[api.WatchRunResponse]:
        shard = self._shard(request.run_id)
        watcher = _Watcher(request.include_progress, request.include_partials)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._host.put(shard, i.Watch(request.run_id, request.cursor, watcher, _sink(future, lambda found: found)))
        try:
            found = await future
            if found is None:
                run = await self._load(request.run_id)
                await self._check_cursor(request, run)
                async for records in self._records(request.run_id, request.cursor):
                    for response in _responses(run, records):
                        yield response
                yield api.WatchRunResponse(run=views.run_message(run))
                return
            first, run = found
            if run.submitted.namespace != caller().namespace:
                raise _not_found(request.run_id)
            await self._check_cursor(request, run)
            if request.cursor + 1 < first:
                left = first - 1 - request.cursor
                async for records in self._records(request.run_id, request.cursor):
                    for response in _responses(run, records[:left]):
                        yield response
                    left -= len(records)
                    if left <= 0:
                        break
            async for response in watcher.responses(run):
                yield response
        finally:
            self._host.put(shard, i.Unwatch(request.run_id, watcher))

    async def _check_cursor(self, request: api.WatchRunRequest, run: Run) -> None:
        if request.cursor > run.event_seq:
            await self._require_owned(request.run_id)
            raise ApiError(ErrorReason.ERROR_REASON_CURSOR_INVALID, cursor=request.cursor, last=run.event_seq)

    async def _ask(self, run_id: str, question: Callable[[Run], T]) -> T:
        """The answer of a run in the caller's namespace, live or archived."""
        namespace = caller().namespace

        def guarded(run: Run) -> T | Exception:
            if run.submitted.namespace != namespace:
                return _not_found(run_id)
            try:
                return question(run)
            except Exception as error:  # the shard's loop asks; whatever goes wrong is this call's trouble alone
                return error

        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._host.put(self._shard(run_id), i.Read(run_id, guarded, _sink(future, lambda answer: answer)))
        answer = await future
        if answer is None:
            answer = guarded(await self._load(run_id))
        if isinstance(answer, Exception):
            await self._require_owned(run_id)
            raise answer
        result: T = answer
        return result

    def _shard(self, run_id: str) -> int:
        shard = self._host.shard_of_run(run_id)
        if shard is None:
            raise _not_found(run_id)
        return shard

    async def _load(self, run_id: str) -> Run:
        try:
            run = await self._archived.load(run_id, caller().namespace)
        except ArchiveUnavailable as error:
            raise ApiError(ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE) from error
        if run is None:
            await self._require_owned(run_id)
            raise _not_found(run_id)
        return run

    async def _require_owned(self, run_id: str) -> None:
        """Before a caller is told that something is not there: an owner that was overtaken without knowing knows less
        than its successor has told already. Raises ApiError when the shard is another's."""
        shard = self._shard(run_id)
        if not await self._host.owns(shard):
            raise moved(shard)

    async def _records(self, run_id: str, cursor: int) -> AsyncIterator[list[bytes]]:
        try:
            async for records in self._archived.records(run_id, cursor):
                yield records
        except ArchiveUnavailable as error:
            raise ApiError(ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE) from error


class _Watcher:
    """Implements shards.inputs.Watcher: keeps what a slow reader has not taken, as references to the run's records."""

    def __init__(self, with_progress: bool, with_partials: bool) -> None:
        self._with_progress = with_progress
        self._with_partials = with_partials
        self._records: deque[bytes] = deque()
        self._progress: dict[tuple[str, int], Any] = {}
        self._pieces = Pieces[tuple[str, int]]()
        self._ended: run_pb2.Run | None = None
        self._moved = False
        self._wake = asyncio.Event()

    def records(self, records: list[bytes]) -> None:
        self._records.extend(records)
        self._wake.set()

    def progress(self, task_id: str, member: int, progress: Any) -> None:
        if self._with_progress and len(self._progress) < EVENTS:
            self._progress[task_id, member] = progress
            self._wake.set()

    def partial(self, task_id: str, member: int, piece: Any) -> None:
        if self._with_partials:
            own = run_pb2.PartialOutput()
            own.CopyFrom(piece)  # text is joined to it
            self._pieces.add((task_id, member), own)
            self._wake.set()

    def ended(self, run: Run) -> None:
        self._ended = views.run_message(run)
        self._wake.set()

    def moved(self) -> None:
        self._moved = True
        self._wake.set()

    async def responses(self, run: Run) -> AsyncIterator[api.WatchRunResponse]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._records or self._progress or self._pieces:
                response = api.WatchRunResponse()
                size = 0
                # First what came while tasks ran, then the events, which may tell that they have ended.
                for (task_id, member), piece in self._pieces.take():
                    made = response.events.add(partial=piece)
                    made.key.task_id, made.key.member = task_id, member
                while self._records and len(response.events) < EVENTS and size < MESSAGE_BYTES:
                    event = views.event_message(run, self._records.popleft())
                    size += event.ByteSize()
                    response.events.append(event)
                for (task_id, member), progress in self._progress.items():
                    said = response.events.add(progress=progress)
                    said.key.task_id, said.key.member = task_id, member
                self._progress.clear()
                yield response
            if self._ended is not None:
                yield api.WatchRunResponse(run=self._ended)
                return
            if run.aside:  # no event will come, nor its end
                raise _set_aside(i.SetAside(run.run_id, run.aside))
            if self._moved:
                raise moved(int(run.run_id[1:5], 16))


def _sink(future: asyncio.Future[Any], convert: Callable[[Any], Any]) -> i.Sink:
    """Gives a shard's answer to a future, converted while memory still is what was committed."""

    def sink(value: Any) -> None:
        if future.done():
            return  # the caller went away
        known = value is None or isinstance(value, str | Exception)
        try:
            if isinstance(value, i.Moved):
                raise moved(value.shard)
            if isinstance(value, i.SetAside):
                raise _set_aside(value)
            if isinstance(value, i.Unanswered):
                raise value
            future.set_result(value if known else convert(value))
        except Exception as error:  # the shard's loop calls: what cannot be shown is the caller's trouble alone
            future.set_exception(error)

    return sink


def _set_aside(answer: i.SetAside) -> ApiError:
    return ApiError(ErrorReason.ERROR_REASON_RUN_SET_ASIDE, run_id=answer.run_id, cause=str(answer))


def _responses(run: Run, records: Iterable[bytes]) -> Iterator[api.WatchRunResponse]:
    """Archived records in messages of bounded size."""
    response, size = api.WatchRunResponse(), 0
    for raw in records:
        event = views.event_message(run, raw)
        response.events.append(event)
        size += event.ByteSize()
        if len(response.events) == EVENTS or size >= MESSAGE_BYTES:
            yield response
            response, size = api.WatchRunResponse(), 0
    if response.events:
        yield response


def _not_found(run_id: str) -> ApiError:
    return ApiError(ErrorReason.ERROR_REASON_RUN_NOT_FOUND, run_id=run_id)


def _named(key: run_pb2.TaskKey) -> dict[str, str]:
    """A task in the details of an audit record."""
    return {"task": key.task_id + (f"[{key.member}]" if key.member else "")}
