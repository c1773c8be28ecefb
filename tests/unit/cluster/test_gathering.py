"""An answer of all replicas is one of all shards, whatever changes hands while they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Grants, Identity, Kind
from antiphon_orchestrator.api.call import Caller
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.cluster import gathering
from antiphon_orchestrator.cluster.assignment import Member
from antiphon_orchestrator.cluster.gathering import Gathering
from antiphon_orchestrator.cluster.routing import Routing

ME, OTHER = Member("me", "me:1", "1", 0, False, 0), Member("other", "other:1", "1", 0, False, 0)
WHO = Caller(Identity("mesh.test", "demo", Kind.CLIENT, "p"), Grants(), "", "p")


class Replicas:
    """Stands for host, membership and peers: four shards, of which `mine` are here and `theirs` at another replica."""

    def __init__(self, mine: list[int], theirs: list[int]) -> None:
        self.mine, self.theirs = mine, theirs
        self.shard_count = 4
        self.members = {"me": ME, "other": OTHER}
        self.changes = 0
        self.cut_off = False
        self.asked = 0
        self.hangs = False
        self.under_way, self.ended = asyncio.Event(), asyncio.Event()
        self.next: Callable[[], None] = lambda: None
        self.routing = Routing(cast(Any, self), cast(Any, self), cast(Any, self))
        self.gathering = Gathering(cast(Any, self), cast(Any, self), cast(Any, self), self.routing)

    @property
    def others(self) -> list[Member]:
        return [member for name, member in self.members.items() if name != "me"]

    def claimant(self, shard: int) -> Member | None:
        return None

    async def change(self, since: int, limit: float) -> None:
        await asyncio.sleep(0)
        self.next()

    async def part(self, member: Member, path: str, request: bytes, who: Caller) -> tuple[bytes, Sequence[int]]:
        self.asked += 1
        if self.hangs:
            self.under_way.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        return b"theirs", list(self.theirs)

    async def here(self) -> tuple[str, list[int]]:
        return "mine", list(self.mine)

    async def whole(self) -> tuple[str, list[bytes]]:
        return await self.gathering.whole("/x", b"", WHO, self.here)


async def test_what_covers_every_shard_is_an_answer_at_once_also_when_two_speak_for_one() -> None:
    replicas = Replicas([0, 1, 2], [2, 3])
    assert await replicas.whole() == ("mine", [b"theirs"])
    assert replicas.asked == 1


async def test_a_shard_between_two_owners_is_waited_for() -> None:
    replicas = Replicas([0, 1], [3])

    def taken() -> None:
        if replicas.asked == 3:
            replicas.mine.append(2)

    replicas.next = taken
    assert await replicas.whole() == ("mine", [b"theirs"])
    assert replicas.asked == 4


async def test_a_shard_that_nobody_has_for_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PATIENCE", 0.0)
    replicas = Replicas([0, 1], [3])
    with pytest.raises(ApiError) as caught:
        await replicas.whole()
    assert caught.value.reason == ErrorReason.ERROR_REASON_SHARD_MOVED
    assert caught.value.metadata["shard"] == "2" and caught.value.retry_after is not None


async def test_a_replica_that_ends_is_not_asked_in_vain_for_long() -> None:
    replicas = Replicas([0, 1], [2, 3])
    replicas.routing.stopping = True
    replicas.theirs.clear()
    with pytest.raises(ApiError):
        await replicas.whole()
    assert replicas.asked == 1


async def test_one_that_hangs_is_let_go_of_when_it_counts_as_gone_and_its_heir_answers() -> None:
    replicas = Replicas([0, 1], [2, 3])
    replicas.hangs = True
    answer = asyncio.create_task(replicas.whole())
    await replicas.under_way.wait()
    del replicas.members["other"]
    replicas.mine += [2, 3]
    replicas.routing.look()
    assert await answer == ("mine", [])


async def test_a_caller_who_leaves_ends_the_calls_that_were_made_for_it() -> None:
    replicas = Replicas([0, 1], [2, 3])
    replicas.hangs = True
    answer = asyncio.create_task(replicas.whole())
    await replicas.under_way.wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await replicas.ended.wait()


async def test_what_is_wrong_with_the_request_is_said_at_once() -> None:
    replicas = Replicas([0, 1], [2, 3])

    async def refuse() -> Any:
        raise ApiError(ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID)

    replicas.here = refuse  # type: ignore[method-assign]
    with pytest.raises(ApiError) as caught:
        await replicas.whole()
    assert caught.value.reason == ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID
