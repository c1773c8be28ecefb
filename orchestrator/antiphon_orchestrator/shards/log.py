"""The log of one shard in the store: take ownership, append with a fence, trim. `reading.py` reads it back.

Safety rests on compares, not on clocks: an append succeeds only while this epoch owns the shard and the next log key
does not exist. An unclear outcome is settled by sending the identical transaction again (protocol.md §3); the nonce at
the head of a segment tells our own commit from a stranger's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence

from antiphon.store.v1 import journal_pb2 as journal
from antiphon.store.v1 import records_pb2 as records

from .. import telemetry
from ..store import keys
from ..store.port import CommitResult, Compare, Delete, Put, Store, StoreFull, StoreUnavailable, Target, Txn

log = telemetry.logger("store")


_MOST_UNABLE = 15
"""Replicas that are remembered as unable to rebuild a shard, beside the last one."""


class Fenced(Exception):
    """Another replica owns the shard now; everything this one remembers of it is void."""


class ShardLog:
    """One shard's log as seen by one owner. `take` comes first; `next_seq` is the reader's to set before appends."""

    def __init__(self, store: Store, shard: int, replica_id: str) -> None:
        self._store = store
        self.shard = shard
        self._replica_id = replica_id
        # Tells this writer from any other; its own segments differ by their keys.
        self._nonce = secrets.token_bytes(8)
        self._owner_key = keys.shard_owner(shard)
        self._owned: Compare | None = None
        self.no_room: Callable[[StoreFull | None], None] = _nobody
        """Told whenever the store has no room for what is written, and None when it has taken something again."""
        self._unable: tuple[str, ...] = ()
        """Replicas that could not rebuild the shard."""
        self.epoch = 0
        self.next_seq = 1

    async def take(self) -> None:
        """Becomes the owner with the next epoch.

        Raises Fenced when another replica was quicker, or when the one that owns the shard, or that it was handed over
        to, is still there.
        """
        found = await self._store.range(self._owner_key)
        former = found.kvs[0] if found.kvs else None
        owner = records.ShardOwner.FromString(former.value) if former else records.ShardOwner()
        epoch = owner.epoch + 1
        new = records.ShardOwner(replica_id=self._replica_id, epoch=epoch, unable_ids=owner.unable_ids)
        value = new.SerializeToString()
        compares = [Compare(self._owner_key, Target.MOD_REVISION, former.mod_revision if former else 0)]
        claimant = owner.successor_id or owner.replica_id
        if claimant not in ("", self._replica_id):
            compares.append(Compare(keys.replica(claimant), Target.CREATE_REVISION, 0))
        txn = Txn(tuple(compares), (Put(self._owner_key, value),), (self._owner_key,), spare=True)
        result = await settle(self._store, txn)
        if not result.succeeded:
            present = result.observed[self._owner_key]
            if present is None or present.value != value:
                raise Fenced(f"shard {self.shard} is another replica's")
        self.epoch = epoch
        self._unable = tuple(owner.unable_ids)
        self._owned = Compare(self._owner_key, Target.VALUE, value)

    async def owned(self) -> bool:
        """Whether the shard is still this writer's, as the store says now."""
        assert self._owned is not None
        found = (await self._store.range(self._owner_key)).kvs
        return bool(found) and found[0].value == self._owned.value

    async def append(self, segment: Sequence[bytes], audit: Sequence[bytes] = (), audit_first_seq: int = 0) -> int:
        """Commits one segment of records, with the audit records of the turn, and returns its number.

        Raises Fenced and StoreFull, and then it is to be called again with the same; waits while the store is away.
        """
        assert self._owned is not None
        seq = self.next_seq
        key = keys.log(self.shard, seq)
        value = journal.LogSegment(
            nonce=self._nonce, epoch=self.epoch, records=segment, audit=audit, audit_first_seq=audit_first_seq
        ).SerializeToString()
        txn = Txn(
            (self._owned, Compare(key, Target.CREATE_REVISION, 0)),
            (Put(key, value),),
            (self._owner_key, key),
        )
        result = await self._settle(txn, wait_for_space=False)
        if not result.succeeded:
            mine = result.observed[key]
            if mine is None or mine.value != value:
                raise Fenced(f"shard {self.shard}: epoch {self.epoch} is over")
        self.next_seq = seq + 1
        return seq

    def unable_with_us(self) -> tuple[str, ...]:
        """The replicas that could not rebuild the shard, with this one, the newest of them."""
        others = [replica for replica in self._unable if replica != self._replica_id]
        return (*others[-_MOST_UNABLE:], self._replica_id)

    async def hand_over(self, successor_id: str, unable: Sequence[str] | None = None) -> None:
        """Gives the shard to another replica: from now on nothing of ours is accepted any more. `unable`: who cannot
        rebuild it, if that has changed. Raises Fenced."""
        assert self._owned is not None
        owner = records.ShardOwner(
            replica_id=self._replica_id,
            epoch=self.epoch,
            successor_id=successor_id,
            unable_ids=self._unable if unable is None else unable,
        )
        value = owner.SerializeToString()
        result = await settle(self._store, Txn((self._owned,), (Put(self._owner_key, value),), (self._owner_key,)))
        if not result.succeeded:
            present = result.observed[self._owner_key]
            if present is None or present.value != value:
                raise Fenced(f"shard {self.shard}: epoch {self.epoch} is over")

    async def trim(self, below: int) -> None:
        """Deletes the segments below a number; only deletes, so that a full store accepts it. Raises Fenced."""
        await self._fenced(Delete(keys.log(self.shard, 0), keys.log(self.shard, below)))

    async def retain(self, number: int, requests: journal.RequestsRetained) -> None:
        """Keeps request ids beside the log. Raises Fenced."""
        await self._fenced(Put(keys.requests(self.shard, number), requests.SerializeToString()), spare=True)

    async def drop_retained(self, upto: int) -> None:
        """Deletes request ids, up to the value of a number. Raises Fenced."""
        await self._fenced(Delete(keys.requests(self.shard, 0), keys.requests(self.shard, upto + 1)))

    async def replace(self, put: Put, revision: int, beside: Put | Delete) -> int:
        """Puts a key that stands at `revision` (0: absent), with another operation at once; returns its new revision.

        The compare keeps an attempt that lands late, after its repetition and what followed, from taking effect again.
        Raises Fenced and StoreFull.
        """
        assert self._owned is not None
        while True:
            there = Compare(put.key, Target.MOD_REVISION, revision)
            txn = Txn((self._owned, there), (beside, put), (self._owner_key, put.key), spare=True)
            result = await self._settle(txn, wait_for_space=False)
            if result.succeeded:
                return result.revision
            owner = result.observed[self._owner_key]
            if owner is None or owner.value != self._owned.value:
                raise Fenced(f"shard {self.shard}: epoch {self.epoch} is over")
            found = result.observed[put.key]
            revision = found.mod_revision if found is not None else 0
            if found is not None and found.value == put.value:
                return revision  # ours, of a commit whose answer was lost

    async def delete(self, what: Delete) -> None:
        """Deletes what lies beside the log; a full store accepts it. Raises Fenced."""
        await self._fenced(what)

    async def _fenced(self, *operations: Put | Delete, spare: bool = False) -> None:
        assert self._owned is not None
        result = await self._settle(Txn((self._owned,), operations, spare=spare))
        if not result.succeeded:
            raise Fenced(f"shard {self.shard}: epoch {self.epoch} is over")

    async def _settle(self, txn: Txn, *, wait_for_space: bool = True) -> CommitResult:
        result = await settle(self._store, txn, wait_for_space=wait_for_space, no_room=self.no_room)
        self.no_room(None)
        return result


