"""Leases of the embedded store: which exist and when they end. Memory only, no keys, no I/O, one thread.

The process that granted them is the only one that can use them, so they need not outlive it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .port import LeaseNotFound

_RETRY_SECONDS = 0.1


@dataclass(slots=True)
class _Lease:
    ttl: float
    ends: float


class Leases:
    """`clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[int, _Lease] = {}

    def grant(self, ttl_seconds: int) -> int:
        """Makes a lease. Ids are random, so that one of an earlier process is never mistaken for one of this."""
        if ttl_seconds <= 0:
            raise ValueError(f"a lease needs a positive time, not {ttl_seconds} s")
        lease_id = secrets.randbits(62) + 1
        self._leases[lease_id] = _Lease(ttl_seconds, self._clock() + ttl_seconds)
        return lease_id

    def keep_alive(self, lease_id: int) -> None:
        """Starts the lease's time anew. Raises LeaseNotFound."""
        self.require(lease_id)
        lease = self._leases[lease_id]
        lease.ends = self._clock() + lease.ttl

    def require(self, lease_id: int) -> None:
        """Raises LeaseNotFound unless the lease is live."""
        if lease_id not in self._leases or self._leases[lease_id].ends <= self._clock():
            raise LeaseNotFound(f"lease {lease_id} does not exist or has expired")

    def forget(self, lease_id: int) -> None:
        """Drops a lease whose keys are gone."""
        del self._leases[lease_id]

    def expired(self) -> list[int]:
        """The leases whose time is over and which are not forgotten yet."""
        now = self._clock()
        return [lease_id for lease_id, lease in self._leases.items() if lease.ends <= now]

    def until_next(self) -> float | None:
        """Seconds until a lease expires; a short pause if one could not be ended just now; None without leases."""
        if not self._leases:
            return None
        return max(_RETRY_SECONDS, min(lease.ends for lease in self._leases.values()) - self._clock())
