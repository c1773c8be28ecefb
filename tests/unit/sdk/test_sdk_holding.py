"""Holding a claim: renewed while the block runs, and the block ends when the claim does."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from antiphon import ClaimHeld, ClaimLost, PolicyDenied, Unavailable
from antiphon._errors import AntiphonError, error_of
from antiphon._holding import Holding
from antiphon.v1 import context_pb2, context_service_pb2

SHORT = timedelta(seconds=0.06)


class Orchestrator:
    """Gives every claim that is free; `refusal` answers renewals when it is set."""

    def __init__(self) -> None:
        self.busy = 0
        self.refusal: AntiphonError | None = None
        self.renewed = asyncio.Event()
        self.released: list[int] = []

    async def acquire(self, request: context_service_pb2.AcquireClaimRequest) -> context_pb2.Claim:
        if self.busy:
            self.busy -= 1
            raise error_of("CLAIM_HELD", "held")
        claim = context_pb2.Claim()
        claim.claim.name, claim.claim.fence = request.name, 7
        return claim

    async def renew(self, request: context_service_pb2.RenewClaimRequest) -> context_pb2.Claim:
        if self.refusal is not None:
            raise self.refusal
        self.renewed.set()
        return context_pb2.Claim(claim=request.claim)

    async def release(self, request: context_service_pb2.ReleaseClaimRequest) -> None:
        self.released.append(request.claim.fence)


def hold(orchestrator: Orchestrator, wait: timedelta = timedelta(0)) -> Holding:
    return Holding(orchestrator, "plan", "namespace", SHORT, wait)


async def test_it_is_renewed_while_the_block_runs_and_released_after_it() -> None:
    orchestrator = Orchestrator()
    async with asyncio.timeout(10), hold(orchestrator) as claim:
        await orchestrator.renewed.wait()
        assert claim.claim.fence == 7 and orchestrator.released == []
    assert orchestrator.released == [7]


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [
        (error_of("CLAIM_LOST", "lost"), ClaimLost),
        (error_of("POLICY_DENIED", "no more"), PolicyDenied),
        (Unavailable("nobody there"), ClaimLost),  # for as long as the claim could have lasted
    ],
)
async def test_when_it_cannot_be_kept_the_block_ends_with_the_reason(
    refusal: AntiphonError, raised: type[AntiphonError]
) -> None:
    orchestrator = Orchestrator()
    orchestrator.refusal = refusal
    with pytest.raises(raised):
        async with asyncio.timeout(10), hold(orchestrator):
            await asyncio.Event().wait()
    assert orchestrator.released == []
    task = asyncio.current_task()
    assert task is not None and not task.cancelling(), "the cancellation was its own and is over"


async def test_the_orchestrators_word_ends_the_block_at_once() -> None:
    holding = hold(Orchestrator())
    with pytest.raises(ClaimLost):
        async with asyncio.timeout(10), holding:
            asyncio.get_running_loop().call_soon(holding.lose)
            await asyncio.Event().wait()


async def test_an_error_of_the_block_and_a_cancellation_from_outside_pass() -> None:
    orchestrator = Orchestrator()
    with pytest.raises(ValueError, match="mine"):
        async with hold(orchestrator):
            raise ValueError("mine")
    inside = asyncio.Event()

    async def wait() -> None:
        async with hold(orchestrator):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert orchestrator.released == [7, 7]


async def test_one_that_is_held_is_waited_for_as_long_as_was_said() -> None:
    orchestrator = Orchestrator()
    orchestrator.busy = 2
    async with hold(orchestrator, wait=timedelta(seconds=30)):
        pass
    orchestrator.busy = 1
    with pytest.raises(ClaimHeld):
        async with hold(orchestrator):
            pass
