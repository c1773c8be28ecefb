"""Any transactions, however they are grouped, do what a dictionary would do with them one after the other."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator.store import (
    UP_TO_LAST,
    CommitResult,
    Compare,
    Delete,
    EventType,
    KeyValue,
    Operator,
    Put,
    Target,
    Txn,
    WatchEvent,
)
from backends import Backend, EtcdBackend, SqliteBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEYS = st.sampled_from([b"a", b"b", b"b/1", b"c", b"log/1", b"log/2"])
VALUES = st.sampled_from([b"", b"x", b"y" * 600])


class Model:
    """The rules of the port over a dictionary, with no thought for speed."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.keys: dict[bytes, KeyValue] = {}
        self.events: list[WatchEvent] = []

    def commit(self, txn: Txn) -> CommitResult:
        if not all(map(self.holds, txn.compares)):
            return CommitResult(False, self.revision, {key: self.keys.get(key) for key in txn.otherwise_get})
        changes: list[WatchEvent] = []
        for op in txn.ops:
            if isinstance(op, Put):
                old = self.keys.get(op.key)
                created = old.create_revision if old else self.revision + 1
                new = KeyValue(op.key, op.value, created, self.revision + 1, old.version + 1 if old else 1, op.lease)
                self.keys[op.key] = new
                changes.append(WatchEvent(EventType.PUT, new))
            else:
                for key in sorted(self.keys):
                    end = op.range_end or op.key + b"\0"
                    if op.key <= key and (end == UP_TO_LAST or key < end):
                        del self.keys[key]
                        changes.append(WatchEvent(EventType.DELETE, KeyValue(key, b"", 0, self.revision + 1, 0)))
        self.revision += bool(changes)
        self.events += [event for event in changes if not event.kv.key.startswith(b"log/")]
        return CommitResult(True, self.revision, {})

    def holds(self, compare: Compare) -> bool:
        found = self.keys.get(compare.key)
        if found is None and compare.target is Target.VALUE:
            return False
        left: Any = getattr(found, compare.target.value, 0)
        right: Any = compare.value
        holds = {
            Operator.EQUAL: lambda: left == right,
            Operator.NOT_EQUAL: lambda: left != right,
            Operator.GREATER: lambda: left > right,
            Operator.LESS: lambda: left < right,
        }
        return bool(holds[compare.op]())


def compares() -> st.SearchStrategy[Compare]:
    numbers = st.builds(
        Compare,
        KEYS,
        st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION]),
        st.integers(0, 6),
        st.sampled_from(Operator),
    )
    return numbers | st.builds(Compare, KEYS, st.just(Target.VALUE), VALUES, st.sampled_from(Operator))


@st.composite
def txns(draw: st.DrawFn) -> Txn:
    deletes = draw(st.lists(st.builds(Delete, KEYS, st.just(b"") | KEYS | st.just(UP_TO_LAST)), max_size=2))
    covered = [(d.key, d.range_end or d.key + b"\0") for d in deletes]
    puts = [
        put
        for put in draw(st.lists(st.builds(Put, KEYS, VALUES), max_size=3, unique_by=lambda put: put.key))
        if not any(start <= put.key and (end == UP_TO_LAST or put.key < end) for start, end in covered)
    ]
    every: list[Put | Delete] = [*deletes, *puts]
    ops = draw(st.permutations(every))
    conditions = draw(st.lists(compares(), max_size=2))
    return Txn(tuple(conditions), tuple(ops), tuple(draw(st.lists(KEYS, max_size=2))))


GROUPS = st.lists(st.lists(txns(), min_size=1, max_size=8), min_size=1, max_size=6)


async def follow(backend: Backend, groups: list[list[Txn]], reopen_at: int, *, together: bool) -> None:
    """Holds a new store to the model. `together`: a group's transactions are sent at once, and keep their order."""
    model = Model(backend.revision)
    for part in (groups[:reopen_at], groups[reopen_at:]):
        # What is watched here has one-letter keys, beside which the defaults are prefixes without history.
        async with backend.open(unwatched=()) as store:
            for group in part:
                if together:
                    results = await asyncio.gather(*map(store.commit, group))
                else:
                    results = [await store.commit(txn) for txn in group]
                assert list(results) == [model.commit(txn) for txn in group]
            found = await store.range(b"\0", UP_TO_LAST)
            assert found.revision == model.revision
            assert list(found.kvs) == [model.keys[key] for key in sorted(model.keys)]
            seen: list[WatchEvent] = []
            for prefix in (b"a", b"b", b"c"):
                watch = store.watch(prefix, backend.first)
                expected = [event for event in model.events if event.kv.key.startswith(prefix)]
                told: list[WatchEvent] = []
                while len(told) < len(expected):
                    told += (await anext(watch)).events
                assert told == expected
                await watch.aclose()
                seen += expected
            assert len(seen) == len(model.events)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(0, 6))
def test_grouped_transactions_do_what_single_ones_would(groups: list[list[Txn]], reopen_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(follow(SqliteBackend(Path(folder) / "store.db"), groups, reopen_at, together=True))


@pytest.mark.parametrize("version", ["debian", "current"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS, reopen_at=st.integers(0, 6))
def test_etcd_does_with_any_transactions_what_the_embedded_store_does(
    request: pytest.FixtureRequest, version: str, groups: list[list[Txn]], reopen_at: int
) -> None:
    backend = EtcdBackend(request.getfixturevalue(f"etcd_{version}"))
    asyncio.run(follow(backend, groups, reopen_at, together=False))
