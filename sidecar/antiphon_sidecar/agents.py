"""The way down to agents that speak gRPC: antiphon.v1.AgentService on one Unix socket for each.

The socket's path is the agent's identity (protocol.md §8). Threat model: a process of the sidecar's own user is trusted
as the sidecar is. One of another user that may open the socket can speak as this agent, and do on behalf of a task only
what the attempt token it was given allows. It can hurt neither other agents nor the stream to the orchestrator: what it
says is checked before it travels.

When an agent's stream ends, the agent is gone: its attempts are LOST or come back. A second stream replaces the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import grpc
from antiphon.partials import MESSAGE_PIECES
from antiphon.v1 import agent_service_pb2 as agents
from antiphon.v1 import agent_service_pb2_grpc, context_request_pb2, error_pb2, failure_pb2, payload_pb2

from .asks import TOO_MANY_LABELS, inherit, mistake_in_ask, note_answer, note_piece, note_reads, refused
from .attempts import Attempt
from .boxes import Seat
from .checks import (
    Mistake,
    checked_result,
    failed,
    mistake_in_call,
    mistake_in_partial,
    mistake_in_piece,
    mistake_in_progress,
)
from .errors import REFUSE_UNKNOWN, Refused, abort, not_moved, refusal_of_call
from .node import Node
from .payloads import LARGEST, MOST_KEPT, MOST_READY, Finish, Lane, NotMoved, Wanted, fetchable
from .socket import SocketError
from .supervise import Supervisor
from .wire import MOST_BYTES, MOST_ITEMS

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 10.0
DEATH_TIMEOUT = 0.5
"""Seconds for which a stream that ended waits for the end of its process, so that what is lost says how that ended."""
PROTOCOL_VERSION = 1
# One message may hold a large result, a large call and a large request besides many small ones; one to the
# agent holds a single large value.
_OPTIONS = (("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 4 << 20))
_BATCHES = (
    ("results", MOST_ITEMS),
    ("progress", MOST_ITEMS),
    ("calls", MOST_ITEMS),
    ("context_requests", MOST_ITEMS),
    ("partials", MESSAGE_PIECES),
)
_MOST_CALLS = 256  # unary ones at once, on one socket
_MOST_ANSWERS = 1_024
"""Answers that wait for an agent at which no more is read of it: it asks without listening."""

_PROGRESS_BYTES = 8_192  # more than the longest message takes

_Context = grpc.aio.ServicerContext[Any, Any]


class AgentSocket:
    """The server of one agent's socket."""

    def __init__(self, node: Node, name: str, supervisor: Supervisor | None = None) -> None:
        """`supervisor`: has started the agent, if this sidecar has."""
        self._servicer = _Servicer(node, name, supervisor)
        self._server: grpc.aio.Server | None = None
        self.seat = self._servicer.seat

    async def open(self, path: str) -> None:
        """Open the socket. Raises `SocketError` when that cannot be."""
        server = self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MOST_CALLS)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self._servicer, server)  # type: ignore[arg-type]
        server.add_generic_rpc_handlers((REFUSE_UNKNOWN,))
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise SocketError(f"{path} cannot be opened: {error}") from error
        await server.start()

    async def run(self) -> None:
        """Serve until cancelled."""
        assert self._server is not None, "open it first"
        try:
            await self._server.wait_for_termination()
        finally:
            await asyncio.shield(self._server.stop(None))


