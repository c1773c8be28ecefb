"""Answers of the whole: every replica is asked for its own shards, until what they say covers every shard.

Between its two owners a shard is nowhere, and a replica that is asked a moment too early, and the other a moment too
late, would both leave it out without a word. So each says which shards it speaks for, and what is missing is asked for
again. What two replicas say of one shard, one before it was handed over and one after, is for the asker to reconcile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1.error_pb2 import ErrorReason

from ..api.call import Caller
from ..api.errors import ApiError
from ..shards.host import Host
from .assignment import Member
from .membership import Membership
from .peers import Peers
from .routing import PATIENCE, PAUSE, Routing, moved, unasked

T = TypeVar("T")

_AGAIN = frozenset({ErrorReason.ERROR_REASON_SHARD_MOVED, ErrorReason.ERROR_REASON_REPLICA_UNAVAILABLE})


class Gathering:
    """Asks all replicas. A call that is passed on is answered without it, with `coverage` in its trailing metadata."""

    def __init__(self, host: Host, membership: Membership, peers: Peers, routing: Routing) -> None:
        self._host = host
        self._membership = membership
        self._peers = peers
        self._routing = routing

    async def whole(
        self, path: str, request: bytes, who: Caller, here: Callable[[], Awaitable[tuple[T, Collection[int]]]]
    ) -> tuple[T, list[bytes]]:
        """What is said here, and what each other replica says, once that speaks for every shard together.

        `here` answers with the shards that it speaks for. Raises ApiError: SHARD_MOVED, REPLICA_UNAVAILABLE, when it
        does not come to that within PATIENCE of the first time it did not.
        """
        trouble = 0.0
        while True:
            seen = self._membership.changes
            try:
                return await self._once(path, request, who, here)
            except ApiError as error:
                moment = time.monotonic()
                trouble = trouble or moment
                if error.reason not in _AGAIN or self._routing.stopping or moment - trouble > PATIENCE:
                    raise
            await self._membership.change(seen, PAUSE)

    async def _once(
        self, path: str, request: bytes, who: Caller, here: Callable[[], Awaitable[tuple[T, Collection[int]]]]
    ) -> tuple[T, list[bytes]]:
        asking = [asyncio.ensure_future(self._part(member, path, request, who)) for member in self._membership.others]
        try:
            mine, held = await here()
            parts = [await part for part in asking]
        finally:
            for part in asking:
                part.cancel()
        elsewhere: list[tuple[bytes, Collection[int]]] = []
        for answer in parts:
            if isinstance(answer, ApiError):
                raise answer
            elsewhere.append(answer)
        missing = set(range(self._host.shard_count)).difference(held, *(covered for _, covered in elsewhere))
        if missing:
            raise moved(min(missing))
        return mine, [answer for answer, _ in elsewhere]

    async def _part(
        self, member: Member, path: str, request: bytes, who: Caller
    ) -> tuple[bytes, Collection[int]] | ApiError:
        """The answer of one replica, or why there is none: an error that nobody is left to take is no loss."""
        asking = asyncio.ensure_future(self._peers.part(member, path, request, who))
        try:
            with self._routing.abroad(asking, member.replica_id):
                return await asking
        except ApiError as error:
            return error
        except asyncio.CancelledError:
            asking.cancel()
            if unasked():
                raise
            # It went away: others speak for its shards, or will in a moment.
            return ApiError(ErrorReason.ERROR_REASON_REPLICA_UNAVAILABLE, replica=member.replica_id)


def coverage(shards: Collection[int]) -> bytes:
    """What a replica adds to its part of an answer: the shards that it speaks for."""
    return mesh.ForwardedAnswer(shards=sorted(shards)).SerializeToString()
