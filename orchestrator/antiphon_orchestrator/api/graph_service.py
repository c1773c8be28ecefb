"""GraphService: versioned graphs by namespace, immutable once registered.

What is registered under a name and version never changes: one put, compared against absence. The same content again
finds its own record and answers it, which also settles a put whose answer was lost. Versions are ordered as numbers,
while the store orders them as text, so whoever lists or looks for the highest sorts here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from antiphon.store.v1 import records_pb2
from antiphon.v1 import graph_pb2, graph_service_pb2, graph_service_pb2_grpc
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Clock

from antiphon_orchestrator.admission import Compiled, GraphInvalid, Mistake
from antiphon_orchestrator.audit import AuditLog, Fact
from antiphon_orchestrator.runs.compiling import compile_aside
from antiphon_orchestrator.store import keys
from antiphon_orchestrator.store.port import Compare, Delete, KeyValue, Put, Store, Target, Txn, prefix_end

from .call import caller
from .errors import ApiError, Violation, request_invalid
from .paging import decode_token, encode_token
from .storing import settle

GRAPH_BYTES = 1 << 20
"""Largest graph that is kept; a store transaction must hold it."""

REQUEST_KEPT = 24 * 3600 * 1_000_000
"""Microseconds a request id is remembered."""

_PAGE = 50
_PAGE_BYTES = 2 << 20  # a page of large graphs ends early, so that it stays within a message
_CHUNK = 64

Offered = Callable[[str], Callable[[str, str], bool]]
"""By namespace: does anybody offer what a task asks for? Admission warns about what nobody offers."""


class _Version(NamedTuple):
    """A registered version, in listing order."""

    name: str
    numbers: tuple[int, ...]
    text: str


class GraphService(graph_service_pb2_grpc.GraphServiceServicer):
    """Over the store. Without `offered` nothing is said about capabilities."""

    def __init__(self, store: Store, clock: Clock, audit: AuditLog, offered: Offered | None = None) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._offered = offered

    async def RegisterGraph(
        self, request: graph_service_pb2.RegisterGraphRequest, _context: Any
    ) -> graph_service_pb2.RegisterGraphResponse:
        """Check, keep, answer what is kept."""
        who, graph = caller(), request.graph
        if not graph.version:
            raise request_invalid([Violation("graph.version", "is required to register a graph")])
        data = graph.SerializeToString(deterministic=True)
        if len(data) > GRAPH_BYTES:
            raise ApiError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, limit=GRAPH_BYTES)
        try:
            compiled = await self._compile(graph)
        except GraphInvalid as error:
            raise ApiError(
                ErrorReason.ERROR_REASON_GRAPH_INVALID,
                violations=[Violation(f"graph.{mistake.field}", mistake.message) for mistake in error.mistakes],
                graph=graph.name,
                count=len(error.mistakes),
            ) from error
        key = keys.graph(who.namespace, graph.name, graph.version)
        record = records_pb2.GraphRecord(
            graph=graph,
            digest=hashlib.sha256(data).digest(),
            create_time=_microseconds(self._clock.now()),
            creator=who.principal,
        )
        await self._remember(who.principal, request.request_id, record)
        absent = Compare(key, Target.VERSION, 0)
        result = await settle(self._store, Txn((absent,), (Put(key, record.SerializeToString()),), (key,)))
        there = result.observed.get(key)
        if not result.succeeded and there is not None:
            kept = records_pb2.GraphRecord.FromString(there.value)
            if kept.digest != record.digest:
                raise ApiError(ErrorReason.ERROR_REASON_GRAPH_VERSION_EXISTS, graph=graph.name, version=graph.version)
            record = kept
        details = {"digest": record.digest.hex(), "request_id": request.request_id}
        resource = f"Graph::{who.namespace}/{graph.name}@{graph.version}"
        await self._audit.write(Fact("register_graph", who.namespace, who.principal, resource, details=details))
        return graph_service_pb2.RegisterGraphResponse(graph=_registered(record), warnings=_mistakes(compiled.warnings))

    async def _remember(self, principal: str, request_id: str, record: records_pb2.GraphRecord) -> None:
        """Binds a request id to its content for a day. Raises `ApiError` when it stands for other content.

        Written before the graph: a call that is cut off in between is repeated with the same content, or not at all.
        """
        key = keys.request(principal, request_id)
        bound = records_pb2.GraphRecord(digest=record.digest, create_time=record.create_time)
        absent = Compare(key, Target.VERSION, 0)
        result = await settle(self._store, Txn((absent,), (Put(key, bound.SerializeToString()),), (key,)))
        there = result.observed.get(key)
        if there is not None and records_pb2.GraphRecord.FromString(there.value).digest != record.digest:
            raise ApiError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, request_id=request_id)
        prefix = keys.request_prefix(principal)
        kept = await self._store.range(prefix, prefix_end(prefix), limit=_CHUNK)
        oldest = record.create_time - REQUEST_KEPT
        old = [item for item in kept.kvs if records_pb2.GraphRecord.FromString(item.value).create_time < oldest]
        if old:
            unchanged = tuple(Compare(item.key, Target.MOD_REVISION, item.mod_revision) for item in old)
            await settle(self._store, Txn(unchanged, tuple(Delete(item.key) for item in old)))

    async def GetGraph(
        self, request: graph_service_pb2.GetGraphRequest, _context: Any
    ) -> graph_service_pb2.GetGraphResponse:
        """One version, or the highest."""
        namespace, version = caller().namespace, request.version
        if not version:
            prefix = keys.graph_versions_prefix(namespace, request.name)
            versions = [found async for found in self._versions(prefix)]
            version = max(versions).text if versions else ""
        found = (await self._store.range(keys.graph(namespace, request.name, version))).kvs if version else ()
        if not found:
            asked = f"{request.name}@{request.version}" if request.version else request.name
            raise ApiError(ErrorReason.ERROR_REASON_GRAPH_NOT_FOUND, graph=asked)
        return graph_service_pb2.GetGraphResponse(graph=_registered(_decode(found[0])))

    async def ListGraphs(
        self, request: graph_service_pb2.ListGraphsRequest, _context: Any
    ) -> graph_service_pb2.ListGraphsResponse:
        """By name, then version. Graphs are few: a page reads all keys of the namespace to put them in order."""
        namespace = caller().namespace
        position = decode_token(request, str, str)
        after = _version(str(position[0]), str(position[1])) if position else None
        prefix = keys.graph_versions_prefix(namespace, request.name) if request.name else keys.graph_prefix(namespace)
        versions = sorted([found async for found in self._versions(prefix)])
        rest = [found for found in versions if after is None or found > after]
        response = graph_service_pb2.ListGraphsResponse()
        size = 0
        for count, found in enumerate(rest):
            if count == (request.page_size or _PAGE) or size > _PAGE_BYTES:
                last = rest[count - 1]
                response.next_page_token = encode_token(request, (last.name, last.text))
                break
            for item in (await self._store.range(keys.graph(namespace, found.name, found.text))).kvs:
                size += len(item.value)
                response.graphs.append(_registered(_decode(item)))
        return response

    async def ValidateGraph(
        self, request: graph_service_pb2.ValidateGraphRequest, _context: Any
    ) -> graph_service_pb2.ValidateGraphResponse:
        """Every mistake, in an answer that is not cut as a status is."""
        try:
            compiled = await self._compile(request.graph)
        except GraphInvalid as error:
            return graph_service_pb2.ValidateGraphResponse(mistakes=_mistakes(error.mistakes))
        return graph_service_pb2.ValidateGraphResponse(warnings=_mistakes(compiled.warnings))

    async def _compile(self, graph: graph_pb2.Graph) -> Compiled:
        return await compile_aside(graph, offered=self._offered(caller().namespace) if self._offered else None)

    async def _versions(self, prefix: bytes) -> AsyncIterator[_Version]:
        """What is registered under a prefix, in the store's order; a few records at a time are in memory."""
        start, end = prefix, prefix_end(prefix)
        while True:
            chunk = await self._store.range(start, end, limit=_CHUNK)
            for item in chunk.kvs:
                _, _, name, version = keys.parts(item.key)
                yield _version(name, version)
            if not chunk.more:
                return
            start = chunk.kvs[-1].key + b"\0"


def _version(name: str, text: str) -> _Version:
    return _Version(name, tuple(int(number) for number in text.split(".") if number.isdecimal()), text)


def _decode(item: KeyValue) -> records_pb2.GraphRecord:
    return records_pb2.GraphRecord.FromString(item.value)


def _registered(record: records_pb2.GraphRecord) -> graph_service_pb2.RegisteredGraph:
    registered = graph_service_pb2.RegisteredGraph(
        graph=record.graph, digest=record.digest.hex(), creator=record.creator
    )
    registered.create_time.FromMicroseconds(record.create_time)
    return registered


def _mistakes(mistakes: Iterable[Mistake]) -> list[graph_service_pb2.GraphMistake]:
    return [
        graph_service_pb2.GraphMistake(field=mistake.field, message=mistake.message, code=mistake.code.value)
        for mistake in mistakes
    ]


def _microseconds(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1_000_000)
