"""Which orchestrator replicas there are, and one upstream for each.

It begins with the addresses it is told, and follows the topology that replicas announce. An address that has left the
topology is given up once it is not attached any more; those it was told at the start are kept, for they may come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from antiphon_certs import Credential

from .node import Node
from .upstream import Directory, Upstream


class Replicas:
    """All upstreams of the sidecar."""

    def __init__(self, node: Node, addresses: Sequence[str], credential: Credential) -> None:
        self.credential = credential
        self._node = node
        self._seeds = tuple(addresses)
        self._news = asyncio.Event()
        self._directory = Directory(self._found, self._news.set)
        self._upstreams: dict[str, tuple[Upstream, asyncio.Task[None]]] = {}
        self._known: list[tuple[str, str]] = []

    @property
    def attached(self) -> int:
        """Replicas that have welcomed the sidecar."""
        return sum(upstream.attached for upstream, _ in self._upstreams.values())

    def addresses(self) -> list[str]:
        """Every address worth dialling, the announced ones first."""
        return list(dict.fromkeys([*(address for _, address in self._known), *self._seeds]))

    def renewed(self, credential: Credential) -> None:
        """There is a new certificate: every stream is made again before its present one is dropped."""
        self.credential = credential
        for upstream, _ in self._upstreams.values():
            upstream.redial()

    async def run(self) -> None:
        """Stay attached to every replica. Raises `Revoked`."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._follow(group)
                await self._news.wait()
                self._news.clear()

    def _found(self, replicas: list[tuple[str, str]]) -> None:
        if replicas != self._known:
            self._known = replicas
            self._news.set()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        there = {replica_id for replica_id, _ in self._known}
        for upstream, _ in self._upstreams.values():
            upstream.announced(not there or upstream.replica_id in there)
        wanted: dict[str, str] = {address: "" for address in self._seeds}
        for replica_id, address in self._known:
            served = self._directory.serving.get(replica_id)
            if address in wanted or served is None or served.address == address:
                wanted[address] = replica_id
        for address, replica_id in wanted.items():
            if address not in self._upstreams:
                upstream = Upstream(self._node, self._directory, address, lambda: self.credential)
                upstream.replica_id = replica_id
                self._upstreams[address] = (upstream, group.create_task(upstream.run()))
        for address, (upstream, task) in list(self._upstreams.items()):
            if address not in wanted and not upstream.attached:
                task.cancel()
                del self._upstreams[address]
