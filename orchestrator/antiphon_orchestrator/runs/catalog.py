"""Graphs ready to run: registered versions from the store and inline ones, compiled once and kept.

Registered versions never change, so a compiled one is good for ever; what "the newest" is may change, and a watch on
the store says when.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import graph_pb2

from ..admission import Compiled, GraphInvalid, Inheriting, Values, Version, compile_graph
from ..engine.events import RunSubmitted
from ..engine.plan import Plan
from ..engine.states import ChildKind
from ..shards.host import NoPlan
from ..store import keys
from ..store.port import Compacted, Store
from .compiling import compile_aside

KEPT = 512
"""Compiled graphs in memory, of each kind."""

GRAPHS = b"graph/"


class GraphNotFound(Exception):
    """No such graph or version."""


class Catalog:
    def __init__(self, store: Store, values: Values) -> None:
        self._store = store
        self._values = values
        self._registered: OrderedDict[tuple[str, str, str], tuple[Plan, graph_pb2.Graph]] = OrderedDict()
        self._inline: OrderedDict[bytes, Plan] = OrderedDict()
        self._newest: dict[tuple[str, str], str] = {}
        self._changes = 0

    async def run(self) -> None:
        """Forgets what "the newest" was when versions are registered."""
        while True:
            try:
                async for batch in self._store.watch(GRAPHS):
                    if batch.events:
                        self.forget()
            except Compacted:
                self.forget()

    def forget(self) -> None:
        """What "the newest" was is asked anew."""
        self._newest.clear()
        self._changes += 1

    async def registered(self, namespace: str, name: str, version: str) -> tuple[Plan, graph_pb2.Graph]:
        """A registered graph; an empty version means the highest. Raises GraphNotFound."""
        if not version:
            version = self._newest.get((namespace, name)) or await self._find_newest(namespace, name)
        key = (namespace, name, version)
        found = self._registered.get(key)
        if found is None:
            kvs = (await self._store.range(keys.graph(namespace, name, version))).kvs
            if not kvs:
                raise GraphNotFound(f"{name}@{version}")
            graph = records.GraphRecord.FromString(kvs[0].value).graph
            found = self._registered[key] = ((await compile_aside(graph, values=self._values)).plan, graph)
            if len(self._registered) > KEPT:
                self._registered.popitem(last=False)
        return found

    async def _find_newest(self, namespace: str, name: str) -> str:
        changes = self._changes
        prefix = keys.graph_versions_prefix(namespace, name)
        found = await self._store.range(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
        versions = [keys.parts(kv.key)[-1] for kv in found.kvs]
        if not versions:
            raise GraphNotFound(name)
        newest = max(versions, key=Version.parse)
        if changes == self._changes:  # else a version may have come while we looked
            self._newest[namespace, name] = newest
        return newest

    async def inline(self, graph: graph_pb2.Graph) -> Plan:
        """The plan of a graph that was submitted as such. Raises admission.GraphInvalid."""
        key = _digest(graph)
        return self._inline.get(key) or self._keep(key, await compile_aside(graph, values=self._values))

    def small(self, graph: graph_pb2.Graph) -> Plan:
        """The same of a graph that takes no time to compile, at once."""
        key = _digest(graph)
        return self._inline.get(key) or self._keep(key, compile_graph(graph, values=self._values))

    def _keep(self, key: bytes, compiled: Compiled) -> Plan:
        # Another call for the same graph may have been quicker, and its runs share what they refer to.
        plan = self._inline.setdefault(key, compiled.plan)
        if len(self._inline) > KEPT:
            self._inline.popitem(last=False)
        return plan

    async def answered(self, graph: graph_pb2.Graph) -> Plan:
        """The plan of a graph that an agent answered with: it may have put all it knows into it, so whatever is made
        there carries the labels of what the agent was given, which are those of the run's input. Raises GraphInvalid.
        """
        plan = await self.inline(graph)
        return replace(plan, evaluator=Inheriting(plan.evaluator, self._values))

    async def plan_of(self, submitted: RunSubmitted) -> Plan:
        """The plan of a run that was admitted before. Raises NoPlan."""
        try:
            if submitted.child_kind is ChildKind.ANSWER:
                return await self.answered(submitted.graph)
            if submitted.graph is not None:
                return await self.inline(submitted.graph)
            plan, _ = await self.registered(submitted.namespace, submitted.graph_name, submitted.graph_version)
        except (GraphInvalid, GraphNotFound) as error:
            raise NoPlan(str(error)) from error
        return plan


def _digest(graph: graph_pb2.Graph) -> bytes:
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).digest()
