"""Finds the replica that answers a call: the owner of the shard that the call is about.

A call that comes to another replica is passed on by it, once. While a shard changes hands the call waits a little,
since the next owner is there in a moment; all calls that are routed may be made twice (they read, or carry a request
id).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Protocol

import grpc
from antiphon.v1.error_pb2 import ErrorReason

from ..api.call import Caller
from ..api.errors import ApiError
from ..shards.host import Host
from ..shards.payloads import request_key
from .assignment import Member
from .membership import Membership
from .peers import Peers, Relayed

_RUNS = "/antiphon.v1.RunService/"

# How the shard is found in a request, by method. What has no row is answered by any replica.
BY_RUN = frozenset(
    _RUNS + name
    for name in (
        "GetRun",
        "ListTasks",
        "GetTask",
        "ListAttempts",
        "CancelRun",
        "PauseRun",
        "ResumeRun",
        "CancelTask",
        "RetryTask",
        "ResolveTask",
        "SignalRun",
        "ExplainTask",
        "WatchRun",
    )
)
SUBMIT = _RUNS + "SubmitRun"

STILL_ANSWERED = frozenset({"/antiphon.mesh.v1.MeshService/Attach", "/antiphon.v1.ClusterService/GetCluster"})
"""What a replica goes on with that is cut off from the store. Sidecars stay attached: what runs goes on, and nothing
they report counts before it is committed. Who is there is only shown, beside a size that the store has to tell."""

AWAY = timedelta(seconds=1)
"""What a caller is told to wait who came to a replica that is cut off from the store."""

PATIENCE = 4.0
"""Seconds a call waits for the next owner of its shard."""

PAUSE = 0.1
"""Seconds between two looks when nothing is heard of the owner."""

AGAIN = timedelta(milliseconds=400)
"""What a caller is told to wait that has come in vain."""

Ask = Callable[[Any, Caller], int | None]


class Cancellable(Protocol):
    """A call under way."""

    def cancel(self) -> bool: ...


class Routing:
    """Implements api.interceptor.Router."""

    def __init__(self, host: Host, membership: Membership, peers: Peers) -> None:
        self._host = host
        self._membership = membership
        self._peers = peers
        self.stopping = False
        """Whether this replica is about to end: whoever waits is told at once to ask another."""
        self._abroad: dict[Cancellable, tuple[str, int | None]] = {}
        self._at_home: set[asyncio.Task[Any]] = set()
        self._kinds: Mapping[str, Ask] = MappingProxyType(
            {**dict.fromkeys(BY_RUN, self._of_run), SUBMIT: self._of_submission}
        )

    def shard(self, path: str, message: Any, who: Caller) -> int | None:
        """The shard a call is about, when it is to be asked elsewhere perhaps; None: it is answered here."""
        if self._host.complete:
            return None
        find = self._kinds.get(path)
        return find(message, who) if find is not None else None

    def require_store(self, path: str) -> None:
        """A replica that is cut off from the store says nothing, and begins nothing: others may have its runs by now,
        and what it knows of all else is old, policies and revocations included. So even whom it may answer it cannot
        know. Raises ApiError (NOT_SERVING), with which callers turn to another address.
        """
        if self._membership.cut_off and path not in STILL_ANSWERED:
            raise cut_off()

    def _of_run(self, message: Any, who: Caller) -> int | None:
        return self._host.shard_of_run(message.run_id)

    def _of_submission(self, message: Any, who: Caller) -> int | None:
        return self._host.shard_of(request_key(who.principal, message.request_id))

    async def unary(
        self, path: str, shard: int, request: bytes, who: Caller, here: Callable[[], Awaitable[Any]],
        remaining: Callable[[], float | None],
    ) -> Any:  # fmt: skip
        """The answer of the owner, of this replica perhaps. Raises ApiError, Relayed."""
        trouble: float | None = None
        while True:
            seen, began = self._membership.changes, time.monotonic()
            try:
                if self._host.holds(shard):
                    return await self.here(path, here())
                owner = self._owner(shard, who)
                return await self._ask(shard, owner, self._peers.unary(owner.address, path, request, who, remaining()))
            except ApiError as error:
                if error.reason != ErrorReason.ERROR_REASON_SHARD_MOVED:
                    raise
            except Relayed as error:
                if not error.passing:
                    raise _said(error, path, shard) from error
            moment = time.monotonic()
            if trouble is None or moment - began > PATIENCE:
                trouble = moment  # what was waited for until now was the answer
            if who.forwarded or self.stopping or moment - trouble > PATIENCE:
                raise moved(shard)
            await self._membership.change(seen, PAUSE)

    async def here(self, path: str, answer: Awaitable[Any]) -> Any:
        """The answer of this replica, unless it is cut off from the store that it waits for. Raises ApiError."""
        if path in STILL_ANSWERED:
            return await answer
        task = asyncio.current_task()
        assert task is not None
        self._at_home.add(task)
        try:
            return await answer
        except asyncio.CancelledError:
            if task in self._at_home:
                raise
            task.uncancel()
            raise cut_off() from None
        finally:
            self._at_home.discard(task)

    async def stream(
        self, path: str, shard: int, request: bytes, who: Caller, here: Callable[[], AsyncIterator[Any]]
    ) -> AsyncGenerator[Any, None]:
        """The messages of the owner's stream. Raises ApiError, Relayed."""
        owner = await self.owner(shard, who)
        if owner is None:
            async for response in here():
                yield response
            return
        call = self._peers.stream(owner.address, path, request, who)
        try:
            with self.abroad(call, owner.replica_id, shard):
                async for response in call:
                    yield response
        except grpc.aio.AioRpcError as broken:
            error = Relayed(broken)
            if not error.passing:
                raise _said(error, path, shard) from broken
            # The owner may be gone without anybody knowing yet: whoever comes back at once would meet it again.
            await asyncio.sleep(PAUSE)
            raise moved(shard) from broken
        except asyncio.CancelledError:
            if unasked():
                raise
            raise moved(shard) from None
        finally:
            call.cancel()

    async def _ask(self, shard: int, owner: Member, call: Coroutine[Any, Any, bytes]) -> bytes:
        """The answer of the owner, for as long as it is the owner. Raises Relayed, ApiError."""
        asking = asyncio.ensure_future(call)
        try:
            with self.abroad(asking, owner.replica_id, shard):
                return await asking
        except asyncio.CancelledError:
            if unasked():
                raise
            raise moved(shard) from None

    @contextmanager
    def abroad(self, call: Cancellable, replica_id: str, shard: int | None = None) -> Iterator[None]:
        """Inside, a call to another replica is cancelled when that one is gone, or does not own the shard any more.

        One that is stalled answers nothing and keeps its connection: nothing else would end the call for a minute.
        """
        self._abroad[call] = (replica_id, shard)
        try:
            yield
        finally:
            del self._abroad[call]

    def look(self) -> None:
        """The membership has changed, or some time has passed."""
        if self._membership.cut_off:
            while self._at_home:
                self._at_home.pop().cancel()
        for call, (replica_id, shard) in list(self._abroad.items()):
            claimant = self._membership.claimant(shard) if shard is not None else None
            lost = claimant is not None and claimant.replica_id != replica_id
            if lost or replica_id not in self._membership.members:
                call.cancel()

    async def owner(self, shard: int, who: Caller) -> Member | None:
        """The replica that answers for a shard, waited for if need be; None: this one. Raises ApiError."""
        until = time.monotonic() + PATIENCE
        while not self._host.holds(shard):
            seen = self._membership.changes
            try:
                return self._owner(shard, who)
            except ApiError:
                if who.forwarded or self.stopping or time.monotonic() > until:
                    raise
            await self._membership.change(seen, PAUSE)
        return None

    def _owner(self, shard: int, who: Caller) -> Member:
        owner = self._membership.claimant(shard)
        if who.forwarded or owner is None or owner.replica_id == self._membership.replica_id:
            raise moved(shard)
        return owner


def _said(error: Relayed, path: str, shard: int) -> Exception:
    """What the owner has refused, as it said it; or what it means when it was not the owner that ended the call."""
    if error.details is not None:
        return error
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ApiError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, method=path)
    return moved(shard)


def unasked() -> bool:
    """Whether whoever awaits has been cancelled, and not only the call that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def cut_off() -> ApiError:
    """The refusal of a replica that may have lost its shards without knowing it."""
    return ApiError(ErrorReason.ERROR_REASON_NOT_SERVING, retry_after=AWAY, state="cut off from the store")


def moved(shard: int) -> ApiError:
    """The refusal of a call whose shard is not here, and not to be found."""
    return ApiError(ErrorReason.ERROR_REASON_SHARD_MOVED, retry_after=AGAIN, shard=shard)
