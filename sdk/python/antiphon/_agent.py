"""An agent: a program whose functions handle tasks.

    agent = Agent("license-classifier")

    @agent.capability("license.classify@1")
    async def classify(package: Package) -> Verdict:
        ...

    agent.run()

A handler takes at most one input, and a `TaskContext` if a parameter is annotated so. Async functions run on the event
loop and must not block it; plain functions run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, NoReturn, TypeVar

from antiphon.v1.registry_pb2 import AgentDescription

from ._errors import AntiphonError, SetupError
from ._handler import THREADS, Batching, Effect, Handler, Schema, handler_of
from ._version import VERSION

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SOCKET = "ANTIPHON_SOCKET"
_PATH_LIMIT = 107
_ANNOUNCED = 2 << 20
"""Bytes of a description that sidecars take."""
_PREFETCH_FROM = 8
_IDLE = 1.0
"""Seconds in which idle threads have ended, on a machine that is busy, too."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Agent:
    """A named set of capabilities. Making one does no I/O."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 32,
        prefetch: int | None = None,
        version: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`concurrency` bounds the attempts at work at once, `prefetch` those its sidecar may hold ready beyond that.

        Without `prefetch` it is as large as `concurrency`, and 0 below 8: a slow, scarce agent should not hoard what
        another instance could begin. `version` is of the agent's own code, for people; `labels` are what constraints of
        a graph match. Raises `ValueError`.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"agent name {name!r} must be 1-63 lowercase letters, digits and inner hyphens")
        if not 1 <= concurrency <= 10_000:
            raise ValueError(f"concurrency {concurrency} must be 1 to 10,000")
        self.name = name
        self.concurrency = concurrency
        self.prefetch = prefetch if prefetch is not None else concurrency if concurrency >= _PREFETCH_FROM else 0
        self.version = version
        self.labels = dict(labels or {})
        self._handlers: dict[tuple[str, str], Handler] = {}

    def capability(
        self,
        name: str,
        *,
        effect: Effect | None = None,
        idempotent: bool = False,
        clearance: Sequence[str] = (),
        cost: float = 0.0,
        expected_latency: timedelta | None = None,
        description: str | None = None,
        input_schema: Schema | None = None,
        output_schema: Schema | None = None,
    ) -> Callable[[Function], Function]:
        """Offer the decorated function as a capability, such as "text.summarize@1"; the function stays as it is.

        `effect` is what it may do to the world; undeclared is judged as egress, the strictest. `idempotent`: repeating
        with the same idempotency key has one effect. `clearance`: label keys it may see. `cost`: of one call, in the
        namespace's own unit. The description is the docstring and the schemas come from the annotations unless given.
        Raises `TypeError` or `ValueError` for a function or a name that cannot be offered.
        """

        def decorate(function: Function) -> Function:
            handler = handler_of(
                function,
                name,
                description=description,
                effect=effect,
                idempotent=idempotent,
                clearance=clearance,
                cost=cost,
                expected_latency=expected_latency,
                input_schema=input_schema,
                output_schema=output_schema,
            )
            self._offer(name, handler)
            return function

        return decorate

    def batch(
        self,
        name: str,
        *,
        max_size: int,
        max_wait: timedelta = timedelta(milliseconds=20),
        effect: Effect | None = None,
        idempotent: bool = False,
        clearance: Sequence[str] = (),
        cost: float = 0.0,
        expected_latency: timedelta | None = None,
        description: str | None = None,
        input_schema: Schema | None = None,
        output_schema: Schema | None = None,
    ) -> Callable[[Function], Function]:
        """Offer a function that handles several tasks at once, as models and databases like it.

        @agent.batch("text.embed@1", max_size=16)
        async def embed(texts: list[str], tasks: list[TaskContext]) -> list[Vector | TaskFailure]: ...

        It takes a list of inputs, and the contexts if a parameter is annotated so, and answers a list: for each task,
        in their order, a value or a failure, which fails that task alone. What it raises fails them all. It is called
        once `max_size` tasks are there, or after `max_wait`, or sooner for a task that has little time left; with one
        task, if there are no others. A task that is cancelled, as at its deadline, is CANCELLED at once; its context
        says so, what is answered for it is dropped, and when all are cancelled, so is the function. To whoever asks
        for it, it is a capability like any other; the rest is as in `capability`. `current_task()` is None in it.
        """
        batching = Batching.checked(max_size, max_wait, self.concurrency)

        def decorate(function: Function) -> Function:
            handler = handler_of(
                function,
                name,
                description=description,
                effect=effect,
                idempotent=idempotent,
                clearance=clearance,
                cost=cost,
                expected_latency=expected_latency,
                input_schema=input_schema,
                output_schema=output_schema,
                batching=batching,
            )
            self._offer(name, handler)
            return function

        return decorate

    def _offer(self, name: str, handler: Handler) -> None:
        key = (handler.capability.name, handler.capability.version)
        if key in self._handlers:
            raise ValueError(f"{name} is offered twice by {self.name}")
        self._handlers[key] = handler

    @property
    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """What handles each capability, by name and version."""
        return self._handlers

    def describe(self) -> AgentDescription:
        """What the agent announces."""
        return AgentDescription(
            name=self.name,
            version=self.version,
            capabilities=[handler.capability for handler in self._handlers.values()],
            concurrency=self.concurrency,
            prefetch=self.prefetch,
            labels=self.labels,
            runtime=f"python/{VERSION}",
        )

    async def serve(
        self,
        *,
        socket: str | None = None,
        grace: timedelta = timedelta(seconds=30),
        drain: asyncio.Event | None = None,
    ) -> None:
        """Work until `drain` is set, for embedding in a program of one's own; cancelling stops at once.

        `socket` is the path of the sidecar's socket, `ANTIPHON_SOCKET` by default. A sidecar that is away is dialled
        for ever. Raises `SetupError`, or the `AntiphonError` of a refusal.
        """
        if not self._handlers:
            raise SetupError(f"agent {self.name} offers nothing; decorate a function with @agent.capability(…)")
        from ._work import Worker  # grpc's streams and the event loop only once they are needed

        description = self.describe()
        # From 4 MiB on a sidecar refuses the message without a word of ours, as it does what may pass.
        if (size := description.ByteSize()) > _ANNOUNCED:
            raise SetupError(
                f"agent {self.name} cannot be announced: its {len(self._handlers)} capabilities have {size} bytes with "
                f"their schemas and descriptions, larger than {_ANNOUNCED} bytes; shorten them, or offer some of them "
                "in another agent"
            )
        worker = Worker(_socket_path(socket), description, self._handlers)
        waiting = asyncio.create_task(_when(drain, worker.drain)) if drain is not None else None
        try:
            await worker.run(grace)
        finally:
            if waiting is not None:
                waiting.cancel()

    def run(self, *, socket: str | None = None, grace: timedelta = timedelta(seconds=30)) -> None:
        """The whole life of an agent process. SIGTERM or SIGINT drains, a second one stops at once.

        Returns when drained. Exits with one line on standard error: status 2 when it is not set up, 1 when the sidecar
        refuses it, 130 when stopped at once. The process ends without returning, with status 0 when drained, where a
        plain function is still at work: nobody can stop it.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        status = 0
        try:
            asyncio.run(self._run_with_signals(socket, grace))
        except AntiphonError as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            status = 2 if isinstance(error, SetupError) else 1
        except (asyncio.CancelledError, KeyboardInterrupt):
            status = 130
        if _left_at_work():
            _exit_now(status)
        if status:
            raise SystemExit(status)

    async def _run_with_signals(self, socket: str | None, grace: timedelta) -> None:
        drain = asyncio.Event()
        loop = asyncio.get_running_loop()
        life = asyncio.create_task(self.serve(socket=socket, grace=grace, drain=drain))

        def stop() -> None:
            if drain.is_set():
                life.cancel()
            drain.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        await life


def _left_at_work() -> bool:
    """Whether plain functions are at work whose attempts were given up; idle threads end as soon as they are told."""
    end = monotonic() + _IDLE
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join(max(0.0, end - monotonic()))
            if thread.is_alive():
                return True
    return False


def _exit_now(status: int) -> NoReturn:
    """End without waiting for threads, as the interpreter would."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


async def _when(event: asyncio.Event, action: Callable[[], None]) -> None:
    await event.wait()
    action()


def _socket_path(given: str | None) -> str:
    path = given or os.environ.get(_SOCKET, "")
    if not path:
        raise SetupError(
            f"{_SOCKET} is not set; start the agent through its sidecar: antiphon sidecar run -- python my_agent.py"
        )
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise SetupError(f"the socket path {path} is longer than {_PATH_LIMIT} bytes; choose a shorter folder")
    return path
