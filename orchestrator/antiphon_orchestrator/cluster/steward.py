"""Carries out which shards this replica takes and gives away; looks again whenever the membership changes.

Each shard lives in a task of its own: one that cannot be rebuilt, or that is lost, holds up no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection

from .. import telemetry
from ..shards.host import Host, RecoveryFailed, Stumbled
from ..store.port import StoreUnavailable
from .assignment import assigned, decide
from .membership import Membership, clock

log = telemetry.logger("cluster")

LOOK = 0.5
"""Seconds after which it looks again although nothing has changed: time, too, changes what is to be done."""

PAUSE = 2.0
"""Seconds before a shard that could not be rebuilt is tried again."""


class Steward:
    """`run` once the membership is joined. `begun` is set when the shards it took first are rebuilt, or another's."""

    def __init__(self, host: Host, membership: Membership, changed: Callable[[], None]) -> None:
        """`changed` is told whenever the membership has changed, and every LOOK besides."""
        self._host = host
        self._membership = membership
        self._changed = changed
        self._trying: set[int] = set()
        self._first: set[int] | None = None
        self.begun = asyncio.Event()
        host.heir = self._heir
        membership.returned = self._tell_owners

    async def run(self) -> None:
        """Until cancelled. Raises RecoveryFailed when there is no other replica that could rebuild the shard."""
        try:
            await self._steer()
        except ExceptionGroup as group:
            failed = group.subgroup(RecoveryFailed)
            if failed is None:
                raise
            raise failed.exceptions[0] from group  # one line for people, whatever the others were doing

    async def _steer(self) -> None:
        membership, host = self._membership, self._host
        async with asyncio.TaskGroup() as shards:
            while True:
                seen = membership.changes
                self._changed()
                self._tell_owners()
                held = self._trying.union(host.held)
                moves = decide(
                    membership.replica_id, host.shard_count, membership.members, membership.owners, held, clock()
                )
                for shard in moves.take:
                    self._trying.add(shard)
                    shards.create_task(self._own(shard), name=f"shard-{shard}")
                for shard, successor in moves.give:
                    host.hand_over(shard, successor)
                if not self.begun.is_set():
                    self._first = set(moves.take) if self._first is None else self._first
                    self._first.difference_update(shard.index for shard in host.shards)
                    if not self._first:
                        self.begun.set()
                await membership.change(seen, LOOK if self.begun.is_set() else 0.01)

    def _tell_owners(self) -> None:
        """What is another's by now is let go of."""
        for shard, owner in self._membership.owners.items():
            self._host.told(shard, owner.epoch)

    async def left(self) -> None:
        """Returns once this replica, which has said that it leaves, has no shard, or nobody is there to take one."""
        membership = self._membership
        while self._host.held and any(not other.leaving for other in membership.others):
            await membership.change(membership.changes, LOOK / 10)

    async def _own(self, shard: int) -> None:
        try:
            await self._host.own(shard)
            self._begun_without(shard)
            await self._membership.refresh(shard)
        except RecoveryFailed as error:
            if not self._membership.others:
                raise
            self._begun_without(shard)
            log.error("shard_not_rebuilt", shard=shard, cause=str(error))
            await asyncio.sleep(PAUSE * (0.5 + random.random()))
        except Stumbled:
            await asyncio.sleep(LOOK * random.random())  # the host has said why
        except StoreUnavailable as error:
            self._begun_without(shard)
            log.warning("shard_let_go", shard=shard, cause=str(error))
            await asyncio.sleep(PAUSE * (0.5 + random.random()))
        finally:
            self._trying.discard(shard)

    def _heir(self, shard: int, unable: Collection[str]) -> str | None:
        """Who is there, stays, and has not failed to rebuild a shard yet."""
        others = [other.replica_id for other in self._membership.others if not other.leaving]
        return assigned(shard, [replica for replica in others if replica not in unable])

    def _begun_without(self, shard: int) -> None:
        """One that is another's, or cannot be rebuilt now, holds up no other."""
        if self._first is not None:
            self._first.discard(shard)
