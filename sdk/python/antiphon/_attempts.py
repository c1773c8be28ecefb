"""The attempts that run in this process: starts handlers, cancels them, and sees that each ends in exactly one outcome.

An async handler is one asyncio task; a plain function runs in a bounded pool of threads; what is handled together is in
`_batches`. Running a handler's first step
inline would save a few microseconds, but `asyncio.current_task()` is None there, which breaks `asyncio.timeout` and
with it half of the ecosystem. Everything happens on the event loop, except the plain functions themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from antiphon.v1.agent_service_pb2 import Assignment, CallPartial, CallRequest, CallResponse
from antiphon.v1.context_request_pb2 import ClaimLoss, ContextRequest, ContextResponse
from antiphon.v1.run_pb2 import PartialOutput, Progress

from ._batches import Batch, Batches
from ._context import EXTRAS, OnPartial, TaskContext, entered
from ._failures import PermanentFailure, TaskCancelled, TaskFailure
from ._handler import THREADS, Answer, Handler
from ._outbox import Outbox
from .partials import content_bytes

if TYPE_CHECKING:
    from ._holding import Holding

_THREADS = 32
_UNBEGUN = "cancelled before it began"
_PLACES = 3  # of a traceback, in a line of the log
_log = logging.getLogger("antiphon.agent")


class _Attempt:
    __slots__ = ("context", "emitted", "started", "work")

    def __init__(self, context: TaskContext) -> None:
        self.context = context
        self.emitted = 0  # bytes, of the pieces of its output so far
        self.started = False
        self.work: asyncio.Task[None] | Future[None] | Batch | None = None


class Observer(Protocol):
    """Sees every attempt, and may be in its way; for tests."""

    async def begin(self, context: TaskContext) -> BaseException | None:
        """Before its handler is called: None, or what is to be its outcome instead."""
        ...

    def end(self, attempt_id: str, outcome: Answer | BaseException) -> None:
        """Once it has its outcome."""
        ...


class Attempts:
    """Runs what is assigned and puts each outcome into `outbox`."""

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        outbox: Outbox,
        concurrency: int,
        observer: Observer | None = None,
    ) -> None:
        self._handlers = handlers
        self._outbox = outbox
        self._observer = observer
        self._batches = Batches(self)
        self._running: dict[str, _Attempt] = {}
        self._calls: dict[tuple[str, str], tuple[CallRequest, asyncio.Future[CallResponse], OnPartial | None]] = {}
        self._asks: dict[tuple[str, str], tuple[ContextRequest, asyncio.Future[ContextResponse]]] = {}
        self._holdings: dict[tuple[str, int], Holding] = {}
        self._idle: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # Threads are made when first needed, so an agent without plain functions has none.
        self._threads = ThreadPoolExecutor(min(concurrency, _THREADS), thread_name_prefix=THREADS)
        self.inline_limit = 65536

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, attempt_id: str) -> bool:
        return attempt_id in self._running

    def running(self) -> frozenset[str]:
        """Ids of the attempts that have no outcome yet."""
        return frozenset(self._running)

    def assign(self, assignment: Assignment, now: float) -> None:
        """Start an attempt; one that runs already goes on undisturbed. `now` is monotonic."""
        attempt_id = assignment.attempt_id
        if attempt_id in self._running:
            return
        handler = self._handlers.get((assignment.capability, assignment.version))
        if handler is None:
            text = f"this agent has no {assignment.capability}@{assignment.version}"
            self._outbox.fail(attempt_id, PermanentFailure(text, "unknown_capability"))
            return
        attempt = self._running[attempt_id] = _Attempt(TaskContext(assignment, self, now))
        if self._observer is None:
            self._start(attempt_id, attempt, handler)
        else:
            attempt.work = self._loop.create_task(self._start_observed(self._observer, attempt_id, attempt, handler))

    def _start(self, attempt_id: str, attempt: _Attempt, handler: Handler) -> None:
        if handler.batching is not None:
            try:
                attempt.work = self._batches.add(attempt_id, attempt.context, handler)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # its decoder may raise what it likes: an outcome as well
                self._settle(attempt_id, attempt, error)
        elif handler.plain:
            attempt.work = self._threads.submit(copy_context().run, self._run_plain, attempt_id, attempt, handler)
        else:
            attempt.work = self._loop.create_task(self._run(attempt_id, attempt, handler))

    async def _start_observed(self, observer: Observer, attempt_id: str, attempt: _Attempt, handler: Handler) -> None:
        outcome = await observer.begin(attempt.context)
        if outcome is None:
            self._start(attempt_id, attempt, handler)
        else:
            self._settle(attempt_id, attempt, outcome)

    def cancel(self, attempt_id: str) -> None:
        """Stop an attempt; its outcome follows when its handler has ended."""
        attempt = self._running.get(attempt_id)
        if attempt is None or attempt.work is None:
            return
        attempt.context.cancel()
        if isinstance(attempt.work, Batch):
            begun = attempt.work.begun
            attempt.work.leave(attempt_id)
            self._settle(attempt_id, attempt, TaskCancelled("cancelled while it ran" if begun else _UNBEGUN))
            return
        # A task that has not begun would end without running a line of its own, and a future likewise.
        if attempt.work.cancel() and not attempt.started:
            self._settle(attempt_id, attempt, TaskCancelled(_UNBEGUN))

    async def idle(self) -> None:
        """Return when nothing runs."""
        while self._running:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    async def stop(self) -> None:
        """Cancel everything and wait for the async handlers; a plain function cannot be stopped, only told."""
        tasks = []
        for attempt in self._running.values():
            attempt.context.cancel()
            if isinstance(attempt.work, asyncio.Task):
                attempt.work.cancel()
                tasks.append(attempt.work)
        tasks += self._batches.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    def flush(self) -> None:
        """No more will be assigned: what is gathered waits for nobody any longer."""
        self._batches.flush()

    # What batches ask for

    def settle(self, attempt_id: str, outcome: Answer | BaseException) -> None:
        """An attempt of a batch has its outcome."""
        if (attempt := self._running.get(attempt_id)) is not None:
            self._settle(attempt_id, attempt, outcome)

    def in_thread(self, work: Callable[[], None]) -> Future[None]:
        """Run something in one of the threads of plain functions."""
        return self._threads.submit(copy_context().run, work)

    # What contexts ask for

    def progress(self, attempt_id: str, fraction: float, message: str) -> None:
        """Tell how far an attempt is; from any thread."""
        progress = Progress(fraction=fraction, message=message)
        self._loop.call_soon_threadsafe(self._progress, attempt_id, progress)

    def _progress(self, attempt_id: str, progress: Progress) -> None:
        if attempt_id in self._running:
            self._outbox.progress(attempt_id, progress)

    def emit(self, attempt_id: str, pieces: list[PartialOutput]) -> None:
        """Send pieces of output, whose offsets are set here; from any thread."""
        if threading.get_ident() == self._thread:
            self._emit(attempt_id, pieces)  # at once: its handler may return without ever letting go of the loop
        else:
            self._loop.call_soon_threadsafe(self._emit, attempt_id, pieces)

    def _emit(self, attempt_id: str, pieces: list[PartialOutput]) -> None:
        if (attempt := self._running.get(attempt_id)) is not None:
            for piece in pieces:
                piece.offset = attempt.emitted
                attempt.emitted += content_bytes(piece)
                self._outbox.emit(attempt_id, piece)

    async def call(self, request: CallRequest, on_partial: OnPartial | None = None) -> CallResponse:
        """Send a call and wait for its outcome, across broken streams; bounded by the attempt's own time."""
        self._check_size(request)
        key = (request.attempt_id, request.call_id)
        if key in self._calls:
            raise ValueError(f"call_id {request.call_id!r} is in use by a call that has not ended")
        answer: asyncio.Future[CallResponse] = self._loop.create_future()
        self._calls[key] = (request, answer, on_partial)
        self._outbox.call(request)
        try:
            return await answer
        finally:
            del self._calls[key]
            if answer.cancelled():
                self._outbox.withdraw(request)

    def answer(self, response: CallResponse) -> None:
        """Hand the outcome of a call to who waits for it."""
        _, answer, _ = self._calls.get((response.attempt_id, response.call_id), (None, None, None))
        if answer is not None and not answer.done():
            answer.set_result(response)

    def made(self, partial: CallPartial) -> None:
        """Show a piece of what a call is making to who waits for it. What that raises is what the call raises."""
        _, answer, on_partial = self._calls.get((partial.attempt_id, partial.call_id), (None, None, None))
        if answer is not None and on_partial is not None and not answer.done():
            try:
                on_partial(partial.partial)
            except Exception as error:  # the handler's own code: its trouble alone, not the stream's
                answer.set_exception(error)

    async def ask(self, request: ContextRequest) -> ContextResponse:
        """Ask shared context and wait for its answer, across broken streams; bounded by the attempt's own time."""
        self._check_size(request)
        key = (request.attempt_id, request.request_id)
        answer: asyncio.Future[ContextResponse] = self._loop.create_future()
        self._asks[key] = (request, answer)
        self._outbox.ask(request)
        try:
            return await answer
        finally:
            del self._asks[key]
            if answer.cancelled():
                self._outbox.withdraw(request)

    def _check_size(self, request: CallRequest | ContextRequest) -> None:
        # From 4 MiB on it would break the stream of all attempts, and every stream on which it was repeated.
        if (size := request.ByteSize()) > (most := self.inline_limit + EXTRAS):
            raise ValueError(f"the request has {size} bytes, larger than {most} bytes")

    def told(self, response: ContextResponse) -> None:
        """Hand an answer of shared context to who waits for it."""
        _, answer = self._asks.get((response.attempt_id, response.request_id), (None, None))
        if answer is not None and not answer.done():
            answer.set_result(response)

    def holds(self, attempt_id: str, holding: Holding) -> None:
        """An attempt holds a claim from now on, and is to be told when it is lost."""
        key = (attempt_id, holding.reference.fence)
        self._holdings[key] = holding
        holding.forget = lambda: self._holdings.pop(key, None)

    def claim_lost(self, loss: ClaimLoss) -> None:
        """The orchestrator says so."""
        holding = self._holdings.get((loss.attempt_id, loss.claim.fence))
        if holding is not None:
            holding.lose()

    def repeat_calls(self) -> None:
        """Send every call without an answer again, on a new stream; the record answers those that were made."""
        for ask, told in self._asks.values():
            if not told.done():
                self._outbox.ask(ask)
        for request, answer, _ in self._calls.values():
            if not answer.done():
                self._outbox.call(request)

    # Running

    async def _run(self, attempt_id: str, attempt: _Attempt, handler: Handler) -> None:
        attempt.started = True
        entered(attempt.context)
        outcome: Answer | BaseException
        try:
            outcome = handler.output(await handler.call(attempt.context), self.inline_limit)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # whatever a handler raises is an outcome, and ends nothing else
            outcome = error
        self._settle(attempt_id, attempt, outcome)

    def _run_plain(self, attempt_id: str, attempt: _Attempt, handler: Handler) -> None:
        attempt.started = True
        entered(attempt.context)
        outcome: Answer | BaseException
        try:
            outcome = handler.output(handler.call(attempt.context), self.inline_limit)
        except BaseException as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, attempt_id, attempt, outcome)

    def _settle(self, attempt_id: str, attempt: _Attempt, outcome: Answer | BaseException) -> None:
        if self._running.get(attempt_id) is not attempt:
            return
        del self._running[attempt_id]
        if not isinstance(outcome, BaseException):
            self._outbox.succeed(attempt_id, outcome)
        elif attempt.context.is_cancelled and not isinstance(outcome, TaskCancelled):
            cancelled = TaskCancelled("cancelled while it ran")
            cancelled.__cause__ = outcome if not isinstance(outcome, asyncio.CancelledError) else None
            outcome = cancelled
            self._outbox.fail(attempt_id, outcome)
        else:
            if not isinstance(outcome, TaskFailure):
                # The text may quote the input, so it goes into the record, which has labels, and not into a log.
                _log.warning("attempt %s failed: %s%s", attempt_id, type(outcome).__name__, _place_of(outcome))
                _log.debug("attempt %s failed", attempt_id, exc_info=outcome)
            self._outbox.fail(attempt_id, outcome)
        if self._observer is not None:
            self._observer.end(attempt_id, outcome)
        if not self._running and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None


def _place_of(error: BaseException) -> str:
    """Where it was raised and how that was reached from the handler: places alone, no values."""
    own = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return "".join(f", at {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-_PLACES:])
