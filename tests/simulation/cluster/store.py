"""The store as a model, and the way to it.

`StoreModel` is the port's contract over a dictionary: one revision a commit, leases that end their keys, history that
can be forgotten. tests/store holds it to real etcd. `StoreClient` is what a replica has of it: an implementation of the
port whose commits may be lost on the way, may lose their answer, or may land long after they were given up, as those of
a real cluster do. What a client does after that is the product's business.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncGenerator, Callable
from typing import Any

from antiphon_orchestrator.store import (
    UP_TO_LAST,
    CommitResult,
    Compacted,
    Compare,
    Delete,
    EventType,
    KeyValue,
    LeaseNotFound,
    Operator,
    Put,
    RangeResult,
    StoreUnavailable,
    Target,
    Txn,
    WatchBatch,
    WatchEvent,
)
from antiphon_orchestrator.store.port import check, covers

from tests.simulation.cluster.loop import NOBODY, Process
from tests.simulation.cluster.network import Network

CALL = 4.0
"""Seconds after which a client gives one call up, as store.etcd.wire does."""

READ = 10.0
"""Seconds for which it repeats what changes nothing."""

STORE = "store"
"""The host of the store."""


class StoreModel:
    """What is kept. `revision`: where it begins. `unwatched`: prefixes without history."""

    def __init__(self, revision: int = 1, unwatched: tuple[bytes, ...] = ()) -> None:
        self.revision = revision
        self.compacted = 0
        """Nothing before this revision can be watched any more."""
        self.committed: Callable[[Txn, int], None] = lambda txn, revision: None
        """Told every transaction that succeeds, before its changes are there."""
        self._unwatched = unwatched
        self._kvs: dict[bytes, KeyValue] = {}
        self._keys: list[bytes] = []
        self._events: list[WatchEvent] = []
        self._leases: dict[int, tuple[int, float]] = {}
        self._waiting: list[tuple[bytes, Callable[[], None]]] = []

    def get(self, key: bytes) -> KeyValue | None:
        return self._kvs.get(key)

    def commit(self, txn: Txn) -> CommitResult:
        """As `Store.commit`. Raises InvalidTxn, LeaseNotFound."""
        check(txn)
        if not all(map(self._holds, txn.compares)):
            return CommitResult(False, self.revision, {key: self._kvs.get(key) for key in txn.otherwise_get})
        for op in txn.ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseNotFound(f"lease {op.lease} does not exist or has expired")
        self.committed(txn, self.revision + 1)
        changes: list[WatchEvent] = []
        for op in txn.ops:
            if isinstance(op, Put):
                changes.append(self._put(op))
            else:
                changes += map(self._delete, self._covered(op))
        self._note(changes)
        return CommitResult(True, self.revision, {})

    def range(self, start: bytes, end: bytes = b"", limit: int = 0) -> RangeResult:
        """As `Store.range`."""
        found = self._covered(Delete(start, end))
        cut = found[:limit] if limit else found
        return RangeResult(tuple(self._kvs[key] for key in cut), self.revision, len(cut) < len(found))

    def since(self, prefix: bytes, revision: int, before: bool = True) -> list[WatchEvent]:
        """The changes under a prefix from a revision on, with what was there before or not. Raises Compacted."""
        if revision < self.compacted:
            raise Compacted(self.compacted)
        first = bisect.bisect_left(self._events, revision, key=lambda event: event.kv.mod_revision)
        found = [event for event in self._events[first:] if event.kv.key.startswith(prefix)]
        return found if before else [WatchEvent(event.type, event.kv) for event in found]

    def wait(self, prefix: bytes, wake: Callable[[], None]) -> None:
        """Wakes whoever waits for the next change under a prefix, once."""
        self._waiting.append((prefix, wake))

    def compact(self, revision: int) -> None:
        """As `Store.compact`."""
        if revision > self.revision:
            raise ValueError(f"revision {revision} is in the future; the store is at {self.revision}")
        self.compacted = max(self.compacted, revision)

    # Leases. Time comes in as seconds.

    def grant(self, lease: int, seconds: int, now: float) -> None:
        self._leases[lease] = (seconds, now + seconds)

    def keep_alive(self, lease: int, now: float) -> None:
        """As `Store.keep_alive`."""
        if lease not in self._leases:
            raise LeaseNotFound(f"lease {lease} does not exist or has expired")
        seconds, _ = self._leases[lease]
        self._leases[lease] = (seconds, now + seconds)

    def revoke(self, lease: int) -> None:
        """As `Store.revoke`."""
        if self._leases.pop(lease, None) is None:
            raise LeaseNotFound(f"lease {lease} does not exist or has expired")
        self._note([self._delete(key) for key in list(self._keys) if self._kvs[key].lease == lease])

    def expire(self, now: float) -> None:
        """Ends the leases whose time is over."""
        for lease, (_, ends) in list(self._leases.items()):
            if ends <= now:
                self.revoke(lease)

    # Inside.

    def _put(self, op: Put) -> WatchEvent:
        old = self._kvs.get(op.key)
        if old is None:
            bisect.insort(self._keys, op.key)
        created, version = (old.create_revision, old.version) if old is not None else (self.revision + 1, 0)
        new = self._kvs[op.key] = KeyValue(op.key, op.value, created, self.revision + 1, version + 1, op.lease)
        return WatchEvent(EventType.PUT, new, old.value if old is not None else None)

    def _delete(self, key: bytes) -> WatchEvent:
        old = self._kvs.pop(key)
        self._keys.remove(key)
        return WatchEvent(EventType.DELETE, KeyValue(key, b"", 0, self.revision + 1, 0), old.value)

    def _note(self, changes: list[WatchEvent]) -> None:
        self.revision += bool(changes)
        fresh = [event for event in changes if not event.kv.key.startswith(self._unwatched)]
        self._events += fresh
        if not fresh:
            return
        waiting, self._waiting = self._waiting, []
        for prefix, wake in waiting:
            if any(event.kv.key.startswith(prefix) for event in fresh):
                wake()
            else:
                self._waiting.append((prefix, wake))

    def _covered(self, range_: Delete) -> list[bytes]:
        if not range_.range_end:
            return [range_.key] if range_.key in self._kvs else []
        first = bisect.bisect_left(self._keys, range_.key)
        last = len(self._keys) if range_.range_end == UP_TO_LAST else bisect.bisect_left(self._keys, range_.range_end)
        return [key for key in self._keys[first:last] if covers(range_, key)]

    def _holds(self, compare: Compare) -> bool:
        found = self._kvs.get(compare.key)
        if found is None and compare.target is Target.VALUE:
            return False
        left: Any = getattr(found, compare.target.value, 0)
        right: Any = compare.value
        if compare.op is Operator.EQUAL:
            return bool(left == right)
        if compare.op is Operator.NOT_EQUAL:
            return bool(left != right)
        return bool(left > right if compare.op is Operator.GREATER else left < right)


class Weather:
    """How it goes with calls to the store, as shares of all: lost before they are there, their answer lost, landing
    after they were given up. `slow`: the most seconds that a usual call takes."""

    def __init__(self) -> None:
        self.lost = 0.0
        self.unanswered = 0.0
        self.late = 0.0
        self.slow = 0.004


class StoreClient:
    """One process' way to the store; implements `Store`."""

    max_bytes: int | None = None
    shared = True

    def __init__(self, model: StoreModel, network: Network, process: Process, weather: Weather) -> None:
        self._model = model
        self._network = network
        self._process = process
        self._weather = weather
        self._loop = process.loop

    async def commit(self, txn: Txn) -> CommitResult:
        return await self._call(lambda: self._model.commit(txn), once=True)

    def under_way(self) -> None:
        """It takes all at the same time."""

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        return await self._again(lambda: self._model.range(start, end, limit))

    async def watch(
        self, prefix: bytes, from_revision: int = 0, *, before: bool = False
    ) -> AsyncGenerator[WatchBatch, None]:
        model, network, host = self._model, self._network, self._process.host
        revision = from_revision or model.revision + 1
        while True:
            if not model.since(prefix, revision):
                news: asyncio.Future[None] = self._loop.create_future()
                model.wait(prefix, lambda news=news: None if news.done() else news.set_result(None))  # type: ignore[misc]
                await news
            await asyncio.sleep(self._pause() + network.rng.choice([0.0, 0.01, 0.02, 0.3]))
            while network.is_cut(STORE, host) or network.is_cut(host, STORE):  # noqa: ASYNC110 - a network has no event
                await asyncio.sleep(0.2)
            events = model.since(prefix, revision, before)
            revision = model.revision + 1
            yield WatchBatch(tuple(events), events[-1].kv.mod_revision)

    async def grant(self, ttl_seconds: int) -> int:
        lease = self._network.rng.getrandbits(62) + 1
        await self._again(lambda: self._grant(lease, ttl_seconds))
        return lease

    def _grant(self, lease: int, seconds: int) -> None:
        self._model.grant(lease, seconds, self._loop.now)
        self._look(seconds)

    def _look(self, seconds: float) -> None:
        """The store itself looks whether the lease is over."""
        self._loop.call_later(seconds + 0.001, lambda: self._model.expire(self._loop.now), context=NOBODY)

    async def keep_alive(self, lease: int) -> None:
        def renew() -> None:
            self._model.keep_alive(lease, self._loop.now)
            self._look(5)

        await self._again(renew)

    async def revoke(self, lease: int) -> None:
        await self._again(lambda: self._model.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._again(lambda: self._model.compact(revision))

    async def size(self) -> int:
        return 0

    async def run(self) -> None:
        """Nothing to do beside its callers."""

    async def close(self) -> None:
        """Nothing is kept open."""

    def _pause(self) -> float:
        return self._network.rng.random() * self._weather.slow

    async def _again(self, act: Callable[[], Any]) -> Any:
        """As store.etcd.wire does what may be done twice."""
        end = self._loop.now + READ
        while True:
            try:
                return await self._call(act, once=False)
            except StoreUnavailable:
                if self._loop.now >= end:
                    raise
            await asyncio.sleep(0.05 + self._network.rng.random())

    async def _call(self, act: Callable[[], Any], *, once: bool) -> Any:
        """One call. Raises StoreUnavailable when there is no answer, whatever has become of it."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        weather, rng, host = self._weather, self._network.rng, self._process.host
        fate = rng.random()
        way = self._pause()
        if once and fate < weather.late:
            way += rng.choice([0.05, 0.5, 3.0, CALL + 1, CALL + 4])
        if self._network.is_cut(host, STORE) or fate > 1 - weather.lost:
            # What is on its way when the way is cut may be lost; it may as well arrive when it is repaired.
            way = rng.choice([0.0, CALL + 0.5, CALL + 3]) if once and fate > 0.5 else 0.0
            if way == 0.0:
                await self._given_up(rng)

        def land() -> None:
            result: Any
            failure: Exception | None = None
            try:
                result = act()
            except Exception as error:
                result, failure = None, error
            unanswered = once and weather.late <= fate < weather.late + weather.unanswered
            if unanswered or self._network.is_cut(STORE, host):
                return
            self._loop.call_later(self._pause(), tell, result, failure, context=NOBODY)

        def tell(result: Any, failure: Exception | None) -> None:
            if not answer.done():
                answer.set_exception(failure) if failure is not None else answer.set_result(result)

        self._loop.call_later(way, land, context=NOBODY)
        try:
            # A leader that goes away is an error at once; one that stands still is noticed by nobody for a while.
            async with asyncio.timeout(CALL if rng.random() < 0.5 else max(0.05, 2 * weather.slow)):
                return await answer
        except TimeoutError:
            raise StoreUnavailable("no answer in time") from None

    async def _given_up(self, rng: Any) -> None:
        await asyncio.sleep(CALL if rng.random() < 0.5 else 0.05)
        raise StoreUnavailable("not reachable")