class _Servicer:
    """antiphon.v1.AgentService for one agent."""

    def __init__(self, node: Node, name: str, supervisor: Supervisor | None = None) -> None:
        self._node = node
        self._supervisor = supervisor
        self._session: _Session | None = None
        self._leaving: asyncio.Task[None] | None = None
        self.seat = node.inflight.add_seat(name, self._wake)

    def _wake(self) -> None:
        if self._session:
            self._session.wake.set()

    async def Work(
        self, requests: AsyncIterator[agents.WorkRequest], context: _Context
    ) -> AsyncIterator[agents.WorkResponse]:
        """The life of the agent."""
        session = _Session(self._node, self.seat)
        try:
            yield await self._begin(session, requests, context)
            parts = [asyncio.create_task(part) for part in (session.read(requests), *session.movers())]
            try:
                async for response in session.responses():
                    yield response
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.wait(parts)
        except Exception as error:
            await abort(context, error)
        finally:
            self._end(session)

    async def _begin(
        self, session: _Session, requests: AsyncIterator[agents.WorkRequest], context: _Context
    ) -> agents.WorkResponse:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            raise Refused(error_pb2.ERROR_REASON_PROTOCOL_VIOLATION, cause="no hello came") from None
        if not first.HasField("hello"):
            raise Refused(error_pb2.ERROR_REASON_PROTOCOL_VIOLATION, cause="the first message is not a hello")
        if not first.hello.HasField("description"):
            where = "hello.description"
            raise Refused(error_pb2.ERROR_REASON_REQUEST_INVALID, violations=[(where, "is required")], field=where)
        if (spoken := first.hello.protocol_version) != PROTOCOL_VERSION:
            cause = f"the agent speaks version {spoken} of the contract, this sidecar {PROTOCOL_VERSION}"
            raise Refused(error_pb2.ERROR_REASON_PROTOCOL_VIOLATION, cause=cause)
        # A client that dies during a write leaves this generator suspended, its `finally` waiting for the collector.
        context.add_done_callback(lambda _: self._end(session))  # type: ignore[arg-type]
        if self._session:
            self._end(self._session)
        if self._leaving:
            self._leaving.cancel()
            self._leaving = None
            self._node.depart(self.seat)
        self._node.announce(self.seat, first.hello.description)
        self._session = session
        session.wake.set()
        welcome = agents.AgentWelcome(agent=self.seat.name, namespace=self._node.namespace, inline_limit=LARGEST)
        return agents.WorkResponse(welcome=welcome)

    def _end(self, session: _Session) -> None:
        if session is self._session:
            self._session = None
            if self._supervisor and self.seat.running:
                self._leaving = asyncio.create_task(self._leave(self._supervisor))
            else:
                self._node.depart(self.seat)
            session.replaced()

    async def _leave(self, supervisor: Supervisor) -> None:
        death = await supervisor.death(DEATH_TIMEOUT)
        self._leaving = None
        self._node.depart(self.seat, death)

    async def ReportProgress(
        self, request: agents.ReportProgressRequest, context: _Context
    ) -> agents.ReportProgressResponse:
        """How far an attempt is."""
        try:
            _check_call(context, "ReportProgress", mistake_in_progress(request))
            attempt = self._vouched(request.update.attempt_id, request.attempt_token)
            self._node.inflight.progressed(self.seat, attempt.attempt_id, tidy_progress(request.update))
        except Exception as error:
            await abort(context, error)
        return agents.ReportProgressResponse()

    async def ReportPartial(
        self, request: agents.ReportPartialRequest, context: _Context
    ) -> agents.ReportPartialResponse:
        """A piece of output."""
        try:
            _check_call(context, "ReportPartial", mistake_in_partial(request))
            attempt = self._vouched(request.update.attempt_id, request.attempt_token)
            inherit(attempt, request.update.partial)
            _check_call(context, "ReportPartial", mistake_in_partial(request))  # with the labels it got
            self._node.inflight.emitted(self.seat, attempt.attempt_id, request.update.partial)
        except Exception as error:
            await abort(context, error)
        return agents.ReportPartialResponse()

    async def Call(self, request: agents.CallRequest, context: _Context) -> agents.CallResponse:
        """Ask for a capability and wait."""
        inflight = self._node.inflight
        try:
            _check_call(context, "Call", mistake_in_call(request, self._node.inline_limit))
            attempt = self._vouched(request.attempt_id, request.attempt_token)
            inherit(attempt, request.input)
            _check_call(context, "Call", mistake_in_call(request, self._node.inline_limit))  # with the labels it got
            answer: asyncio.Future[agents.CallResponse | None] = asyncio.get_running_loop().create_future()

            def deliver(response: agents.CallResponse | None) -> None:
                if not answer.done():
                    answer.set_result(response if response is None else note_answer(attempt, response))

            if not inflight.called(attempt, request.call_id, request, request.ByteSize(), deliver):
                raise Refused(error_pb2.ERROR_REASON_OVERLOADED, queue="the queue of this attempt's calls")
            try:
                response = await answer
            finally:
                if not answer.done() or answer.cancelled():
                    inflight.gave_up(attempt, request.call_id)
            if response is None:
                raise Refused(error_pb2.ERROR_REASON_ATTEMPT_NOT_FOUND, attempt_id=request.attempt_id)
            if refused := refusal_of_call(request, response):
                raise refused
            if fetchable(response.output):
                await self._fetched(response.output, attempt)
            return response
        except Exception as error:
            await abort(context, error)

    async def _fetched(self, payload: payload_pb2.Payload, attempt: Attempt) -> None:
        try:
            await self._node.payloads.fetch(
                payload, lambda: attempt.attempt_id in self.seat.running and attempt.cancelled is None
            )
        except NotMoved as error:
            raise not_moved(error.failure) from error

    def _vouched(self, attempt_id: str, token: bytes) -> Attempt:
        try:
            attempt = self._node.inflight.vouched(self.seat, attempt_id, token)
        except KeyError:
            raise Refused(error_pb2.ERROR_REASON_ATTEMPT_NOT_FOUND, attempt_id=attempt_id[:512]) from None
        if attempt is None:
            raise Refused(error_pb2.ERROR_REASON_ATTEMPT_TOKEN_INVALID)
        return attempt


