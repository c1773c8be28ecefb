"""Shared context as the API and the mesh use it: every request of ContextService, asked on somebody's behalf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import Clock

from ..audit import AuditLog
from ..blobs import Blobs
from ..policy import PolicyPort
from ..store.port import Store
from .claims import Claims, Lost
from .entries import Entries
from .gate import Gate
from .index import Index
from .keeper import Ended, Keeper, RunEnded
from .reading import Changes, Reading
from .rules import Quota, Standing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SharedContext:
    """Each method takes the request as it travels and raises ApiError. `load`, then `run` in the task group."""

    def __init__(
        self, store: Store, policy: PolicyPort, audit: AuditLog, blobs: Blobs, quota: Quota, clock: Clock
    ) -> None:
        def now() -> int:
            return (clock.now() - _EPOCH) // timedelta(microseconds=1)

        gate = Gate(policy, audit)
        entries, held, requests = Index(), Index(), Index()
        self._claims = Claims(store, gate, held, quota, now)
        self._entries = Entries(store, gate, self._claims, entries, requests, blobs, quota, now)
        self._reading = Reading(store, gate, self._entries, now)
        self._keeper = keeper = Keeper(store, self._claims, entries, held, requests, clock, now)
        self.load = keeper.load
        self.run = keeper.run
        self.collect = keeper.collect
        self.collect_runs = keeper.collect_runs
        self.get = self._entries.get
        self.value = self._entries.value
        self.put = self._entries.put
        self.delete = self._entries.delete
        self.list = self._reading.list
        self.lineage = self._reading.lineage
        self.next_changes = self._reading.next_changes
        self.acquire = self._claims.acquire
        self.renew = self._claims.renew
        self.release = self._claims.release

    def attempts(self, ended: Ended, run_ended: RunEnded, lost: Lost) -> None:
        """Joins it to whoever knows attempts and runs: are they over, and how to tell them of a lost claim."""
        self._keeper.ended = ended
        self._keeper.run_ended = run_ended
        self._claims.lost = lost

    def watch(self, who: Standing, request: api.WatchEntriesRequest) -> Changes:
        """See `Reading.watch`."""
        return self._reading.watch(who, request)
