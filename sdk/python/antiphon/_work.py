"""The Work stream of an agent to its sidecar, dialled again for as long as it breaks.

Invariants: an outcome that could not be sent waits
for the next stream; one that may have been lost with a stream is repeated when the attempt is assigned again, and not
worked out again; a refusal that another try cannot change ends the worker with its error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic

import grpc

from antiphon.v1.agent_service_pb2 import AgentHello, Result, WorkRequest, WorkResponse
from antiphon.v1.agent_service_pb2_grpc import AgentServiceStub
from antiphon.v1.registry_pb2 import AgentDescription

from ._attempts import Attempts, Observer
from ._errors import AntiphonError, Remedy, Unavailable, from_rpc_error
from ._handler import Handler
from ._outbox import Outbox
from ._reasons import Internal
from ._stream import ended, send, talk

_PROTOCOL_VERSION = 1
_HELLO = 10.0
_BACKOFF_FIRST, _BACKOFF_LAST = 0.05, 2.0
_OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.default_authority", "localhost"),  # else it is the escaped path, which some servers refuse
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials at once, whatever the backoff of the one before
)
_log = logging.getLogger("antiphon.agent")


class Worker:
    """Works for the sidecar at one socket. `run` is the whole life; `drain` lets it end. Make it on the event loop."""

    def __init__(
        self,
        path: str,
        description: AgentDescription,
        handlers: Mapping[tuple[str, str], Handler],
        observer: Observer | None = None,
    ) -> None:
        self._path = path
        self._description = description
        self._outbox = Outbox()
        self._attempts = Attempts(handlers, self._outbox, description.concurrency, observer)
        self._attached = False
        self._recalled: Mapping[str, Result] = {}
        self._before: frozenset[str] = frozenset()
        self._draining = asyncio.Event()

    async def run(self, grace: timedelta) -> None:
        """Work until drained; attempts may go on for `grace` then. Raises the `AntiphonError` of a refusal."""
        life = asyncio.create_task(self._stay_attached())
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait((life, draining), return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                await asyncio.wait((life,), timeout=grace.total_seconds())
            if life.done():
                await life
            else:
                _log.warning("%d attempts did not end within %s and are given up", len(self._attempts), grace)
        finally:
            await ended(life, draining)
            await self._attempts.stop()

    def drain(self) -> None:
        """Finish what was assigned, take no more; then `run` returns."""
        self._draining.set()
        self._outbox.drain()

    async def _stay_attached(self) -> None:
        failures, told = 0, ""
        while not (self._draining.is_set() and not self._attempts and self._outbox.empty):
            began = monotonic()
            try:
                await self._attach()
                trouble = "the sidecar ended the stream"
            except grpc.aio.AioRpcError as broken:
                error = from_rpc_error(broken)
                if _is_final(error):
                    raise error from None
                trouble = error.message
                if isinstance(error, Unavailable):
                    trouble += "; is its sidecar running, and may this process open the socket?"
            except TimeoutError:
                trouble = "the sidecar does not answer"
            if self._draining.is_set():
                # A sidecar gives up what an agent was working on when its stream ends, and would take this process for
                # the agent again in place of the one that has been started meanwhile.
                break
            failures = 0 if monotonic() - began > _BACKOFF_LAST else failures + 1
            if failures <= 1 or trouble != told:  # once, and not for every try
                told = trouble
                _log.warning("no stream at %s, dialling until there is one: %s", self._path, trouble)
            await asyncio.sleep(min(_BACKOFF_LAST, _BACKOFF_FIRST * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1))

    async def _attach(self) -> None:
        """One stream, from hello to its end. Raises `AioRpcError`, or `TimeoutError` when the other side is stuck."""
        if (
            self._attached
        ):  # else nothing was said since the stream before, and what that one may have lost still may be
            self._recalled, self._attached = self._outbox.recall(), False
        self._before = self._outbox.waiting() | self._attempts.running()
        async with grpc.aio.insecure_channel(f"unix:{self._path}", _OPTIONS) as channel:
            stream = AgentServiceStub(channel).Work()  # type: ignore[call-arg]  # its types know no write()
            async with asyncio.timeout(_HELLO):
                hello = AgentHello(description=self._description, protocol_version=_PROTOCOL_VERSION)
                with contextlib.suppress(BrokenPipeError):  # refused already; reading tells why
                    await send(stream, WorkRequest(hello=hello))
                first = await stream.read()
            if not isinstance(first, WorkResponse):
                return
            if first.welcome.inline_limit:
                self._attempts.inline_limit = first.welcome.inline_limit
            _log.info("attached as %s in namespace %s", first.welcome.agent, first.welcome.namespace)
            self._attached = True
            self._outbox.reopen()
            self._attempts.repeat_calls()
            if self._draining.is_set():
                self._outbox.drain()
            await talk(self._read(stream, first), self._write(stream))

    async def _read(self, stream: grpc.aio.StreamStreamCall[WorkRequest, WorkResponse], first: WorkResponse) -> None:
        closing: asyncio.Task[None] | None = None
        try:
            message: object = first
            while isinstance(message, WorkResponse):
                self._receive(message)
                if message.drain and closing is None:
                    closing = asyncio.create_task(self._close_when_idle())
                message = await stream.read()
        finally:
            if closing is not None:
                await ended(closing)

    def _receive(self, message: WorkResponse) -> None:
        now = monotonic()
        for assignment in message.assignments:
            known = self._recalled.get(assignment.attempt_id) if self._recalled else None
            if known is not None:
                self._outbox.repeat(known)
            elif assignment.attempt_id not in self._before or assignment.attempt_id in self._attempts:
                # Else it was begun before this stream and has ended since: its outcome is on its way.
                self._attempts.assign(assignment, now)
        for cancel in message.cancels:
            self._attempts.cancel(cancel.attempt_id)
        for made in message.call_partials:
            self._attempts.made(made)
        for response in message.call_results:
            self._attempts.answer(response)
        for told in message.context_responses:
            self._attempts.told(told)
        for loss in message.claim_losses:
            self._attempts.claim_lost(loss)

    async def _write(self, stream: grpc.aio.StreamStreamCall[WorkRequest, WorkResponse]) -> None:
        while (request := await self._outbox.take()) is not None:
            try:
                await send(stream, request)
            except BaseException:
                self._outbox.put_back(request)
                raise
            self._outbox.sent(request)
        await stream.done_writing()

    async def _close_when_idle(self) -> None:
        self._attempts.flush()
        await self._attempts.idle()
        self._outbox.close()


def _is_final(error: AntiphonError) -> bool:
    """Whether dialling again would be answered the same way. A bug of the sidecar may pass with its next start."""
    if isinstance(error, Internal):
        return False
    if not error.reason:
        return error.code is grpc.StatusCode.UNIMPLEMENTED  # something else listens on that socket
    return error.remedy not in (None, Remedy.RETRY)
