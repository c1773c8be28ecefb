"""Live and archived runs in one list, newest first.

Both sides are cut at the same key, (create time, run id), so that a run which moves into the archive between two pages
is neither shown twice nor missed. Within a page it may move as well: it is archived before it is forgotten, so what
lives is read first.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from antiphon.v1 import run_pb2
from antiphon.v1 import run_service_pb2 as api

from ..archive import Archive, ArchivedRun, RunFilter
from ..archive.model import make_page_token
from ..engine import waits
from ..engine.run import Run
from ..shards import inputs as i
from ..shards.archiver import moment
from ..shards.host import Host
from ..store.port import StoreFull
from . import views

Key = tuple[int, str]

_MOST_MICROS = 1 << 62
_GRAPH = re.compile(r"[^@]+(@[0-9]{1,6}(\.[0-9]{1,6}){0,2})?")
_LIVE = frozenset({run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_PAUSED})
"""States of runs that only a shard can have."""


class InvalidToken(Exception):
    """The page token is not one of ours, or belongs to another query."""


class RunListing:
    def __init__(self, host: Host, archive: Archive) -> None:
        self._host = host
        self._archive = archive

    async def page(
        self, namespace: str, request: api.ListRunsRequest, live: Iterable[run_pb2.Run]
    ) -> api.ListRunsResponse:
        """One page, of what lives in all shards, as `here` and other replicas have said before, and what is archived.

        Raises InvalidToken, ArchiveUnavailable.
        """
        size = request.page_size or 50
        before = _parse(request.page_token, _digest(namespace, request))
        found: dict[str, run_pb2.Run] = {}
        archived = await self._archived(namespace, request, before, size)
        for message in (*live, *map(_message, archived)):
            # Two owners may have told of it, or the archive too: the one that knows more of it counts.
            known = found.get(message.run_id)
            if known is None or known.event_seq <= message.event_seq:
                found[message.run_id] = message
        newest = sorted(found.values(), key=_key, reverse=True)
        response = api.ListRunsResponse(runs=newest[:size])
        if len(newest) > size:
            response.next_page_token = _token(_key(newest[size - 1]), _digest(namespace, request))
        return response

    async def here(self, namespace: str, request: api.ListRunsRequest) -> tuple[list[run_pb2.Run], list[int]]:
        """What lives in the shards of this replica and belongs to a page, and which shards those are: one that went to
        another replica before it answered is not among them. Raises InvalidToken."""
        before = _parse(request.page_token, _digest(namespace, request))
        size = request.page_size or 50

        def question(runs: Iterable[Run]) -> list[run_pb2.Run]:
            fitting = [run for run in runs if _fits(run, namespace, request, before)]
            fitting.sort(key=lambda run: (run.create_time, run.run_id), reverse=True)
            return [views.run_message(run, payloads=False) for run in fitting[: size + 1]]

        asked = {shard: self._ask(shard, question) for shard in self._host.held}
        await asyncio.gather(*asked.values())
        told = {shard: answer for shard, future in asked.items() if (answer := future.result()) is not None}
        newest = sorted((message for part in told.values() for message in part), key=_key, reverse=True)
        return newest[: size + 1], list(told)

    def _ask(
        self, shard: int, question: Callable[[Iterable[Run]], list[run_pb2.Run]]
    ) -> asyncio.Future[list[run_pb2.Run] | None]:
        """The answer of a shard, or StoreFull; None when it went to another replica before it gave one."""
        future: asyncio.Future[list[run_pb2.Run] | None] = asyncio.get_running_loop().create_future()

        def sink(value: Any) -> None:
            if future.done():
                return  # the caller went away
            if isinstance(value, StoreFull):
                future.set_exception(value)
            else:
                future.set_result(None if isinstance(value, i.Moved) else value)

        self._host.put(shard, i.Survey(question, sink))
        return future

    async def _archived(
        self, namespace: str, request: api.ListRunsRequest, before: Key | None, size: int
    ) -> list[ArchivedRun]:
        if _waiting(request) or (request.states and _LIVE.issuperset(request.states)):
            return []  # what has ended runs no more, and waits for nothing: that is told also while the archive is away
        name, version = _graph(request)
        wanted = RunFilter(
            namespace,
            graph_name=name or None,
            graph_version=version,
            states=tuple(run_pb2.RunState.Name(s).removeprefix("RUN_STATE_") for s in request.states),
            created_after=moment(request.created_after.ToMicroseconds()) if request.HasField("created_after") else None,
            created_before=(
                moment(request.created_before.ToMicroseconds()) if request.HasField("created_before") else None
            ),
            parent=request.parent,
            labels=tuple(sorted(request.labels.items())),
            failure=request.failure_text,
        )
        # From the very run on: those of one turn have the same time, and there may be more than a page of them.
        rows, _ = await self._archive.list_runs(wanted, size + 1, make_page_token(wanted, *before) if before else "")
        return rows


def _key(message: run_pb2.Run) -> Key:
    """By which runs are in order."""
    return message.create_time.ToMicroseconds(), message.run_id


def _fits(run: Run, namespace: str, request: api.ListRunsRequest, before: Key | None) -> bool:
    submitted = run.submitted
    name, version = _graph(request)
    return (
        submitted.namespace == namespace
        and (before is None or (run.create_time, run.run_id) < before)
        and (not request.states or views.shown_state(run) in request.states)
        and (not name or submitted.graph_name == name)
        and (not version or submitted.graph_version == version)
        and (not request.HasField("created_after") or run.create_time >= request.created_after.ToMicroseconds())
        and (not request.HasField("created_before") or run.create_time < request.created_before.ToMicroseconds())
        and all(submitted.labels.get(key) == value for key, value in request.labels.items())
        and (not request.parent or _called_by(submitted.parent_attempt_id, request.parent))
        and (not _waiting(request) or _waits(run, request))
        and (not request.failure_text or _failed_with(run, request.failure_text))
    )


def names_graph(text: str) -> bool:
    """Whether this is NAME or NAME@VERSION; a name that no graph has finds nothing."""
    return _GRAPH.fullmatch(text) is not None


def _graph(request: api.ListRunsRequest) -> tuple[str, str]:
    """Name and version of the graph whose runs are wanted; what is empty does not restrict."""
    name, _, version = request.graph_name.partition("@")
    return name, version


def _waiting(request: api.ListRunsRequest) -> bool:
    """Whether a list is one of runs that wait for something from outside."""
    return request.waiting_for_person or request.waiting_for_signal


def _waits(run: Run, request: api.ListRunsRequest) -> bool:
    if request.waiting_for_person and run.asking > 0:
        return True
    return request.waiting_for_signal and bool(waits.awaited(run))


def _called_by(attempt_id: str, parent: str) -> bool:
    """As the archive finds it: by an attempt, or by any of a run."""
    return attempt_id == parent if "/" in parent else attempt_id.startswith(f"{parent}/")


def _failed_with(run: Run, part: str) -> bool:
    """As the archive finds it: ASCII letters match in either case."""
    return run.failure is not None and part.encode().lower() in run.failure.message.encode().lower()


def _message(summary: ArchivedRun) -> run_pb2.Run:
    message = run_pb2.Run(
        run_id=summary.run_id,
        namespace=summary.namespace,
        state=run_pb2.RunState.Value(f"RUN_STATE_{summary.state}"),
        graph_name=summary.graph_name,
        graph_version=summary.graph_version,
        principal=summary.principal,
        event_seq=summary.last_event_seq,
        labels=summary.labels,
        parent_attempt_id=summary.parent,
    )
    message.create_time.FromDatetime(summary.create_time)
    if summary.end_time is not None:
        message.end_time.FromDatetime(summary.end_time)
    if summary.failure_kind or summary.failure_text:
        message.failure.message = summary.failure_text
        message.failure.kind = summary.failure_kind  # type: ignore[assignment]
        message.failure.code = summary.failure_code
    return message


def _digest(namespace: str, request: api.ListRunsRequest) -> str:
    """What a token is bound to: the query without its page."""
    query = api.ListRunsRequest()
    query.CopyFrom(request)
    query.ClearField("page_token")
    query.ClearField("page_size")
    data = namespace.encode() + b"\0" + query.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()[:16]


def _token(key: Key, digest: str) -> str:
    return base64.urlsafe_b64encode(f"{digest}/{key[0]}/{key[1]}".encode()).decode()


def _parse(token: str, digest: str) -> Key | None:
    if not token:
        return None
    try:
        owner, created, run_id = base64.urlsafe_b64decode(token).decode().split("/")
        if owner == digest and 0 <= (micros := int(created)) < _MOST_MICROS:
            return micros, run_id
    except (ValueError, binascii.Error) as error:
        raise InvalidToken(token) from error
    raise InvalidToken(token)
