"""Many submissions over one stream: batched, answered in any order, held back when too many are on their way.

Invariants: at most `in_flight` submissions have no answer; each is answered once, by a run or by an error; after a
broken stream everything unanswered is sent again with the same request ids, which are the same runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

from antiphon.v1 import error_pb2, graph_pb2
from antiphon.v1.run_pb2 import Run
from antiphon.v1.run_service_pb2 import SubmitRunRequest, SubmitRunResult, SubmitRunsRequest, SubmitRunsResponse

from ._calls import RETRIES, Tries, metadata, pause_before
from ._connection import Connection
from ._errors import AntiphonError, RetryableError, SetupError, Unavailable, from_error_message, from_rpc_error
from ._reasons import ShardMoved
from ._stream import ended, send, talk
from ._submission import SubmitOptions, Upload, submission
from ._trace import traceparent

if TYPE_CHECKING:
    from ._graph import Graph

    Stream = grpc.aio.StreamStreamCall[SubmitRunsRequest, SubmitRunsResponse]

_ITEMS = 256
_BYTES = 1 << 20
"""Of a message; a submission that is larger goes alone."""

_MOST = 4 << 20
"""Of a message with one submission: a server ends the stream for more, and with it all that is on its way."""

_FRAME = 16
"""Bytes of a message around its one submission, and some."""


class _Pending:
    __slots__ = ("answer", "failures", "later", "request", "since")

    def __init__(self, request: SubmitRunRequest, answer: asyncio.Future[Run]) -> None:
        self.request = request
        self.answer = answer
        self.failures = 0
        self.since: float | None = None  # the first refusal
        self.later: asyncio.TimerHandle | None = None


class Submitter:
    """Submits runs through one stream; made by `Client.submitter`, used with `async with`."""

    def __init__(self, connection: Connection, upload: Upload, in_flight: int, patience: timedelta) -> None:
        self._connection = connection
        self._upload = upload
        self._patience = patience
        self._places = asyncio.Semaphore(in_flight)
        self._pending: dict[str, _Pending] = {}
        self._unsent: deque[_Pending] = deque()
        self._something = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._life = asyncio.create_task(self._stay_connected())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all answers. After an exception they are given up. Raises what ended the stream before its time."""
        life, self._life = self._life, None
        if life is None:
            return
        try:
            if kind is None and self._pending:
                self._idle = asyncio.get_running_loop().create_future()
                await asyncio.wait((life, self._idle), return_when=asyncio.FIRST_COMPLETED)
            if kind is None and life.done():
                await life
        finally:
            await ended(life)
            self._give_up(None)

    async def submit(
        self, graph: str | Graph | graph_pb2.Graph, input: Any = None, **options: Unpack[SubmitOptions]
    ) -> asyncio.Future[Run]:
        """Take a submission as soon as there is room for it, and return what will be its answer.

        Arguments as of `Client.submit`. The answer raises `AntiphonError` when the submission is refused. Raises the
        error that ended the stream, if one did.
        """
        request = await submission(self._upload, graph, input, options, traceparent())
        if request.ByteSize() + _FRAME > _MOST:
            refused: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
            refused.set_exception(_too_large())
            return refused
        await self._places.acquire()
        if self._life is None or self._life.done() or request.request_id in self._pending:
            self._places.release()
            if self._life is None:
                raise SetupError("the submitter is closed; use it inside: async with client.submitter() as submitter")
            if self._life.done():
                self._life.result()
            raise ValueError(f"request_id {request.request_id!r} is on its way already")
        pending = _Pending(request, asyncio.get_running_loop().create_future())
        self._pending[request.request_id] = pending
        self._queue(pending)
        return pending.answer

    async def _stay_connected(self) -> None:
        tries = Tries(self._connection, self._patience)
        try:
            while True:
                error: AntiphonError = Unavailable("the server ended the stream")
                async with self._connection.use() as generation:
                    self._unsent = deque(one for one in self._pending.values() if one.later is None)
                    stream = generation.runs.SubmitRuns(metadata=metadata())  # type: ignore[call-arg]  # as in _work
                    try:
                        await talk(self._read(stream, tries), self._write(stream))
                    except grpc.aio.AioRpcError as broken:
                        error = from_rpc_error(broken)
                    except TimeoutError as stuck:
                        error = Unavailable(str(stuck))
                    finally:
                        stream.cancel()
                if not self._pending:
                    tries.heard()  # a stream that nobody uses may be ended at will
                await tries.after(error, generation)
        except Exception as error:
            self._give_up(error)
            raise

    async def _read(self, stream: Stream, tries: Tries) -> None:
        while isinstance(response := await stream.read(), SubmitRunsResponse):
            tries.heard()
            for result in response.results:
                self._answer(result)

    async def _write(self, stream: Stream) -> None:
        while True:
            while not self._unsent:
                self._something.clear()
                await self._something.wait()
            batch: list[SubmitRunRequest] = []
            size = 0
            while self._unsent and len(batch) < _ITEMS:
                request = self._unsent[0].request
                size += request.ByteSize()
                if batch and size > _BYTES:
                    break
                batch.append(request)
                self._unsent.popleft()
            await send(stream, SubmitRunsRequest(submissions=batch))

    def _queue(self, pending: _Pending) -> None:
        pending.later = None
        self._unsent.append(pending)
        self._something.set()

    def _answer(self, result: SubmitRunResult) -> None:
        pending = self._pending.get(result.request_id)
        if pending is None:
            return  # answered before, on a stream that broke
        if result.HasField("error"):
            error = from_error_message(result.error)
            if pending.since is None:
                pending.since = monotonic()
            # A shard changes hands for longer than a few tries take, when its owner ends and the machine is busy.
            patient = isinstance(error, ShardMoved) and monotonic() - pending.since < self._patience.total_seconds()
            if isinstance(error, RetryableError) and (pending.failures < RETRIES or patient):
                pause = pause_before(error, pending.failures)
                pending.failures += 1
                pending.later = asyncio.get_running_loop().call_later(pause, self._queue, pending)
                return
            if not pending.answer.done():
                pending.answer.set_exception(error)
        elif not pending.answer.done():
            pending.answer.set_result(result.run)
        del self._pending[result.request_id]
        self._places.release()
        if self._idle is not None and not self._pending and not self._idle.done():
            self._idle.set_result(None)

    def _give_up(self, error: Exception | None) -> None:
        for pending in self._pending.values():
            if pending.later is not None:
                pending.later.cancel()
            if not pending.answer.done():
                if error is not None:
                    pending.answer.set_exception(error)
                else:
                    pending.answer.cancel()
            self._places.release()
        self._pending.clear()
        self._unsent.clear()


def _too_large() -> AntiphonError:
    """As a server says of one that comes by `Client.submit`."""
    text = f"the message is larger than {_MOST} bytes; send large values through PayloadService"
    metadata = {"limit": str(_MOST)}
    return from_error_message(
        error_pb2.Error(reason=error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE, message=text, metadata=metadata)
    )
