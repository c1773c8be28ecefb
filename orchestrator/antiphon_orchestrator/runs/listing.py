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
from collections.abc import Iterable, Sequence
from typing import Any

from antiphon.v1 import run_pb2
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError
from ..archive import Archive, ArchivedRun, RunFilter
from ..archive.model import make_page_token, to_micros
from ..engine.run import Run
from ..shards import inputs as i
from ..shards.archiver import moment
from ..shards.host import Host
from . import views

Key = tuple[int, str]


class InvalidToken(Exception):
    """The page token is not one of ours, or belongs to another query."""


class RunListing:
    def __init__(self, host: Host, archive: Archive) -> None:
        self._host = host
        self._archive = archive

    async def page(
        self, namespace: str, request: api.ListRunsRequest, elsewhere: Sequence[run_pb2.Run] = ()
    ) -> api.ListRunsResponse:
        """One page, of what is archived, what lives here, and what other replicas said lives there.

        Raises InvalidToken, ArchiveUnavailable, ApiError.
        """
        size = request.page_size or 50
        before = _parse(request.page_token, _digest(namespace, request))
        found: dict[str, tuple[Key, run_pb2.Run]] = {}
        for message in (*elsewhere, *await self._live(namespace, request, before, size)):
            found[message.run_id] = ((message.create_time.ToMicroseconds(), message.run_id), message)
        for summary in await self._archived(namespace, request, before, size):
            live = found.get(summary.run_id)
            if live is not None and live[1].event_seq >= summary.last_event_seq:
                continue  # of a long run the archive has the beginning, and its state of then
            found[summary.run_id] = ((to_micros(summary.create_time), summary.run_id), _message(summary))
        newest = sorted(found.values(), key=lambda pair: pair[0], reverse=True)
        response = api.ListRunsResponse(runs=[message for _, message in newest[:size]])
        if len(newest) > size:
            response.next_page_token = _token(newest[size - 1][0], _digest(namespace, request))
        return response

    async def here(self, namespace: str, request: api.ListRunsRequest) -> list[run_pb2.Run]:
        """What lives in the shards of this replica and belongs to a page. Raises InvalidToken, ApiError."""
        before = _parse(request.page_token, _digest(namespace, request))
        return await self._live(namespace, request, before, request.page_size or 50)

    async def _archived(
        self, namespace: str, request: api.ListRunsRequest, before: Key | None, size: int
    ) -> list[ArchivedRun]:
        wanted = RunFilter(
            namespace,
            graph_name=request.graph_name or None,
            states=tuple(run_pb2.RunState.Name(s).removeprefix("RUN_STATE_") for s in request.states),
            created_after=moment(request.created_after.ToMicroseconds()) if request.HasField("created_after") else None,
            created_before=(
                moment(request.created_before.ToMicroseconds()) if request.HasField("created_before") else None
            ),
            labels=tuple(sorted(request.labels.items())),
        )
        # From the very run on: those of one turn have the same time, and there may be more than a page of them.
        rows, _ = await self._archive.list_runs(wanted, size + 1, make_page_token(wanted, *before) if before else "")
        return rows

    async def _live(
        self, namespace: str, request: api.ListRunsRequest, before: Key | None, size: int
    ) -> list[run_pb2.Run]:
        def question(runs: Iterable[Run]) -> list[run_pb2.Run]:
            fitting = [run for run in runs if _fits(run, namespace, request, before)]
            fitting.sort(key=lambda run: (run.create_time, run.run_id), reverse=True)
            return [views.run_message(run, payloads=False) for run in fitting[: size + 1]]

        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = []
        for shard in self._host.held:
            future: asyncio.Future[Any] = loop.create_future()
            futures.append(future)
            self._host.put(shard, i.Survey(question, _sink(future)))
        return [message for part in await asyncio.gather(*futures) for message in part]


def _sink(future: asyncio.Future[Any]) -> i.Sink:
    def sink(value: Any) -> None:
        if future.done():
            return  # the caller went away
        if isinstance(value, i.Moved):
            future.set_exception(ApiError(ErrorReason.ERROR_REASON_SHARD_MOVED, shard=value.shard))
        else:
            future.set_result(value)

    return sink


def _fits(run: Run, namespace: str, request: api.ListRunsRequest, before: Key | None) -> bool:
    submitted = run.submitted
    return (
        submitted.namespace == namespace
        and (before is None or (run.create_time, run.run_id) < before)
        and (not request.states or views.shown_state(run) in request.states)
        and (not request.graph_name or submitted.graph_name == request.graph_name)
        and (not request.HasField("created_after") or run.create_time >= request.created_after.ToMicroseconds())
        and (not request.HasField("created_before") or run.create_time < request.created_before.ToMicroseconds())
        and all(submitted.labels.get(key) == value for key, value in request.labels.items())
    )


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
    if summary.failure_text:
        message.failure.message = summary.failure_text
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
        if owner == digest:
            return int(created), run_id
    except (ValueError, binascii.Error) as error:
        raise InvalidToken(token) from error
    raise InvalidToken(token)
