"""Holding a claim for as long as a block of code runs.

It is renewed at a third of its time. When it is lost, whatever the reason, the block is cancelled and `ClaimLost`
raised in its place, as `asyncio.timeout` does with its own: what the claim protects must not go on. Writes that name
the claim are refused by then anyway; that is what makes it safe, not the cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from antiphon.v1 import context_pb2, context_service_pb2

from ._entries import scope_of
from ._errors import AntiphonError, RetryableError, error_of
from ._reasons import ClaimHeld

_LOOK = 0.25
"""Seconds between two tries to take a claim that somebody holds."""
_RELEASE = 2.0
"""Seconds to give a claim up: it ends by itself, and a handler that was cancelled must not wait for long."""
_log = logging.getLogger("antiphon.claim")


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
        self._cancelling = 0
        self._until = 0.0
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
        self._cancelling = self._owner.cancelling()
        end = asyncio.get_running_loop().time() + self._wait.total_seconds()
        while True:
            try:
                self._until = self._from_now()
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
        self.forget()
        self._keeper.cancel()
        await asyncio.wait((self._keeper,))
        if self._lost is not None:
            # Its own cancellation, unless somebody else cancelled, too: that goes on.
            own = self._owner.uncancel() <= self._cancelling
            if kind is None or (kind is asyncio.CancelledError and own):
                raise self._lost from error
            return
        try:
            async with asyncio.timeout(_RELEASE):
                await self._claims.release(context_service_pb2.ReleaseClaimRequest(claim=self.reference))
        except (AntiphonError, TimeoutError) as problem:
            _log.warning("claim %s was not released and ends by itself: %s", self.reference.name, problem)

    def lose(self, error: AntiphonError | None = None) -> None:
        """It is held no more, as the orchestrator says, or cannot be kept: `error` tells why."""
        if self._lost is None and self._owner is not None:
            text = f"claim {self.reference.name} is not held any more"
            metadata = {"claim": self.reference.name, "fence": str(self.reference.fence)}
            self._lost = error or error_of("CLAIM_LOST", text, metadata=metadata)
            self._owner.cancel()

    async def _keep(self) -> None:
        request = context_service_pb2.RenewClaimRequest(claim=self.reference)
        request.ttl.FromTimedelta(self._ttl)
        while self._lost is None:
            await asyncio.sleep(self._ttl.total_seconds() / 3)
            until = self._from_now()
            try:
                async with asyncio.timeout_at(self._until):
                    self._claim.CopyFrom(await self._claims.renew(request))
                self._until = until
            except (RetryableError, TimeoutError):
                if asyncio.get_running_loop().time() >= self._until:
                    self.lose()
            except AntiphonError as error:
                self.lose(error)

    def _from_now(self) -> float:
        """When the claim ends, at the latest, if it is given or renewed by a request that leaves now; loop time."""
        return asyncio.get_running_loop().time() + self._ttl.total_seconds()
