"""The one server interceptor: every call passes the checks, and every exception leaves as a status of the registry.

It hands handlers raw bytes to check before they are parsed into the generated class, so that what a handler sees is
whole and valid, on streams message by message. Handlers are coroutines, or async generators when they answer a stream;
a stream's client messages are read from the iterator only.

A stream outlives its checks, and so does a call that waits for the end of a run: `run` looks at their certificates
again and again, and asks policy anew; what would be refused now ends with the status a new call would get, and no
answer that was waited for leaves unlooked at. No handler can be reached around this: methods
that the image does not know are refused, but for the services named as open (health, reflection), which are there for
everybody within a rate and a number of streams for each address.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Clock, Kind
from google.protobuf.message import Message

from antiphon_orchestrator import telemetry

from .call import Caller, forwarded, now_waiting, set_caller, set_waits, trace_id, traceparent
from .checks import Call, Checks
from .errors import ApiError, refusal
from .gate import Gate, Place, Streams
from .image import Image, Method, decoded
from .pace import Pace

RECHECK = timedelta(seconds=3)
"""How long what is open may go on after its certificate has expired or is known to be revoked, or policy denies it."""

_ALWAYS = frozenset({Kind.OPERATOR, Kind.ORCHESTRATOR})
_PACED = "/antiphon.v1.RunService/SubmitRuns"
"""The stream whose messages cause work without end: 256 submissions each. Each is answered by itself, so its handler
checks each by itself."""
_DETAILS = "grpc-status-details-bin"
_CANCEL = "/antiphon.v1.RunService/CancelRun"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# Which of its four behaviours a handler has depends on the method; no static type says so.
Handler = Any


class Refusal(Exception):
    """The refusal of another replica, passed on as it is. `details`: a serialised google.rpc.Status, if it sent one."""

    code: grpc.StatusCode
    details: bytes | None


class Router(Protocol):
    """Knows which replica answers a call; see cluster.routing."""

    def shard(self, path: str, message: Any, who: Caller) -> int | None: ...

    def require_store(self, path: str) -> None: ...

    async def here(self, path: str, answer: Awaitable[Any]) -> Any: ...

    async def unary(
        self,
        path: str,
        shard: int,
        request: bytes,
        who: Caller,
        here: Callable[[], Awaitable[Any]],
        remaining: Callable[[], float | None],
    ) -> Any: ...

    def stream(
        self, path: str, shard: int, request: bytes, who: Caller, here: Callable[[], AsyncIterator[Any]]
    ) -> AsyncGenerator[Any, None]: ...


@dataclass(slots=True, eq=False)
class _Open:
    """`writing`: a message is under way, until whose end gRPC takes no status."""

    task: asyncio.Task[Any]
    call: Call
    writing: bool = False


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """`open_services` are reached without any check but TLS itself. Without a `router` every call is answered here."""

    def __init__(
        self,
        image: Image,
        checks: Checks,
        clock: Clock,
        metrics: telemetry.Metrics,
        open_services: frozenset[str],
        router: Router | None,
        gate: Gate,
        streams: Streams,
        pace: Pace,
    ) -> None:
        self._image = image
        self._router = router
        self._gate = gate
        self._checks = checks
        self._clock = clock
        self._metrics = metrics
        self._open_services = open_services
        self._handlers: dict[str, Handler] = {}
        self._open: set[_Open] = set()
        self._of_callers = streams
        self._pace = pace
        self._log = telemetry.logger("api")

    async def run(self) -> None:
        """Ends what is open and has an expired or revoked certificate, or is denied by policy by now, or would have to
        come from the store that is away; cancel to stop.

        A stream whose reader is slow ends after the message that is under way, and without a reader at all with its
        connection, which has an age: while a message is under way gRPC takes no status, and cannot reset a stream.
        """
        while True:
            await self._clock.sleep(RECHECK)
            for stream in tuple(self._open):
                if stream.call.certificate is None or stream.call.ended is not None:
                    continue
                try:
                    self._checks.still_allowed(stream.call)
                    if self._router is not None:
                        self._router.require_store(stream.call.path)
                except ApiError as error:
                    stream.call.ended = error
                    if not stream.writing:
                        stream.task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The guarded handler of a method; made once, since the methods are finite and known."""
        path = handler_call_details.method
        guarded = self._handlers.get(path)
        if guarded is not None:
            return guarded
        method = self._image.methods.get(path)
        is_open = path[1:].rpartition("/")[0] in self._open_services
        inner = await continuation(handler_call_details) if is_open or method is not None else None
        if inner is None:  # not kept: anybody may make up names
            return grpc.stream_stream_rpc_method_handler(self._unknown(path))
        self._handlers[path] = self._counted(path, inner) if method is None else self._guard(method, inner)
        return self._handlers[path]

    def _unknown(self, path: str) -> Callable[[Any, Context], Awaitable[None]]:
        # As a stream both ways: that fits every kind of call, and reads nothing before it refuses.
        async def refuse(_requests: Any, context: Context) -> None:
            call = _call(path, None, context, None)
            try:
                self._checks.run(call)
            except ApiError as error:
                await self._refuse(context, call, error)

        return refuse

    def _counted(self, path: str, inner: Handler) -> Handler:
        """The same handler of an open service, for callers within their rate and their number of streams."""
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(name for name in kinds if getattr(inner, name) is not None)
        behaviour = getattr(inner, kind)

        async def counted(request: Any, context: Context) -> Any:
            call = _call(path, None, context, None)
            call.forwarded = None  # nobody has looked at who says so
            try:
                self._checks.size_and_rate(call)
                if kind == "unary_unary":
                    return await behaviour(request, context)
                with self._one_of_few(call):
                    # A handler of this kind writes, or is a generator of what is to be written.
                    answers = behaviour(request, context)
                    if not hasattr(answers, "__aiter__"):
                        return await answers
                    async for answer in answers:
                        await context.write(answer)
            except Exception as error:
                await self._refuse(context, call, error)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(counted, inner.request_deserializer, inner.response_serializer)

    @contextmanager
    def _one_of_few(self, call: Call) -> Iterator[None]:
        """While open, a stream or a call that waits counts among those of its caller. Raises ApiError when there are
        too many.

        Those of other replicas, and those that they pass on, do not: these were counted where they came in.
        """
        peer = call.peer
        if call.forwarded is not None or (peer is not None and peer.identity.kind is Kind.ORCHESTRATOR):
            yield
            return
        caller = peer.identity.uri if peer is not None else call.address
        if not self._of_callers.enter(caller):
            raise ApiError(
                ErrorReason.ERROR_REASON_OVERLOADED, queue="the list of the caller's open streams and waiting calls"
            )
        try:
            yield
        finally:
            self._of_callers.leave(caller)

    def _guard(self, method: Method, inner: Handler) -> Handler:
        """The same handler behind the checks, on raw bytes."""
        make: Callable[..., Handler]
        guard: Callable[[Any, Context], Awaitable[Any]]
        if method.unary:
            make, guard = grpc.unary_unary_rpc_method_handler, self._unary(method, inner)
        elif method.request_streaming and not method.response_streaming:
            make, guard = grpc.stream_unary_rpc_method_handler, self._upload(method, inner)
        else:
            streams = method.request_streaming
            make = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_stream_rpc_method_handler
            guard = self._stream(method, inner)
        serialize = inner.response_serializer
        # What another replica has answered is passed on as it came.
        return make(guard, response_serializer=lambda answer: answer if type(answer) is bytes else serialize(answer))

    def _unary(self, method: Method, inner: Handler) -> Callable[[bytes, Context], Awaitable[Any]]:
        behaviour, parse = inner.unary_unary, inner.request_deserializer

        async def unary(request: bytes, context: Context) -> Any:
            call = _call(method.path, method, context, request, parse)
            place: Place | None = None
            self._pace.came()
            try:
                with ExitStack() as waiting:
                    who = self._admit(call)
                    place = self._place(call)
                    set_waits(partial(self._wait, call, place, waiting))
                    shard = self._shard(call, who)
                    if self._router is None:
                        response = await behaviour(call.message, context)
                    elif shard is None:
                        response = await self._router.here(method.path, behaviour(call.message, context))
                    else:
                        assert who is not None
                        self._passed_on(call)
                        response = await self._router.unary(
                            method.path, shard, request, who, lambda: behaviour(parse(request), context),
                            context.time_remaining,
                        )  # fmt: skip
                    if call.waits:
                        self._checks.still_allowed(call)
            except Exception as error:
                await self._refuse(context, call, error)
            else:
                if place is not None:
                    place.ended()
            finally:
                if place is not None:
                    place.give_back()
            self._metrics.count_call(method.path, "OK")
            return response

        return unary

    def _place(self, call: Call) -> Place | None:
        """The call's place among those in hand. Raises ApiError when there is none.

        Operators and other replicas need none: whoever is to help must get in, and a call that is passed on was counted
        where it came in.
        """
        peer = call.peer
        if call.forwarded is not None or (peer is not None and peer.identity.kind in _ALWAYS):
            return None
        place = self._gate.enter(peer.identity.uri if peer is not None else call.address)
        if place is None:
            raise ApiError(ErrorReason.ERROR_REASON_OVERLOADED, queue="the list of calls in hand")
        return place

    def _wait(self, call: Call, place: Place | None, waiting: ExitStack) -> None:
        """The call leaves its place, and is one of its caller's few and watched until `waiting` ends."""
        if call.waits:
            return
        waiting.enter_context(self._one_of_few(call))
        waiting.enter_context(self._watched(call))
        call.waits = True
        if place is not None:
            place.give_back()

    def _passed_on(self, call: Call) -> None:
        """A call goes to another replica, and waits if it is answered when a run ends; what is answered here says so
        itself. A cancel for which there is no room to wait keeps its place: it would make room."""
        if getattr(call.message, "wait", False) is True:
            now_waiting()
        elif call.path == _CANCEL:
            with suppress(ApiError):
                now_waiting()

    def _upload(self, method: Method, inner: Handler) -> Callable[[AsyncIterator[bytes], Context], Awaitable[Any]]:
        behaviour = inner.stream_unary

        async def upload(requests: AsyncIterator[bytes], context: Context) -> Any:
            call = _call(method.path, method, context, None)
            try:
                self._admit(call)
                with self._one_of_few(call), self._watched(call):
                    response = await behaviour(self._checked(method, inner, requests, call), context)
            except Exception as error:
                await self._refuse(context, call, error)
            self._metrics.count_call(method.path, "OK")
            return response

        return upload

    def _stream(self, method: Method, inner: Handler) -> Callable[[Any, Context], Awaitable[None]]:
        behaviour = inner.stream_stream if method.request_streaming else inner.unary_stream

        # Writes instead of yielding: only so is the whole life of the stream, a blocked write too, inside the `try`.
        async def stream(received: Any, context: Context) -> None:
            call = _call(
                method.path, method, context, None if method.request_streaming else received, inner.request_deserializer
            )
            few = ExitStack()
            try:
                who = self._admit(call)
                few.enter_context(self._one_of_few(call))
                requests = self._checked(method, inner, received, call) if method.request_streaming else call.message
                shard = self._shard(call, who)
                if shard is None:
                    answers = behaviour(requests, context)
                else:
                    assert self._router is not None and who is not None
                    answers = self._router.stream(
                        method.path, shard, received, who, lambda: behaviour(requests, context)
                    )
                with self._watched(call) as open_stream:
                    async with aclosing(answers) as responses:
                        async for response in responses:
                            open_stream.writing = True
                            await context.write(response)
                            open_stream.writing = False
                            if call.ended is not None:
                                raise call.ended
            except Exception as error:
                await self._refuse(context, call, error)
            finally:
                few.close()
            self._metrics.count_call(method.path, "OK")

        return stream

    async def _checked(
        self, method: Method, inner: Handler, requests: AsyncIterator[bytes], call: Call
    ) -> AsyncIterator[Any]:
        """The client's messages. One that does not read, so that its stream cannot end, is not listened to either."""
        parse = inner.request_deserializer
        async for request in requests:
            if call.ended is not None:
                raise call.ended
            if method.path != _PACED:
                yield self._checks.stream_message(method, parse, request)
                continue
            await self._pace.begin()
            with self._pace.work():
                self._checks.small_enough(request)
                message = decoded(parse, request)
            yield message

    def _admit(self, call: Call) -> Caller | None:
        if self._router is not None:
            self._router.require_store(call.path)  # first: the checks decide by what may be old
        self._checks.run(call)
        if call.peer is None:
            return None
        who = Caller.of(call.peer, call.traceparent, call.forwarded is not None)
        set_caller(who)
        return who

    def _shard(self, call: Call, who: Caller | None) -> int | None:
        """The shard that another replica may have to be asked about; None: the call is answered here."""
        if self._router is None or who is None:
            return None
        return self._router.shard(call.path, call.message, who)

    @contextmanager
    def _watched(self, call: Call) -> Iterator[_Open]:
        """While open, a stream or a call that waits can be ended by `run`: a cancellation from there becomes its
        refusal."""
        task = asyncio.current_task()
        assert task is not None
        stream = _Open(task, call)
        self._open.add(stream)
        self._metrics.streams.inc()
        try:
            yield stream
        except asyncio.CancelledError:
            if call.ended is None:
                raise
            task.uncancel()
            raise call.ended from None
        finally:
            self._open.discard(stream)
            self._metrics.streams.dec()

    async def _refuse(self, context: Context, call: Call, error: Exception) -> NoReturn:
        """Ends the call with the status for an exception."""
        told = isinstance(error, grpc.aio.AbortError | grpc.aio.InternalError)
        if told or (isinstance(error, grpc.aio.BaseError) and context.done()):
            # The status has been sent, or the peer is gone, which a write may find out first: there is nobody to tell.
            raise error
        if isinstance(error, Refusal):
            self._metrics.count_call(call.path, error.code.name)
            trailers = ((_DETAILS, error.details),) if error.details is not None else ()
            await context.abort(error.code, str(error), trailers)
        refused = refusal(error)
        if refused is None and isinstance(error, TimeoutError) and context.time_remaining() == 0:
            refused = ApiError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, method=call.path)
        if refused is None:
            trace = trace_id(call.traceparent)
            self._log.error("call_failed", method=call.path, trace_id=trace, exc_info=error)
            self._metrics.internal_errors.inc()
            refused = ApiError(ErrorReason.ERROR_REASON_INTERNAL, trace_id=trace)
        self._metrics.count_call(call.path if call.method else "unknown", refused.spec.code.name)
        details = refused.to_status().SerializeToString()
        await context.abort(refused.spec.code, str(refused), ((_DETAILS, details),))


def _call(
    path: str,
    method: Method | None,
    context: Context,
    request: bytes | None,
    parse: Callable[[bytes], Message] | None = None,
) -> Call:
    certificates: Any = context.auth_context().get("x509_pem_cert")
    metadata = context.invocation_metadata() or ()
    return Call(
        path,
        method,
        context.time_remaining(),
        certificates[0] if certificates else None,
        context.peer().rpartition(":")[0],
        request,
        traceparent(metadata),
        forwarded(metadata),
        parse,
    )
