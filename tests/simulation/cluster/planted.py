"""Faults for the simulation to find: each takes one rule out of the real code, or breaks it.

Whoever changes the simulation proves with them that it still sees. A fault is found when a world ends with a violation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from antiphon_orchestrator.shards import asking, log, recovery
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.host import Host
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.store import CommitResult, Compare, Put, Store, StoreUnavailable, Target, Txn, keys
from antiphon_sidecar.inflight import Inflight

_settle = log.settle


def _without(dropped: Callable[[Compare], bool]) -> Any:
    """`settle` of transactions that lack some of their compares."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        compares = tuple(compare for compare in txn.compares if not dropped(compare))
        return await _settle(store, replace(txn, compares=compares), **options)

    return patch.object(log, "settle", settle)


def no_epoch_compare() -> Any:
    """Appends do not ask who owns the shard."""
    return _without(lambda compare: compare.target is Target.VALUE)


def takeover_before_the_lease_ended() -> Any:
    """A shard is taken although its owner's marker is there."""
    return _without(lambda compare: compare.key.startswith(keys.REPLICAS))


def no_nonce() -> Any:
    """A segment that is there is taken for one's own, whoever wrote it."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        result = await _settle(store, txn, **options)
        put = txn.ops[0]
        if not result.succeeded and isinstance(put, Put) and put.key.startswith(keys.LOG):
            return replace(result, succeeded=result.observed[put.key] is not None)
        return result

    return patch.object(log, "settle", settle)


def unclear_counts_as_committed() -> Any:
    """A commit without an answer is not sent again."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        try:
            return await store.commit(txn)
        except StoreUnavailable:
            return CommitResult(True, 0, {})

    return patch.object(log, "settle", settle)


@contextmanager
def acts_before_the_commit() -> Iterator[None]:
    """A turn is released while its segment is on its way."""
    append = ShardLog.append
    last: dict[ShardLog, asyncio.Task[Any]] = {}

    async def after(before: asyncio.Task[Any] | None, log_: ShardLog, *arguments: Any) -> None:
        if before is not None:
            await before
        await append(log_, *arguments)

    async def at_once(log_: ShardLog, *arguments: Any) -> int:
        before = last.get(log_)
        if before is not None and before.done():
            before.result()
        last[log_] = asyncio.create_task(after(before, log_, *arguments))
        return log_.next_seq

    with patch.object(ShardLog, "append", at_once):
        yield


def not_told() -> Any:
    """Nobody tells a replica that a shard is another's; only its next write would."""
    return patch.object(Host, "told", lambda host, number, epoch: None)


@contextmanager
def sidecar_ignores_epochs() -> Iterator[None]:
    """Offers of any owner are taken."""
    offer = Inflight.offer

    def any_epoch(
        inflight: Inflight, link: Any, seat: str, attempt_id: str, shard: int, epoch: int, *arguments: Any
    ) -> None:
        claim = inflight._claims.get(shard)
        newest = epoch if claim is None else max(epoch, claim.epoch)
        offer(inflight, link, seat, attempt_id, shard, newest, *arguments)

    with patch.object(Inflight, "offer", any_epoch):
        yield


@contextmanager
def adopted_attempts_run_again() -> Iterator[None]:
    """A new owner gives up what runs instead of asking for it."""
    resume = Shard.resume

    def gives_up(shard: Shard) -> None:
        resume(shard)
        shard.inbox.extend(i.SidecarGone(incarnation) for incarnation in sorted(shard.incarnations()))

    with patch.object(Shard, "resume", gives_up):
        yield


@contextmanager
def requests_forgotten() -> Iterator[None]:
    """A new owner does not know which requests were accepted."""
    remember = recovery._remember

    def forgets(shard: Shard, entry: Any, seq: int) -> None:
        remember(shard, entry, seq)
        del shard.requests[entry.key]
        shard.requests[b"\0" + entry.key] = (entry.run.run_id, b"")
        entry.key = b"\0" + entry.key

    with patch.object(recovery, "_remember", forgets):
        yield


@contextmanager
def trims_too_far() -> Iterator[None]:
    """The segment that is still needed goes as well."""
    trim = ShardLog.trim

    async def further(log_: ShardLog, below: int) -> None:
        await trim(log_, below + 1)

    with patch.object(ShardLog, "trim", further):
        yield


@contextmanager
def watch_skips() -> Iterator[None]:
    """A watcher that comes back misses an event."""
    watch = asking.watch

    def skips(runs: Any, turn: Any, item: i.Watch) -> None:
        watch(runs, turn, i.Watch(item.run_id, item.cursor + bool(item.cursor), item.watcher, item.sink))

    with patch.object(asking, "watch", skips):
        yield


FIRST: Mapping[str, int] = MappingProxyType(
    {"not_told": 90, "sidecar_ignores_epochs": 40, "adopted_attempts_run_again": 80, "no_nonce": 30}
)
"""Seeds at which to begin to look for what shows itself seldom."""

FAULTS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        fault.__name__: fault
        for fault in (
            no_epoch_compare,
            takeover_before_the_lease_ended,
            no_nonce,
            unclear_counts_as_committed,
            acts_before_the_commit,
            not_told,
            sidecar_ignores_epochs,
            adopted_attempts_run_again,
            requests_forgotten,
            trims_too_far,
            watch_skips,
        )
    }
)
