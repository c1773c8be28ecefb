"""An agent of a mesh of tests: a real one behind a real sidecar, of which a test sees and does more than a user can."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from antiphon._agent import Agent
from antiphon._client import Client
from antiphon._failures import TransientFailure
from antiphon._reasons import AgentNotFound
from antiphon._work import Worker

from ._clock import Clock
from ._journal import Attempted, Journal
from ._waiting import eventually

if TYPE_CHECKING:
    from ._server import Server

_GRACE = timedelta(seconds=30)


class Instance:
    """One live agent beside its sidecar; made by `Mesh.add`."""

    def __init__(
        self, server: Server, operator: Client, clock: Clock, agent: Agent, capabilities: Sequence[str]
    ) -> None:
        self.agent = agent
        self._server = server
        self._operator = operator
        self._journal = Journal(clock)
        self._name, self._config, self._socket = server.sidecar(agent.name, capabilities)
        self._sidecar: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._attaching: asyncio.Task[None] | None = None

    # What it did

    def attempts(self, capability: str = "") -> list[Attempted]:
        """All that have come to this agent, in their order; of one capability (`text.summarize@1`) or of all."""
        return [one for one in self._journal.attempts if capability in ("", one.capability)]

    async def begun(self, count: int = 1, capability: str = "") -> list[Attempted]:
        """Attempts, once so many have come. Fails after a minute."""
        return list(await eventually(lambda: _enough(self.attempts(capability), count)))

    async def ended(self, count: int = 1, capability: str = "") -> list[Attempted]:
        """Attempts that have an outcome, once there are so many. Fails after a minute."""

        def look() -> list[Attempted]:
            return _enough([one for one in self.attempts(capability) if one.state != "RUNNING"], count)

        return list(await eventually(look))

    # What is to go wrong

    def fail(self, capability: str, *, attempts: int = 1, failure: BaseException | None = None) -> None:
        """From now on, fail the first so many attempts of each task; its handler is not called for them.

        `failure` is anything a handler may raise; without it they are TRANSIENT. Raises `ValueError` for a capability
        that the agent does not offer.
        """
        self._check(capability)
        self._journal.plant_failure(capability, attempts, failure or TransientFailure("planted by the test", "planted"))

    def delay(self, capability: str, by: timedelta) -> None:
        """From now on, keep every attempt waiting before its handler is called; `Mesh.turn` shortens that, too."""
        self._check(capability)
        self._journal.plant_delay(capability, by)

    def hold(self, capability: str) -> None:
        """From now on, keep every attempt waiting before its handler is called, until `release`."""
        self._check(capability)
        self._journal.close_gate(capability)

    def release(self, capability: str) -> None:
        """Let attempts go on that are held, and hold no more."""
        self._journal.open_gate(capability)

    async def crash(self) -> None:
        """The agent's process dies in the middle of what it does; its sidecar notices, and says so."""
        self._attaching, attaching = None, self._attaching
        self._worker, worker = None, self._worker
        self._journal.lost()  # before its handlers are stopped: what they make of that nobody hears
        await _end(attaching, worker)

    async def close(self) -> None:
        """End it for good. Raises what had ended it before: a mistake in the agent's definition, or a bug."""
        try:
            await self.crash()
        finally:
            await self.lose()

    async def lose(self) -> None:
        """The sidecar and its agent are gone without a word; half a second later their attempts are lost."""
        # The sidecar first, so that nothing can say that the agent is gone.
        self._sidecar, sidecar = None, self._sidecar
        self._journal.lost()
        try:
            await _end(sidecar)
        finally:
            await self.crash()

    def start(self) -> None:
        """Start what does not run: `Mesh.add` does, and a test may after `crash` or `lose`."""
        if self._sidecar is None:
            self._sidecar = asyncio.create_task(self._server.run_sidecar(self._config))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        if self._attaching is None:
            self._attaching = asyncio.create_task(self._attach())

    async def attached(self) -> None:
        """Return once it may be given work. Raises what keeps it from being, and fails after a minute.

        There is no need to wait before submitting: tasks wait for agents.
        """
        if self._attaching is not None:
            await asyncio.shield(self._attaching)

    @property
    def attaching(self) -> bool:
        """Whether it runs and may not be given work yet."""
        return self._attaching is not None and not self._attaching.done()

    @property
    def busy(self) -> bool:
        """Whether it works on anything."""
        return self._journal.busy

    async def _attach(self) -> None:
        await eventually(self._look)

    async def _look(self) -> bool:
        for task in (self._sidecar, self._worker):
            if task is not None and task.done():
                task.result()
        try:
            found = await self._operator.get_agent(self.agent.name)
        except AgentNotFound:
            return False
        return any(one.slots for one in found.instances if one.sidecar.endswith(f"/{self._name}"))

    async def _work(self) -> None:
        # Dialling before the socket is there would work as well, and log a warning.
        await eventually(self._socket.exists)
        worker = Worker(str(self._socket), self.agent.describe(), self.agent.handlers, self._journal)
        await worker.run(_GRACE)

    def _check(self, capability: str) -> None:
        offered = [f"{name}@{version}" for name, version in self.agent.handlers]
        if capability not in offered:
            raise ValueError(f"agent {self.agent.name} does not offer {capability!r}; it offers {', '.join(offered)}")


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks and wait for their ends. Raises what had ended the first that was not to end."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    for outcome in await asyncio.gather(*there, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


def _enough(attempts: list[Attempted], count: int) -> list[Attempted]:
    return attempts if len(attempts) >= count else []
