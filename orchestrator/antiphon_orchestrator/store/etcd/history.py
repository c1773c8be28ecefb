"""How much history a cluster keeps: compacted by us, since etcd by itself forgets nothing.

All replicas follow the same marks: a key that one of them puts when anything else has changed. History is forgotten
before a mark of some age, not at any other revision, because members before 3.4.34 and 3.5.15 lose a delete that
happened at exactly the revision that is compacted. The fuller the database, the less is kept: a watch that was away for
longer is told so, and lists again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from .. import keys
from ..port import Compare, Put, Store, Target, Txn

KEPT = ((0.1, 600.0), (0.25, 60.0))
"""Seconds of history that are kept while no more than this share of the quota is in use."""

LEAST_KEPT = 10.0
"""Seconds that are kept however full it is."""


class History:
    """Keeps the history of a store within bounds. `quota`: its bytes. `clock`: monotonic seconds."""

    def __init__(self, store: Store, quota: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._quota = quota
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self._forgotten = 0

    async def look(self) -> None:
        """Sets a mark if there is something to mark, and forgets what is too old. Raises StoreError."""
        now = self._clock()
        mark = await self._mark()
        if not self._marks or self._marks[-1][1] != mark:
            self._marks.append((now, mark))
        oldest_kept = now - self._kept(await self._store.size())
        forget = 0
        for moment, mark in self._marks:
            if moment <= oldest_kept:
                forget = mark
        if forget > self._forgotten:
            await self._store.compact(forget)
            self._forgotten = forget
        while self._marks[0][1] < self._forgotten:
            self._marks.popleft()

    async def _mark(self) -> int:
        """The newest mark; a new one if anything was written since, and by nobody else since we looked last."""
        found = await self._store.range(keys.STORE_MARK)
        there = found.kvs[0].mod_revision if found.kvs else 0
        known = self._marks[-1][1] if self._marks else 0
        if there > known or there == found.revision:
            return there
        unchanged = Compare(keys.STORE_MARK, Target.MOD_REVISION, there)
        result = await self._store.commit(Txn((unchanged,), (Put(keys.STORE_MARK, b""),)))
        return result.revision if result.succeeded else there

    def _kept(self, in_use: int) -> float:
        for share, seconds in KEPT:
            if in_use <= share * self._quota:
                return seconds
        return LEAST_KEPT
