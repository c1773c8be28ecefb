"""One Work stream from the sidecar's side, and the socket on which an agent opens them.

What an agent says is taken in as fast as it comes, unless a case holds the stream back; what a case wants said is sent
at once. Nothing is judged here: that is the ledger's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from antiphon.options.v1 import options_pb2
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc as service
from antiphon.v1 import error_pb2

_OPTIONS = (("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20))
_UNWIND = 2.0  # seconds for handlers of streams that have been broken
_Context = grpc.aio.ServicerContext[Any, Any]
Heard = Callable[["Line", pb.WorkRequest], None]
Asked = Callable[[pb.CallRequest], pb.CallResponse | None]
Reported = Callable[[pb.ReportProgressRequest], bool]
Emitted = Callable[[pb.ReportPartialRequest], bool]


class Line:
    """One stream. `first` is the first message of the agent."""

    def __init__(self, first: pb.WorkRequest, changed: asyncio.Condition) -> None:
        self.first = first
        self.said_drain = False
        self.closed = False
        """The agent has closed its side, or the stream is gone."""
        self.garbled = False
        """The agent has sent bytes that are no message, which ends the stream."""
        self.reading = asyncio.Event()
        self.reading.set()
        """Cleared: what the agent says is left in the connection."""
        self._down: asyncio.Queue[pb.WorkResponse | Exception | None] = asyncio.Queue()
        self._changed = changed

    @property
    def hello(self) -> pb.AgentHello:
        """The announcement."""
        return self.first.hello

    def send(self, response: pb.WorkResponse) -> None:
        """Say something."""
        self._down.put_nowait(response)

    def end(self) -> None:
        """End the stream with OK."""
        self._down.put_nowait(None)

    def tear(self) -> None:
        """End the stream as a connection that is lost does."""
        self._down.put_nowait(ConnectionError("the stream is lost"))

    async def responses(self) -> AsyncIterator[pb.WorkResponse]:
        """For the server: what is to be said, until the stream is to end. Raises `ConnectionError`."""
        while (response := await self._down.get()) is not None:
            if isinstance(response, Exception):
                raise response
            yield response

    async def read(self, requests: AsyncIterator[pb.WorkRequest], heard: Heard) -> None:
        """For the server: take in what the agent says, until it closes its side."""
        try:
            while True:
                await self.reading.wait()
                try:
                    request = await anext(requests)
                except StopAsyncIteration:
                    break
                except DecodeError:
                    self.garbled = True
                    break
                except (grpc.RpcError, grpc.aio.BaseError):  # it was broken, by whichever side
                    break
                self.said_drain = self.said_drain or request.drain
                heard(self, request)
                async with self._changed:
                    self._changed.notify_all()
        finally:
            self.closed = True
            async with self._changed:
                self._changed.notify_all()
            self.end()


class Socket(service.AgentServiceServicer):
    """AgentService on one Unix socket. What is heard after hello goes to `heard`; calls, progress and pieces of output
    that come unary are answered by `asked`, `reported` and `emitted`, which refuse a token that proves nothing."""

    def __init__(
        self, path: str, inline_limit: int, heard: Heard, asked: Asked, reported: Reported, emitted: Emitted
    ) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.changed = asyncio.Condition()
        self.refusal: str = ""
        """Name of the reason with which the next hello is refused."""
        self.namespace = "verify"
        self._inline_limit = inline_limit
        self._heard, self._asked, self._reported, self._emitted = heard, asked, reported, emitted
        self._server: grpc.aio.Server | None = None
        self._handlers: set[asyncio.Task[Any]] = set()  # of streams

    async def open(self) -> None:
        """Serve. Raises `RuntimeError` when the path cannot be used."""
        server = self._server = grpc.aio.server(options=_OPTIONS)
        service.add_AgentServiceServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{self.path}")
        await server.start()

    async def close(self) -> None:
        """As when the sidecar is killed: every stream breaks, and the socket is gone."""
        if self._server is not None:
            for line in self.lines:
                line.reading.set()
            await self._server.stop(None)
            self._server = None
            if self._handlers:  # the server does not wait for them, and prints a traceback of each that the loop ends
                await asyncio.wait(self._handlers, timeout=_UNWIND)
            with suppress(FileNotFoundError):
                os.unlink(self.path)

    async def until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Whether the condition holds within `limit` seconds; looked at whenever an agent says something."""
        try:
            async with asyncio.timeout(limit), self.changed:
                await self.changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    async def notify(self) -> None:
        """Something else has changed that a condition may look at."""
        async with self.changed:
            self.changed.notify_all()

    async def Work(self, requests: AsyncIterator[pb.WorkRequest], context: _Context) -> AsyncIterator[pb.WorkResponse]:
        """The life of the agent."""
        if (handler := asyncio.current_task()) is not None:
            self._handlers.add(handler)
            handler.add_done_callback(self._handlers.discard)
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            first = pb.WorkRequest()
        if self.refusal:
            reason, self.refusal = self.refusal, ""
            await abort(context, reason)
        line = Line(first, self.changed)
        reader: asyncio.Task[None] | None = None
        try:
            welcome = pb.AgentWelcome(
                agent=first.hello.description.name, namespace=self.namespace, inline_limit=self._inline_limit
            )
            yield pb.WorkResponse(welcome=welcome)
            self.lines.append(line)
            reader = asyncio.create_task(line.read(requests, self._heard))
            await self.notify()
            async for response in line.responses():
                yield response
        except ConnectionError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            line.closed = True
            if reader is not None:
                reader.cancel()
                await asyncio.wait([reader])

    async def Call(self, request: pb.CallRequest, context: _Context) -> pb.CallResponse:
        """A call that waits for its outcome."""
        response = self._asked(request)
        if response is None:
            await abort(context, "ATTEMPT_TOKEN_INVALID")
        return response

    async def ReportProgress(self, request: pb.ReportProgressRequest, context: _Context) -> pb.ReportProgressResponse:
        """How far an attempt is."""
        if not self._reported(request):
            await abort(context, "ATTEMPT_TOKEN_INVALID")
        await self.notify()
        return pb.ReportProgressResponse()

    async def ReportPartial(self, request: pb.ReportPartialRequest, context: _Context) -> pb.ReportPartialResponse:
        """A piece of output."""
        if not self._emitted(request):
            await abort(context, "ATTEMPT_TOKEN_INVALID")
        await self.notify()
        return pb.ReportPartialResponse()


def status_of(reason: str, metadata: dict[str, str] | None = None, *details: Any) -> status_pb2.Status:
    """The status that a server of ours answers for a reason of the registry, such as NOT_GRANTED."""
    values = error_pb2.ErrorReason.DESCRIPTOR.values_by_name
    spec = values[f"ERROR_REASON_{reason}"].GetOptions().Extensions[options_pb2.error]
    variables = {key: (metadata or {}).get(key, f"some {key}") for key in spec.metadata}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="antiphon.v1", metadata=variables)
    status = status_pb2.Status(code=spec.code, message=spec.message.format(**variables))
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: _Context, reason: str, metadata: dict[str, str] | None = None, *details: Any) -> NoReturn:
    """End a call with the status of a reason."""
    status = status_of(reason, metadata, *details)
    code = next(one for one in grpc.StatusCode if one.value[0] == status.code)
    await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise asyncio.CancelledError  # not reached: abort raises