def _check_call(context: _Context, method: str, mistake: Mistake | None) -> None:
    """What every unary call must keep. Raises `Refused`."""
    if context.time_remaining() is None:
        raise Refused(error_pb2.ERROR_REASON_DEADLINE_REQUIRED, method=f"/antiphon.v1.AgentService/{method}")
    if mistake:
        raise Refused(error_pb2.ERROR_REASON_REQUEST_INVALID, str(mistake), violations=[mistake], field=mistake.field)


class _Session:
    """One Work stream after its hello."""

    def __init__(self, node: Node, seat: Seat) -> None:
        self.wake = asyncio.Event()
        self._node = node
        self._seat = seat
        self._error: BaseException | None = None
        self._room = asyncio.Event()  # fewer answers than _MOST_ANSWERS wait, or nobody listens any more
        # Bounded by attempts and calls of each, and what is refused besides by _MOST_ANSWERS.
        self._call_results: deque[agents.CallResponse] = deque()
        self._answers: deque[context_request_pb2.ContextResponse] = deque()
        self._up = Lane(node.payloads.keep)
        self._down = Lane(node.payloads.fetch)
        self._large: deque[agents.WorkResponse] = deque()  # with one value each that was fetched
        self._finished = False  # the agent has closed its side
        self._told_drain = False

    def replaced(self) -> None:
        """Another stream has taken the seat, or this one is over."""
        self._error = self._error or Refused(error_pb2.ERROR_REASON_STREAM_REPLACED)
        self._room.set()
        self.wake.set()

    async def read(self, requests: AsyncIterator[agents.WorkRequest]) -> None:
        """Take in what the agent says, until it closes or breaks the rules."""
        try:
            async for request in requests:
                if self._error:
                    return
                self._receive(request)
                while self._full() and not self._error:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._error = self._error or error
        finally:
            self._finished = True
            self.wake.set()

    def _full(self) -> bool:
        """Whether so much waits that no more is read."""
        return len(self._call_results) + len(self._answers) > _MOST_ANSWERS or self._up.bytes > MOST_KEPT

    def movers(self) -> Iterable[Coroutine[Any, Any, None]]:
        """What moves large values, each way; to be run until the stream is over."""
        return (self._move(lane) for lane in (self._up, self._down))

    async def _move(self, lane: Lane) -> None:
        try:
            await lane.run()
        except Exception as error:
            self._error = self._error or error
            self._room.set()
            self.wake.set()

    async def responses(self) -> AsyncIterator[agents.WorkResponse]:
        """What there is to say, a message at a time, until the stream is to end."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while (response := self._next()) is not None:
                yield response
            if self._error:
                raise self._error
            over = self._seat.draining and not self._seat.running and not self._seat.lingering
            if (self._finished and not self._up) or (over and (self._told_drain or not self._node.inflight.draining)):
                return

    def _next(self) -> agents.WorkResponse | None:
        node, seat = self._node, self._seat
        if self._error:
            return None
        if refusal := node.refusals.get(seat.name):
            self._error = refusal
            return None
        if self._large and not seat.pieces:  # of a call they come before its outcome
            self._down.open.set()
            return self._large.popleft()
        response = agents.WorkResponse()
        taken = node.inflight.take(seat, node.now(), MOST_ITEMS, MOST_BYTES)
        if taken:
            late = [attempt for attempt in taken if not attempt.size and fetchable(attempt.assignment.input)]
            response.assignments.extend([attempt.assignment for attempt in taken if attempt not in late])
            for attempt in late:
                self._fetch_input(attempt)
            for attempt in taken:
                attempt.assignment = None
        while seat.cancels and len(response.cancels) < MOST_ITEMS:
            attempt_id, reason = seat.cancels.popleft()
            response.cancels.add(attempt_id=attempt_id, reason=reason[:256])
        # Before the outcomes of the calls: afterwards nobody listens.
        for (attempt_id, call_id), piece in seat.pieces.take() if seat.pieces else ():
            caller = seat.running.get(attempt_id)
            if caller is not None and note_piece(caller, piece):
                response.call_partials.add(attempt_id=attempt_id, call_id=call_id, partial=piece)
        if self._call_results:
            room = MOST_BYTES
            while self._call_results and room > 0:
                result = self._call_results.popleft()
                response.call_results.append(result)
                room -= result.ByteSize()
        if self._answers:
            room = MOST_BYTES
            while self._answers and room > 0:
                answer = self._answers.popleft()
                response.context_responses.append(answer)
                room -= answer.ByteSize()
        self._room.set()
        while seat.losses and len(response.claim_losses) < MOST_ITEMS:
            response.claim_losses.append(seat.losses.popleft())
        if node.inflight.draining and not self._told_drain:
            self._told_drain = response.drain = True
        return response if response.ListFields() else None

    def _fetch_input(self, attempt: Attempt) -> None:
        """Give the attempt to the agent once its input is here."""
        seat, assignment = self._seat, attempt.assignment

        def fetched(failure: failure_pb2.Failure | None) -> None:
            if failure is None and attempt.attempt_id in seat.running and attempt.cancelled is None:
                self._send_large(agents.WorkResponse(assignments=[assignment]))
                return
            if failure is None:
                failure = failed(failure_pb2.FAILURE_KIND_CANCELLED, f"cancelled: {attempt.cancelled}")
            self._ended(agents.Result(attempt_id=attempt.attempt_id, failure=failure))

        self._fetch(assignment.input, attempt.attempt_id, fetched)

    def _send_large(self, response: agents.WorkResponse) -> None:
        self._large.append(response)
        if len(self._large) >= MOST_READY:
            self._down.open.clear()
        self.wake.set()

    def _wanted(self, attempt_id: str) -> Wanted:
        running = self._seat.running
        return lambda: (attempt := running.get(attempt_id)) is not None and attempt.cancelled is None

    def _fetch(self, payload: payload_pb2.Payload, attempt_id: str, then: Finish) -> None:
        """Have what a payload refers to fetched for an attempt, then go on."""
        self._down.add(payload, self._wanted(attempt_id), then)

    def _keep(self, payload: payload_pb2.Payload, attempt_id: str, then: Finish) -> None:
        """Have a payload kept for an attempt, then go on."""

        def kept(failure: failure_pb2.Failure | None) -> None:
            then(failure)
            self._room.set()
            self.wake.set()

        self._up.add(payload, self._wanted(attempt_id), kept)

    def _ended(self, result: agents.Result) -> None:
        node = self._node
        size = checked_result(result, node.inline_limit)
        node.inflight.ended(self._seat, result.attempt_id, result, size, node.now())

    def _receive(self, request: agents.WorkRequest) -> None:
        node, seat = self._node, self._seat
        inflight, now, limit = node.inflight, node.now(), node.inline_limit
        if request.HasField("hello"):
            raise Refused(error_pb2.ERROR_REASON_PROTOCOL_VIOLATION, cause="hello came twice")
        for field, most in _BATCHES:
            if len(getattr(request, field)) > most:
                cause = f"one message has {len(getattr(request, field))} {field}; at most {most} are allowed"
                raise Refused(error_pb2.ERROR_REASON_PROTOCOL_VIOLATION, cause=cause)
        for said in request.partials:
            inherit(seat.running.get(said.attempt_id), said.partial)
            if mistake := mistake_in_piece(said.partial):
                log.warning("a piece of output is left out", extra={"agent": seat.name, "cause": str(mistake)})
            else:
                inflight.emitted(seat, said.attempt_id, said.partial)
        large = request.ByteSize() > limit
        for result in request.results:
            attempt = seat.running.get(result.attempt_id)
            if attempt is not None and attempt.reads is not None and not result.HasField("failure"):
                inherit(attempt, result.subgraph.input if result.HasField("subgraph") else result.output)
            if large and limit < len(result.output.inline) <= LARGEST:
                self._keep_output(result)
                continue
            size = checked_result(result, limit)
            inflight.ended(seat, result.attempt_id, result, size, now)
        for update in request.progress:
            inflight.progressed(seat, update.attempt_id, tidy_progress(update))
        for call in request.calls:
            self._call(call)
        for ask in request.context_requests:
            self._ask(ask)
        if request.drain and not seat.draining:
            inflight.agent_drains(seat, now)
        if seat.draining:
            self.wake.set()

    def _keep_output(self, result: agents.Result) -> None:
        def kept(failure: failure_pb2.Failure | None) -> None:
            if failure is not None:
                result.failure.CopyFrom(failure)
            self._ended(result)

        self._keep(result.output, result.attempt_id, kept)

    def _call(self, call: agents.CallRequest) -> None:
        """Pass a call on; one that is refused is answered with a failure, for it has a handler that waits."""
        inflight = self._node.inflight
        try:
            attempt = inflight.vouched(self._seat, call.attempt_id, call.attempt_token)
        except KeyError:
            # Its handler may wait, of an attempt that went with an earlier stream, or has timed out.
            self._fail_call(call, failure_pb2.FAILURE_KIND_CANCELLED, "ATTEMPT_NOT_FOUND", "the attempt is over")
            return
        if attempt is None:
            self._fail_call(
                call, failure_pb2.FAILURE_KIND_PERMANENT, "ATTEMPT_TOKEN_INVALID", "the token is not its own"
            )
            return
        inherit(attempt, call.input)
        if self._node.inline_limit < len(call.input.inline) <= LARGEST:

            def kept(failure: failure_pb2.Failure | None) -> None:
                if failure is None:
                    self._call(call)
                else:
                    self._fail_call(call, failure.kind, failure.code, failure.message)

            self._keep(call.input, call.attempt_id, kept)
            return

        def deliver(response: agents.CallResponse | None) -> None:
            self._deliver(response if response is None else note_answer(attempt, response))

        if mistake := mistake_in_call(call, self._node.inline_limit):
            self._fail_call(call, failure_pb2.FAILURE_KIND_INVALID_INPUT, "REQUEST_INVALID", str(mistake))
        elif not inflight.called(attempt, call.call_id, call, call.ByteSize(), deliver):
            self._fail_call(
                call, failure_pb2.FAILURE_KIND_PERMANENT, "OVERLOADED", "too many calls of one attempt wait"
            )

    def _deliver(self, response: agents.CallResponse | None) -> None:
        if response is None:
            return
        if fetchable(response.output):

            def fetched(failure: failure_pb2.Failure | None) -> None:
                if failure is not None:
                    response.failure.CopyFrom(failure)
                self._send_large(agents.WorkResponse(call_results=[response]))

            self._fetch(response.output, response.attempt_id, fetched)
            return
        self._call_results.append(response)
        self.wake.set()

    def _ask(self, request: context_request_pb2.ContextRequest) -> None:
        """Pass a request to shared context on, with what the attempt has read; or answer why not."""
        inflight = self._node.inflight
        try:
            attempt = inflight.vouched(self._seat, request.attempt_id, request.attempt_token)
            if attempt is None:
                raise Refused(error_pb2.ERROR_REASON_ATTEMPT_TOKEN_INVALID)
            if self._node.inline_limit < len(request.put.value.inline) <= LARGEST:

                def kept(failure: failure_pb2.Failure | None) -> None:
                    if failure is None:
                        self._ask(request)
                    else:
                        self._told(refused(request, not_moved(failure)))

                self._keep(request.put.value, request.attempt_id, kept)
                return
            if mistake := mistake_in_ask(request, self._node.inline_limit):
                field, _, remedy = mistake.partition(": ")
                raise Refused(
                    error_pb2.ERROR_REASON_REQUEST_INVALID, mistake, violations=[(field, remedy)], field=field
                )
            request.ClearField("reads")
            if attempt.reads is not None:
                request.reads.CopyFrom(attempt.reads)

            def deliver(response: context_request_pb2.ContextResponse | None) -> None:
                if response is not None and not note_reads(attempt, response):
                    violations = [("value.labels", TOO_MANY_LABELS)]
                    refusal = Refused(
                        error_pb2.ERROR_REASON_REQUEST_INVALID,
                        TOO_MANY_LABELS,
                        violations=violations,
                        field="value.labels",
                    )
                    response = refused(request, refusal)
                self._told(response)

            if not inflight.asked(attempt, request.request_id, request, request.ByteSize(), deliver):
                raise Refused(error_pb2.ERROR_REASON_OVERLOADED, queue="the queue of this attempt's requests")
        except KeyError:
            attempt_id = request.attempt_id[:512]
            self._told(refused(request, Refused(error_pb2.ERROR_REASON_ATTEMPT_NOT_FOUND, attempt_id=attempt_id)))
        except Refused as refusal:
            self._told(refused(request, refusal))

    def _told(self, response: context_request_pb2.ContextResponse | None) -> None:
        if response is None:
            return
        if fetchable(response.get.entry.value):

            def fetched(failure: failure_pb2.Failure | None) -> None:
                answer = response
                if failure is not None:
                    asked = context_request_pb2.ContextRequest(
                        request_id=response.request_id, attempt_id=response.attempt_id
                    )
                    answer = refused(asked, not_moved(failure))
                self._send_large(agents.WorkResponse(context_responses=[answer]))

            self._fetch(response.get.entry.value, response.attempt_id, fetched)
            return
        self._answers.append(response)
        self.wake.set()

    def _fail_call(
        self, call: agents.CallRequest, kind: failure_pb2.FailureKind.ValueType, code: str, message: str
    ) -> None:
        failure = failed(kind, message, code=code)
        attempt_id = call.attempt_id[:512]
        self._deliver(agents.CallResponse(call_id=call.call_id[:64], attempt_id=attempt_id, failure=failure))


def tidy_progress(update: agents.ProgressUpdate) -> Any:
    """The progress within the contract's limits: a fraction of 0 to 1, a short message."""
    progress = update.progress
    if progress.ByteSize() > _PROGRESS_BYTES:
        progress.DiscardUnknownFields()
    if not 0.0 <= progress.fraction <= 1.0:
        progress.fraction = 0.0
    if len(progress.message) > 1_024:
        progress.message = progress.message[:1_024]
    return progress
