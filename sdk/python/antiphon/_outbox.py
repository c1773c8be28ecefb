"""What an agent has to say to its sidecar, gathered into messages until the one writer can send the next.

Results are written straight into the message that will carry them. Bounds: a message holds at most 256 items of a kind
and about 1 MiB; what is gathered is bounded by the attempts that run; what is remembered by `_REMEMBERED`.
"""

from __future__ import annotations

import asyncio
from collections import deque

from antiphon.v1.agent_service_pb2 import CallRequest, Result, Subgraph, WorkRequest
from antiphon.v1.context_request_pb2 import ContextRequest
from antiphon.v1.payload_pb2 import Payload
from antiphon.v1.run_pb2 import PartialOutput, Progress

from ._failures import failure_of
from .partials import Pieces

_ITEMS = 256
_BYTES = 1 << 20
_REMEMBERED = 8


class Outbox:
    """Not thread-safe: everything happens on the event loop."""

    def __init__(self) -> None:
        self._full: deque[WorkRequest] = deque()
        self._open = WorkRequest()
        self._open_bytes = 0
        self._progress: dict[str, Progress] = {}
        self._pieces: Pieces[str] = Pieces()
        self._calls: deque[CallRequest] = deque()
        self._asks: deque[ContextRequest] = deque()
        self._drain = False
        self._closing = False
        self._something = asyncio.Event()
        self._sent: deque[WorkRequest] = deque(maxlen=_REMEMBERED)

    def succeed(self, attempt_id: str, output: bytes | Payload | Subgraph) -> None:
        """Add an outcome: JSON, a whole payload, or a graph."""
        result = self._result(attempt_id, len(output) if isinstance(output, bytes) else output.ByteSize())
        if isinstance(output, bytes):
            result.output.inline = output
        elif isinstance(output, Subgraph):
            result.subgraph.CopyFrom(output)
        else:
            result.output.CopyFrom(output)

    def fail(self, attempt_id: str, error: BaseException) -> None:
        """Add a failure."""
        failure = failure_of(error)
        self._result(attempt_id, failure.ByteSize()).failure.CopyFrom(failure)

    def repeat(self, result: Result) -> None:
        """Add an outcome that was sent before."""
        self._result(result.attempt_id, result.ByteSize()).CopyFrom(result)

    def progress(self, attempt_id: str, progress: Progress) -> None:
        """Add progress; an older one of the attempt that was not sent yet is dropped."""
        self._progress[attempt_id] = progress
        self._something.set()

    def emit(self, attempt_id: str, piece: PartialOutput) -> None:
        """Add a piece of output; one that finds no room is left out."""
        self._pieces.add(attempt_id, piece)
        self._something.set()

    def call(self, request: CallRequest) -> None:
        """Add a call."""
        self._calls.append(request)
        self._something.set()

    def ask(self, request: ContextRequest) -> None:
        """Add a request to shared context."""
        self._asks.append(request)
        self._something.set()

    def withdraw(self, request: CallRequest | ContextRequest) -> None:
        """Take back a request that was not sent yet, since nobody waits for its answer any more."""
        for waiting in (self._calls, self._asks):
            for place, known in enumerate(waiting):
                if known is request:
                    del waiting[place]
                    return

    def drain(self) -> None:
        """Ask for no more work."""
        self._drain = True
        self._something.set()

    @property
    def empty(self) -> bool:
        """Whether everything was handed to the writer."""
        gathered = self._full or self._open.results or self._progress or self._pieces
        return not (gathered or self._calls or self._asks or self._drain)

    def close(self) -> None:
        """Nothing will be added for this stream."""
        self._closing = True
        self._something.set()

    async def take(self) -> WorkRequest | None:
        """The next message, as soon as there is something to say; None when everything is said and the box closed."""
        while self.empty:
            if self._closing:
                return None
            self._something.clear()
            await self._something.wait()
        request = self._full.popleft() if self._full else self._close()
        size = 0
        # With or before the outcome of their attempt: afterwards nobody listens.
        for attempt_id, piece in self._pieces.take() if self._pieces else ():
            request.partials.add(attempt_id=attempt_id, partial=piece)
        while self._progress and len(request.progress) < _ITEMS:
            attempt_id, progress = self._progress.popitem()
            request.progress.add(attempt_id=attempt_id, progress=progress)
        while self._calls and len(request.calls) < _ITEMS and size < _BYTES:
            size += self._calls[0].ByteSize()
            request.calls.append(self._calls.popleft())
        while self._asks and len(request.context_requests) < _ITEMS and size < _BYTES:
            size += self._asks[0].ByteSize()
            request.context_requests.append(self._asks.popleft())
        if not self._full and not self._open.results:
            # Drain comes last, so that the sidecar has every outcome before it looks whether anything is left.
            request.drain, self._drain = self._drain, False
        return request

    def put_back(self, request: WorkRequest) -> None:
        """A message that could not be sent goes first next time, without pieces, which are late by then; calls are the
        business of who waits for them."""
        del request.partials[:]
        del request.calls[:]
        del request.context_requests[:]
        request.drain = False
        if request.results or request.progress:
            self._full.appendleft(request)
            self._something.set()

    def sent(self, request: WorkRequest) -> None:
        """Remember the outcomes in a message that was handed to the transport, in case they did not arrive."""
        if request.results:
            self._sent.append(request)

    def recall(self) -> dict[str, Result]:
        """The newest outcomes handed to a stream that has broken since, by attempt id; forgets all others."""
        recalled = {result.attempt_id: result for request in self._sent for result in request.results}
        self._sent.clear()
        return recalled

    def waiting(self) -> frozenset[str]:
        """Ids of attempts whose outcomes were not sent yet."""
        return frozenset(result.attempt_id for request in (*self._full, self._open) for result in request.results)

    def reopen(self) -> None:
        """Begin a new stream: calls and drain, which concern a stream, are to be said anew."""
        self._calls.clear()
        self._asks.clear()
        self._drain = self._closing = False

    def _result(self, attempt_id: str, size: int) -> Result:
        if len(self._open.results) >= _ITEMS or self._open_bytes + size > _BYTES:
            self._full.append(self._close())
        self._open_bytes += size
        self._progress.pop(attempt_id, None)  # out of date
        self._something.set()
        return self._open.results.add(attempt_id=attempt_id)

    def _close(self) -> WorkRequest:
        request, self._open, self._open_bytes = self._open, WorkRequest(), 0
        return request
