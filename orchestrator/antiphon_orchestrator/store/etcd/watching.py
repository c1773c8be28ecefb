"""One watch of an etcd cluster, over as many streams as it takes.

A stream that breaks is opened anew, at the next endpoint, from the revision after the last event that was handed on:
never from a header's. One that is quiet asks how far it has come, and goes on from there; not at old members (before
3.4.25 and 3.5.8), which may answer ahead of events. What etcd tells in fragments is handed on in whole revisions.
Nothing is queued: while a batch is not taken, gRPC's flow control holds etcd back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

from antiphon.etcd.v3 import kv_pb2, rpc_pb2

from ..port import PROGRESS, Compacted, StoreError, StoreRefused, StoreUnavailable, WatchBatch, WatchEvent, prefix_end
from .codec import Keyspace
from .health import orders_progress
from .wire import CALL_SECONDS, Endpoint, Line, Stream

_FIRST_WAIT = 0.05
_LONGEST_WAIT = 2.0


class Watch:
    """Every change below `prefix` from `revision` on, with what was there `before` if that is asked for. Iterate
    `batches` once; closing it ends the stream."""

    def __init__(self, line: Line, keyspace: Keyspace, prefix: bytes, revision: int, before: bool) -> None:
        self._line = line
        self._keyspace = keyspace
        self._prefix = prefix
        self._next = revision
        self._before = before
        self._wait = _FIRST_WAIT

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        """Raises Compacted; StoreRefused when etcd will not let us read there; StoreUnavailable once it is closed."""
        while True:
            endpoint = self._line.current()
            try:
                async with endpoint.stream("Watch/Watch", rpc_pb2.WatchResponse) as stream:
                    await self._begin(stream)
                    asking = asyncio.create_task(_ask_progress(endpoint, stream), name="progress of a watch")
                    try:
                        fresh: list[WatchEvent] = []
                        while True:
                            response = _checked(await stream.read())
                            fresh += map(self._event, response.events)
                            whole = _whole(fresh, response.fragment)
                            if whole:
                                revision = whole[-1].kv.mod_revision
                            elif not response.events and not fresh:
                                revision = response.header.revision
                            else:
                                continue
                            if revision >= self._next:
                                self._wait = _FIRST_WAIT
                                self._next = revision + 1
                                yield WatchBatch(tuple(whole), revision)
                    finally:
                        asking.cancel()
            except StoreUnavailable:
                self._line.leave(endpoint)
            await asyncio.sleep(self._wait * random.uniform(0.5, 1.5))
            self._wait = min(self._wait * 2, _LONGEST_WAIT)

    def _event(self, event: kv_pb2.Event) -> WatchEvent:
        """A change. etcd leaves out what was there before when that was compacted since the change was found."""
        told = self._keyspace.event(event)
        if self._before and told.before is None and told.kv.version != 1:
            raise Compacted(told.kv.mod_revision + 1)
        return told

    async def _begin(self, stream: Stream[rpc_pb2.WatchResponse]) -> None:
        create = rpc_pb2.WatchCreateRequest(
            key=self._keyspace.key(self._prefix),
            range_end=self._keyspace.end(prefix_end(self._prefix)),
            start_revision=self._next,
            fragment=True,
            prev_kv=self._before,
        )
        await stream.write(rpc_pb2.WatchRequest(create_request=create), CALL_SECONDS)
        response = _checked(await stream.read(CALL_SECONDS))
        if not response.created:
            raise StoreUnavailable("etcd has not begun the watch")


async def _ask_progress(endpoint: Endpoint, stream: Stream[rpc_pb2.WatchResponse]) -> None:
    """Asks again and again; the answer, which has no events, comes to whoever reads the stream."""
    request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    try:
        status = await endpoint.call("Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse)
        if not orders_progress(status.version):
            return
        while True:
            await asyncio.sleep(PROGRESS)
            await stream.write(request, CALL_SECONDS)
    except StoreError:
        return  # whoever reads the stream is told as well


def _checked(response: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse:
    """Raises what the end of a watch means."""
    if response.compact_revision:
        raise Compacted(response.compact_revision)
    if response.canceled:
        if "permission denied" in response.cancel_reason:
            raise StoreRefused(f"etcd lets its user watch nothing below our prefix: {response.cancel_reason}")
        raise StoreUnavailable(f"etcd has ended the watch: {response.cancel_reason}")
    return response


def _whole(fresh: list[WatchEvent], more: bool) -> list[WatchEvent]:
    """Takes the revisions that are complete out of `fresh`; with `more` to come the last one may not be."""
    count = len(fresh)
    if more and fresh:
        last = fresh[-1].kv.mod_revision
        while count and fresh[count - 1].kv.mod_revision == last:
            count -= 1
    whole = fresh[:count]
    del fresh[:count]
    return whole
