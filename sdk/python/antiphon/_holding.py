"""Holding a claim for as long as a block of code runs.

It is renewed at a third of its time. When it is lost, whatever the reason, the block is cancelled and `ClaimLost`
raised in its place, as `asyncio.timeout` does with its own: what the claim protects must not go on. Writes that name
the claim are refused by then anyway; that is what makes it safe, not the cancellation.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Protocol

from antiphon.v1 import context_pb2, context_service_pb2

from ._entries import scope_of
from ._errors import AntiphonError, RetryableError, error_of
from ._reasons import ClaimHeld, ClaimLost

_LOOK = 0.25
"""Seconds between two tries to take a claim that somebody holds."""


class Claims(Protocol):
    """Whoever asks the orchestrator: a client, or a task through its sidecar."""

    async def acquire(self, request: context_service_pb2.AcquireClaimRequest) -> context_pb2.Claim:
        """Take it. Raises `ClaimHeld`."""
        ...

    async def renew(self, request: context_service_pb2.RenewClaimRequest) -> context_pb2.Claim:
        """Keep it. Raises `ClaimLost`."""
        ...

    async def release(self, request: context_service_pb2.ReleaseClaimRequest) -> None:
        """Give it up."""
        ...


class Holding:
    """Use it with `async with`, which gives the `Claim` to name in puts and deletes."""

    def __init__(self, claims: Claims, name: str, scope: str, ttl: timedelta, wait: timedelta) -> None:
        self._claims = claims
        self._request = context_service_pb2.AcquireClaimRequest(
            request_id=uuid.uuid4().hex, scope=scope_of(scope), name=name
        )
        self._request.ttl.FromTimedelta(ttl)
        self._ttl = ttl
        self._wait = wait
        self._claim = context_pb2.Claim()
        self._owner: asyncio.Task[object] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost: AntiphonError | None = None
        self.held: Callable[[Holding], None] = lambda holding: None
        """Called once it is held."""
        self.forget: Callable[[], object] = lambda: None
        """Called when it is held no more, however it ended."""

    @property
    def reference(self) -> context_pb2.ClaimReference:
        """What is held; empty before."""
        return self._claim.claim

    async def __aenter__(self) -> context_pb2.Claim:
        self._owner = asyncio.current_task()
        assert self._owner is not None
        end = asyncio.get_running_loop().time() + self._wait.total_seconds()
        while True:
            try:
                self._claim = await self._claims.acquire(self._request)
                break
            except ClaimHeld:
                if asyncio.get_running_loop().time() >= end:
                    raise
                await asyncio.sleep(_LOOK)
        self.held(self)
        self._keeper = asyncio.create_task(self._keep())
        return self._claim

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper is not None and self._owner is not None
        self._keeper.cancel()
        await asyncio.wait((self._keeper,))
        self.forget()
        if self._lost is not None:
            if kind is asyncio.CancelledError and self._owner.uncancel() == 0:
                raise self._lost from None
            if kind is None:
                raise self._lost
            return
        await self._claims.release(context_service_pb2.ReleaseClaimRequest(claim=self.reference))

    def lose(self) -> None:
        """The orchestrator says that it is held no more."""
        if self._lost is None and self._owner is not None:
            text = f"claim {self.reference.name} is not held any more"
            self._lost = error_of("CLAIM_LOST", text, metadata={"claim": self.reference.name})
            self._owner.cancel()

    async def _keep(self) -> None:
        request = context_service_pb2.RenewClaimRequest(claim=self.reference)
        request.ttl.FromTimedelta(self._ttl)
        while self._lost is None:
            await asyncio.sleep(self._ttl.total_seconds() / 3)
            try:
                async with asyncio.timeout(max(0.1, self._left().total_seconds())):
                    self._claim.CopyFrom(await self._claims.renew(request))
            except ClaimLost:
                self.lose()
            except (RetryableError, TimeoutError):
                if self._left() <= timedelta(0):
                    self.lose()

    def _left(self) -> timedelta:
        return self._claim.expire_time.ToDatetime(UTC) - datetime.now(UTC)