class ShardsFixed(Exception):
    """The store is divided into another number of shards than was asked for."""


async def shard_count(store: Store, wanted: int | None, default: int = 1) -> int:
    """The number of shards of a store, settled when it is new: `wanted`, or the default. Raises ShardsFixed."""
    key = keys.shard_count()
    new = wanted or default
    txn = Txn((Compare(key, Target.CREATE_REVISION, 0),), (Put(key, b"%d" % new),), (key,))
    result = await settle(store, txn)
    found = None if result.succeeded else result.observed[key]
    count = int(found.value) if found is not None else new
    if wanted not in (None, count):
        raise ShardsFixed(f"the store has {count} shards, which is fixed for its life; start with --shards {count}")
    return count


def _nobody(full: StoreFull | None) -> None:
    """Nobody wants to know."""


async def settle(
    store: Store,
    txn: Txn,
    *,
    wait_for_space: bool = True,
    no_room: Callable[[StoreFull | None], None] = _nobody,
) -> CommitResult:
    """Sends the identical transaction until its outcome is definite, however long the store is away.

    A full store is waited for as well, or else raised as StoreFull; `no_room` is told of it.
    """
    wait = 0.01
    while True:
        try:
            return await store.commit(txn)
        except (StoreUnavailable, StoreFull) as error:
            if isinstance(error, StoreFull):
                no_room(error)
                if not wait_for_space:
                    raise
            cause = str(error)
        if wait >= 1.0:
            telemetry.tell_seldom(log.error, "store_takes_no_writes", cause=cause)
        await asyncio.sleep(wait * (0.5 + random.random()))
        wait = min(wait * 2, 1.0)
