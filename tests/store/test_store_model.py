"""Any transactions, however they are grouped, do what a dictionary would do with them one after the other: the model
that tests/simulation stands on as well."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from antiphon_orchestrator.store import (
    UP_TO_LAST,
    Compare,
    Delete,
    Operator,
    Put,
    Target,
    Txn,
    WatchEvent,
)
from backends import Backend, EtcdBackend, SqliteBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.cluster.store import StoreModel

KEYS = st.sampled_from([b"a", b"b", b"b/1", b"c", b"log/1", b"log/2"])
VALUES = st.sampled_from([b"", b"x", b"y" * 600])


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
    model = StoreModel(backend.revision, (b"log/",))
    began = backend.revision + 1
    for part in (groups[:reopen_at], groups[reopen_at:]):
        # What is watched here has one-letter keys, beside which the defaults are prefixes without history.
        async with backend.open(unwatched=()) as store:
            for group in part:
                if together:
                    results = await asyncio.gather(*map(store.commit, group))
                else:
                    results = [await store.commit(txn) for txn in group]
                assert list(results) == [model.commit(txn) for txn in group]
            assert await store.range(b"\0", UP_TO_LAST) == model.range(b"\0", UP_TO_LAST)
            for prefix in (b"a", b"b", b"c"):
                watch = store.watch(prefix, backend.first, before=True)
                expected = model.since(prefix, began)
                told: list[WatchEvent] = []
                while len(told) < len(expected):
                    told += (await anext(watch)).events
                assert told == expected
                await watch.aclose()


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
