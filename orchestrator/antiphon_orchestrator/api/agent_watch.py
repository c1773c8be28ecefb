"""WatchAgents: the agents of a namespace as all replicas together see them, for one who watches.

Every other replica is watched in turn, in the watcher's name, and answers with what it sees itself; its part is kept by
name, so that one that changes is added up anew. A replica that is not there any more takes its part with it; one whose
stream breaks is asked again, and its part stands until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import grpc
from antiphon.v1 import registry_pb2
from antiphon.v1 import registry_service_pb2 as api

from ..cluster.assignment import Member
from ..cluster.membership import Membership
from ..cluster.peers import Peers
from ..cluster.routing import PAUSE, unasked
from ..registry.registry import ACTIVE, GONE, Registry
from .call import Caller

PATH = "/antiphon.v1.RegistryService/WatchAgents"

FIRST = 2.0
"""Seconds that the first list waits for the parts of other replicas; what comes later is a change."""

REST = 0.25
"""Seconds between two messages: windows move many times a second while there is much to do, and a list is a pass over
all instances."""

LOOK = 5.0
"""Seconds between two looks at which replicas there are, although nothing was heard of any."""

MESSAGE_BYTES = 1 << 20
"""Size at which a message is full."""


class AgentWatch:
    """One watcher's. Another replica, which watches for a watcher of its own, is told what is seen here alone."""

    def __init__(self, registry: Registry, membership: Membership, peers: Peers, who: Caller) -> None:
        self._registry = registry
        self._membership = membership
        self._peers = peers
        self._who = who
        self._namespace = who.namespace
        self._parts: dict[str, dict[str, registry_pb2.Agent]] = {}
        self._awaited = set() if who.forwarded else {member.replica_id for member in membership.others}
        self._news: set[str] = set()
        self._wake = asyncio.Event()
        self._said: dict[str, bytes] = {}

    async def messages(self) -> AsyncGenerator[api.WatchAgentsResponse, None]:
        """All agents, then those that change, without end."""
        listening = asyncio.create_task(self._run())
        listening.add_done_callback(lambda _: self._wake.set())
        try:
            try:
                async with asyncio.timeout(FIRST):
                    while self._awaited:
                        await self._woken(listening)
            except TimeoutError:
                pass  # what they say is added when they say it
            self._news.update(self._registry.names(self._namespace))
            first = True
            while True:
                fresh, self._news = self._news, set()
                for message in self._messages(fresh, first):
                    yield message
                first = False
                await asyncio.sleep(REST)
                while not self._news:
                    await self._woken(listening)
        finally:
            listening.cancel()

    async def _woken(self, listening: asyncio.Task[None]) -> None:
        if listening.done():
            listening.result()
        self._wake.clear()
        await self._wake.wait()

    def _messages(self, names: set[str], empty: bool) -> list[api.WatchAgentsResponse]:
        """Those of these agents that are not as they were last told of, in messages of bounded size."""
        messages, size = [api.WatchAgentsResponse()], 0
        agents = list(self._registry.agents(self._namespace, names))
        for name in names - {agent.name for agent in agents}:
            self._said.pop(name, None)  # forgotten, or not known here yet
        for agent in sorted(agents, key=lambda agent: agent.name):
            name = agent.name
            for part in self._parts.values():
                if name in part:
                    add_instances(agent, part[name])
            raw = agent.SerializeToString(deterministic=True)
            if self._said.get(name) == raw:
                continue
            self._said[name] = raw
            if size > MESSAGE_BYTES:
                messages.append(api.WatchAgentsResponse())
                size = 0
            messages[-1].agents.append(agent)
            size += len(raw)
        return messages if empty or messages[0].agents else []

    async def _run(self) -> None:
        """Listens until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            if not self._who.forwarded:
                group.create_task(self._follow_all(group.create_task))

    async def _listen(self) -> None:
        changes = self._registry.listen()
        try:
            while True:
                namespace, name = await changes.get()
                if not namespace:  # there were too many to be told one by one
                    self._tell(*self._registry.names(self._namespace))
                elif namespace == self._namespace:
                    self._tell(name)
        finally:
            self._registry.unlisten(changes)

    async def _follow_all(self, begin: Callable[..., asyncio.Task[None]]) -> None:
        """A line to each other replica for as long as that is there."""
        lines: dict[str, asyncio.Task[None]] = {}
        while True:
            seen = self._membership.changes
            there = {member.replica_id: member for member in self._membership.others}
            for gone in lines.keys() - there:
                lines.pop(gone).cancel()
                self._heard(gone)
                self._tell(*self._parts.pop(gone, ()))
            for replica_id in there.keys() - lines:
                lines[replica_id] = begin(self._follow(there[replica_id]))
            await self._membership.change(seen, LOOK)

    async def _follow(self, member: Member) -> None:
        part = self._parts.setdefault(member.replica_id, {})
        while True:
            call = self._peers.stream(member.address, PATH, b"", self._who)
            try:
                async for raw in call:
                    for agent in api.WatchAgentsResponse.FromString(raw).agents:
                        part[agent.name] = agent
                        self._tell(agent.name)
                    self._heard(member.replica_id)
            except grpc.aio.AioRpcError:
                self._heard(member.replica_id)  # nothing, for now
            except asyncio.CancelledError:
                if unasked():
                    raise  # else it was the call alone, with the channel of a certificate that was renewed
            finally:
                call.cancel()
            await asyncio.sleep(PAUSE)

    def _heard(self, replica_id: str) -> None:
        self._awaited.discard(replica_id)
        self._wake.set()

    def _tell(self, *names: str) -> None:
        self._news.update(names)
        self._wake.set()


def add_instances(agent: registry_pb2.Agent, elsewhere: registry_pb2.Agent) -> None:
    """Adds what another replica knows of an agent's instances."""
    known = {instance.instance_id: instance for instance in agent.instances}
    for other in elsewhere.instances:
        mine = known.get(other.instance_id)
        if mine is None:
            agent.instances.add().CopyFrom(other)
            continue
        mine.slots += other.slots
        mine.in_use += other.in_use
        mine.completed += other.completed
        mine.failed += other.failed
        if _severity(other) > _severity(mine):
            mine.breaker.CopyFrom(other.breaker)
    if elsewhere.instances and agent.state == GONE:
        agent.state = ACTIVE


_SEVERITY = {
    registry_pb2.BREAKER_STATE_CLOSED: 1,
    registry_pb2.BREAKER_STATE_HALF_OPEN: 2,
    registry_pb2.BREAKER_STATE_OPEN: 3,
}


def _severity(instance: registry_pb2.Instance) -> int:
    """How little a breaker lets through."""
    return _SEVERITY.get(instance.breaker.state, 0)
