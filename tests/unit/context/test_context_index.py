"""The index agrees with the store, however often and in whatever order it is told of changes."""

from __future__ import annotations

from antiphon_orchestrator.context.index import Index, Known, namespace_of
from antiphon_orchestrator.store import keys
from hypothesis import given
from hypothesis import strategies as st

KEYS = [keys.context(namespace, "namespace", key) for namespace in ("a", "b") for key in ("x", "y", "z")]

Change = tuple[int, bytes, int, int]
"""Revision, key, bytes (0: deleted), expire time."""


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    sizes = st.integers(0, 50)
    changes = draw(st.lists(st.tuples(st.sampled_from(KEYS), sizes, st.integers(0, 20)), max_size=30))
    return [(number, *change) for number, change in enumerate(changes, 1)]


def tell(index: Index, change: Change) -> None:
    revision, key, size, expire_time = change
    if size:
        index.put(key, Known(revision, size, expire_time))
    else:
        index.delete(key, revision)


def standing(history: list[Change]) -> dict[bytes, Change]:
    latest = {change[1]: change for change in history}
    return {key: change for key, change in latest.items() if change[2]}


@given(histories(), st.data())
def test_usage_is_what_stands_however_often_a_change_is_told(history: list[Change], data: st.DataObject) -> None:
    index = Index()
    for position, change in enumerate(history):
        tell(index, change)
        for _ in range(data.draw(st.integers(0, 2))):
            # The watch tells late what the writer has told at once.
            tell(index, history[data.draw(st.integers(0, position))])
    for change in history:  # the watch has caught up
        tell(index, change)
    there = standing(history)
    for namespace in (b"a", b"b"):
        sizes = [change[2] for key, change in there.items() if namespace_of(key) == namespace]
        assert index.usage(namespace) == (len(sizes), sum(sizes))


@given(histories(), st.integers(0, 25), st.integers(1, 5))
def test_what_has_ended_is_told_once_soonest_first_and_never_before(
    history: list[Change], now: int, batch: int
) -> None:
    index = Index()
    for change in history:
        tell(index, change)
    told = []
    while found := index.due(now, batch):
        assert len(found) <= batch
        told += found
    assert [known.expire_time for _, known in told] == sorted(known.expire_time for _, known in told)
    ended = {key for key, change in standing(history).items() if 0 < change[3] <= now}
    assert {key for key, _ in told} == ended and len(told) == len(ended)


def test_a_key_that_is_written_again_and_again_leaves_a_bounded_trace() -> None:
    index = Index()
    for revision in range(1, 10_000):
        index.put(KEYS[0], Known(revision, 10, 1_000_000 + revision))
    assert len(index._due) <= 2 + 64 + 1
    assert index.due(2_000_000, 10) == [(KEYS[0], Known(9_999, 10, 1_009_999))]


def test_reserved_room_counts_while_it_is_reserved() -> None:
    index = Index()
    index.put(KEYS[0], Known(1, 10, 0))
    with index.reserved(KEYS[1], 5), index.reserved(KEYS[0], 12):
        assert index.usage(b"a") == (2, 17)
    assert index.usage(b"a") == (1, 10)


def test_above_a_number_the_oldest_are_told_until_so_many_are_left() -> None:
    index = Index()
    for number, key in enumerate(KEYS, 1):
        index.put(key, Known(number, 1, 100 - number))
    assert [key for key, _ in index.oldest(4)] == [KEYS[5], KEYS[4]]
    assert index.oldest(6) == []
