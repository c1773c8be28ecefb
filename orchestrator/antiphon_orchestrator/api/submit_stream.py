"""One SubmitRuns call: what was read and what is to be answered.

A submission of a shard that is another replica's goes to that one on a stream of the same kind, one for each owner.
What is on such a stream when it breaks, or meets a shard that is changing hands, is tried again for a while, as a unary
call would be; then its answer is that refusal, and its sender asks again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf.message import Message

from ..cluster.assignment import Member
from ..cluster.peers import Peers
from ..cluster.routing import PATIENCE, PAUSE, Routing, moved
from ..engine.run import Run
from ..runs import views
from ..runs.submit import Submissions
from ..shards import inputs as i
from ..shards.host import Host
from ..shards.payloads import request_key
from ..wake import Wake
from .call import Caller
from .errors import ApiError, Violation, refusal, request_invalid
from .pace import Pace

OUTSTANDING = 20_000
"""Submissions of one stream whose answers are not out yet; the stream is not read further above it."""

UNREAD = 1024
"""Answers of one stream that are there and not taken; the stream is not read further above it, so that who reads none
costs little."""

LONGEST_ID = 1024
"""Characters of a request id that is answered to, although the contract allows fewer."""

BATCH = 256
BATCH_BYTES = 1 << 20
_PATH = "/antiphon.v1.RunService/SubmitRuns"


class _Waiting:
    """A submission on its way; `since`: when it first met trouble (monotonic seconds), 0 before."""

    __slots__ = ("request", "shard", "since")

    def __init__(self, request: api.SubmitRunRequest, shard: int) -> None:
        self.request = request
        self.shard = shard
        self.since = 0.0


class SubmitStream:
    """`run` reads until the client is done; `answers` are (request id, message, run id or refusal), `wake` tells.

    `check_item` raises `ApiError` for a submission that breaks the contract.
    """

    def __init__(
        self,
        host: Host,
        submissions: Submissions,
        routing: Routing,
        peers: Peers,
        pace: Pace,
        check_item: Callable[[Message], None],
        who: Caller,
    ) -> None:
        self._host = host
        self._submissions = submissions
        self._routing = routing
        self._peers = peers
        self._pace = pace
        self._check_item = check_item
        self._who = who
        self._lines: dict[str, _Line] = {}
        self.answers: deque[tuple[str, Any]] = deque()
        self.outstanding = 0
        self.closed = False
        self.wake = Wake()
        self._room = Wake()

    async def run(self, requests: AsyncIterator[api.SubmitRunsRequest], group: asyncio.TaskGroup) -> None:
        """Reads and passes on. Returns when the client has sent everything and all of it is answered. Tasks of `group`
        see to what is another replica's."""
        self.group = group
        await self._read(requests)
        while self.outstanding > len(self.answers):
            self._room.clear()
            await self._room.wait()
        for line in self._lines.values():
            line.end()

    async def _read(self, requests: AsyncIterator[api.SubmitRunsRequest]) -> None:
        async for batch in requests:
            if not 1 <= len(batch.submissions) <= BATCH:
                raise request_invalid([Violation("submissions", f"must be 1 to {BATCH}")])
            for number, submission in enumerate(batch.submissions):
                while self.outstanding >= OUTSTANDING or len(self.answers) >= UNREAD:
                    self._room.clear()
                    await self._room.wait()
                if number:  # the first one has waited its turn with its message
                    await self._pace.begin()
                self.outstanding += 1
                if (refused := self._refused(number, submission)) is not None:
                    self.answer(submission.request_id, refused)
                    continue
                shard = 0 if self._host.complete else self._shard(submission)
                if self._host.complete or self._host.holds(shard):
                    await self.submit(submission)
                else:
                    await self._pass_on(_Waiting(submission, shard))

    def _refused(self, number: int, submission: api.SubmitRunRequest) -> ApiError | None:
        """What breaks the contract in a submission. Raises it when there is no request id to answer to."""
        try:
            with self._pace.work():
                self._check_item(submission)
        except ApiError as error:
            if not 1 <= len(submission.request_id) <= LONGEST_ID:
                raise request_invalid(
                    [Violation(f"submissions[{number}].{field}", message) for field, message in error.violations]
                ) from error
            return error
        return None

    def _shard(self, submission: api.SubmitRunRequest) -> int:
        return self._host.shard_of(request_key(self._who.principal, submission.request_id))

    async def submit(self, submission: api.SubmitRunRequest) -> None:
        """Hands a submission to its shard here."""
        who = self._who
        # Admission changes what it looks at. One who has all shards has nobody to ask when one goes.
        as_it_came = b"" if self._host.complete else submission.SerializeToString()

        def sink(value: Any) -> None:
            if self.closed:
                return  # a run that somebody waited for goes on; its answer is not kept for nobody
            if not isinstance(value, i.Moved):
                with self._pace.work():
                    self.answer(submission.request_id, views.run_message(value) if isinstance(value, Run) else value)
            elif as_it_came:
                self.again(_Waiting(api.SubmitRunRequest.FromString(as_it_came), value.shard))
            else:
                self.answer(submission.request_id, moved(value.shard))

        try:
            with self._pace.work():
                shard, item = await self._submissions.prepare(
                    submission, who.principal, who.namespace, who.traceparent, sink
                )
        except Exception as error:
            refused = refusal(error)  # the store is away, say: this submission is refused, and the stream goes on
            if refused is None:
                raise
            sink(refused)
            return
        await self._host.room(shard, who.namespace)
        self._host.submit(shard, item)

    def answer(self, request_id: str, value: Any) -> None:
        """The answer to one submission."""
        self.answers.append((request_id, value))
        self.wake.set()
        self._room.set()

    def answered(self, count: int) -> None:
        """So many answers are out."""
        self.outstanding -= count
        self._room.set()

    # Elsewhere.

    async def _pass_on(self, waiting: _Waiting) -> None:
        try:
            owner = await self._routing.owner(waiting.shard, self._who)
        except ApiError as error:
            self.answer(waiting.request.request_id, error)
            return
        if owner is None:
            await self.submit(waiting.request)
            return
        line = self._lines.get(owner.address)
        if line is None or line.over:
            line = self._lines[owner.address] = _Line(self, self._peers, self._routing, owner, self._who)
            self.group.create_task(line.run())
        line.send(waiting)

    def again(self, waiting: _Waiting) -> None:
        """Tries a submission again that met nobody, or a shard that is changing hands; but not for long."""
        moment = time.monotonic()
        waiting.since = waiting.since or moment
        if self.closed:
            return
        if self._who.forwarded or self._routing.stopping or moment - waiting.since > PATIENCE:
            self.answer(waiting.request.request_id, moved(waiting.shard))
            return
        self.group.create_task(self._later(waiting))

    async def _later(self, waiting: _Waiting) -> None:
        await asyncio.sleep(PAUSE)
        await self._pass_on(waiting)


