"""A whole mesh in the process of a test: orchestrator, sidecars and agents, on its event loop."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from antiphon._agent import Agent
from antiphon._client import Client
from antiphon._errors import SetupError
from antiphon.command import INSTALL_SERVER

from ._clock import Clock
from ._instance import Instance

if TYPE_CHECKING:
    from ._server import Server

_LOOK = 0.01


class Mesh:
    """Use it with `async with`: nothing that it starts outlives it, and every file is removed.

        async with Mesh() as mesh:
            mesh.add(agent)
            run = await mesh.client.submit(graph, {"name": "Ada"}, wait=True)
            assert output_of(run) == "Hello, Ada!"

    Nothing in it is made up: the orchestrator commits to its store and decides by Cedar's policies, everybody has a
    certificate and speaks mutual TLS on loopback, agents get their work on a socket. It shares the test's event loop,
    so a handler that blocks the loop blocks the mesh.
    """

    def __init__(self, *, policies: Path | None = None, namespace: str = "default") -> None:
        """`policies`: a folder of Cedar policies to try, instead of the development profile."""
        self._policies = policies
        self._namespace = namespace
        self._clock = Clock()
        self._server: Server | None = None
        self._life: asyncio.Task[None] | None = None
        self._clients: list[Client] = []
        self.instances: list[Instance] = []
        """The agents, in the order they were added."""
        self.client: Client
        """A client of the mesh's namespace, as users have."""
        self.operator: Client
        """One that may look after agents and policies."""

    async def __aenter__(self) -> Self:
        """Raises `SetupError` where `antiphon-server` is not installed."""
        if importlib.util.find_spec("antiphon_orchestrator") is None:
            raise SetupError(f"antiphon.testing starts a real mesh, which needs the server; {INSTALL_SERVER}")
        from ._server import Server, serve

        self._server = Server(self._clock, self._namespace, self._policies)
        try:
            self._life = await serve(self._server)
            self.client = await self._connect("default", "test")
            self.operator = await self._connect("operator", "operator", operator=True)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises what has ended a part of the mesh, unless the test has failed itself."""
        try:
            await self._close()
        except Exception:
            if kind is None:  # else the test has told already, and better
                raise

    def add(self, agent: Agent, *, capabilities: Sequence[str] = ("*",)) -> Instance:
        """Start an agent behind a sidecar of its own, in the background; adding it again makes a second instance.

        `capabilities` are what the sidecar's certificate lets it offer, such as `text.*`.
        """
        instance = Instance(self._serving, self.operator, self._clock, agent, capabilities)
        self.instances.append(instance)
        instance.start()
        return instance

    async def connect(self, name: str, *, operator: bool = False) -> Client:
        """Another client, with an identity and a profile of that name; it ends with the mesh."""
        return await self._connect(name, name, operator=operator)

    @property
    def home(self) -> Path:
        """With `ANTIPHON_HOME` set to it, code that connects by its profile, and the command, find this mesh.

        It holds the profiles `default`, of the client, and `operator`.
        """
        return self._serving.home

    # Time

    def turn(self, by: timedelta) -> None:
        """Let time leap: what is due by then, is due now.

        What goes by this clock: the timers of runs (pauses between attempts, deadlines, waiting for an agent), timeouts
        of attempts, delays that a test has planted. What does not: certificates and leases, lifetimes of entries and
        claims in shared context, deadlines of calls, and whatever a handler itself waits for.
        """
        self._serving.turn(by)

    @asynccontextmanager
    async def hurry(self) -> AsyncIterator[None]:
        """While in the block, time leaps to what is due next whenever nobody works: no pause is waited for.

            agent.fail("text.greet@1", attempts=3)
            async with mesh.hurry():
                run = await mesh.client.submit(graph, wait=True)

        It does so too for a task that no agent takes, which then fails at once. While a handler works, or waits for
        another's, time goes as it does.
        """
        hurrying = asyncio.create_task(self._hurry())
        try:
            yield
        finally:
            hurrying.cancel()
            await asyncio.wait((hurrying,))
            if not hurrying.cancelled():
                hurrying.result()

    async def _hurry(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            if any(one.busy or one.attaching for one in self.instances):
                continue
            if (due := self._serving.idle_until()) is not None and (left := due - self._clock.now()) > 0:
                self.turn(timedelta(microseconds=left))

    async def _connect(self, profile: str, name: str, *, operator: bool = False) -> Client:
        credentials = self._serving.profile(profile, name, operator=operator)
        client = Client.connect(address=self._serving.address, credentials=credentials)
        self._clients.append(await client.__aenter__())
        return client

    @property
    def _serving(self) -> Server:
        if self._server is None:
            raise SetupError("the mesh does not run; use it inside: async with Mesh() as mesh")
        if self._life is not None and self._life.done():
            self._life.result()
        return self._server

    async def _close(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        try:
            ends = [
                *(one.close() for one in self.instances),
                *(one.__aexit__(None, None, None) for one in self._clients),
            ]
            outcomes = await asyncio.gather(*ends, return_exceptions=True)
            if self._life is not None:
                self._life.cancel()
                outcomes += await asyncio.gather(self._life, return_exceptions=True)
        finally:
            server.remove()
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