class _Line:
    """The stream to one other replica."""

    def __init__(self, stream: SubmitStream, peers: Peers, routing: Routing, owner: Member, who: Caller) -> None:
        self._stream = stream
        self._peers = peers
        self._routing = routing
        self._owner = owner
        self._who = who
        self._unsent: deque[_Waiting] = deque()
        self._pending: dict[str, deque[_Waiting]] = {}
        self._something = Wake()
        self._ended = False
        self.over = False

    def send(self, waiting: _Waiting) -> None:
        self._pending.setdefault(waiting.request.request_id, deque()).append(waiting)
        self._unsent.append(waiting)
        self._something.set()

    def end(self) -> None:
        self._ended = True
        self._something.set()

    async def run(self) -> None:
        """Until all is answered after `end`, or the stream breaks; what has no answer then is tried again."""
        call = self._peers.both_ways(self._owner.address, _PATH, self._who)
        writer = self._stream.group.create_task(self._write(call))
        try:
            with self._routing.abroad(call, self._owner.replica_id):
                while isinstance(raw := await call.read(), bytes):
                    for result in api.SubmitRunsResponse.FromString(raw).results:
                        self._answered(result)
        except grpc.aio.AioRpcError:
            pass  # what it means for each submission is found out below
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            self.over = True
            writer.cancel()
            call.cancel()
            for same in self._pending.values():
                for waiting in same:
                    self._stream.again(waiting)

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        try:
            while True:
                await self._something.wait()
                self._something.clear()
                while self._unsent:
                    batch, size = api.SubmitRunsRequest(), 0
                    while self._unsent and len(batch.submissions) < BATCH:
                        request = self._unsent[0].request
                        size += request.ByteSize()
                        if batch.submissions and size > BATCH_BYTES:
                            break  # a large one goes alone: with others it could be too large
                        batch.submissions.append(request)
                        self._unsent.popleft()
                    await call.write(batch.SerializeToString())
                if self._ended:
                    await call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over, as its reader finds out

    def _answered(self, result: api.SubmitRunResult) -> None:
        same = self._pending.get(result.request_id)
        if same is None:
            return
        waiting = same.popleft()  # a request id that came twice is one run
        if not same:
            del self._pending[result.request_id]
        if result.HasField("run"):
            self._stream.answer(result.request_id, result.run)
        elif result.error.reason == ErrorReason.ERROR_REASON_SHARD_MOVED:
            self._stream.again(waiting)
        else:
            self._stream.answer(result.request_id, result.error)
