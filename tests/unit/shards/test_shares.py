"""Shares of namespaces: by weight, whoever asks for more; nothing is lost and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from antiphon_orchestrator.placement.shares import FairQueue, read_weights
from hypothesis import given
from hypothesis import strategies as st


def filled(weights: dict[str, int], **waiting: int) -> FairQueue:
    queue = FairQueue(weights)
    for namespace, number in waiting.items():
        for one in range(number):
            queue.push(namespace, (0, one), (namespace, one))
    return queue


def test_namespaces_that_all_wait_get_what_their_weights_say() -> None:
    queue = filled({"big": 4, "mid": 2}, big=1000, mid=1000, small=1000)
    taken = Counter(queue.pop()[0] for _ in range(700))
    assert taken == {"big": 400, "mid": 200, "small": 100}


def test_one_who_floods_does_not_keep_another_waiting() -> None:
    queue = filled({}, loud=10_000)
    for _ in range(5_000):
        queue.pop()
    queue.push("quiet", (0, 0), ("quiet", 0))
    assert "quiet" in {queue.pop()[0] for _ in range(2)}


def test_silence_earns_nothing_and_coming_and_going_does_neither() -> None:
    queue = filled({}, loud=1_000)
    for _ in range(500):
        queue.pop()
    for number in range(200):
        queue.push("late", (0, number), ("late", number))
    assert Counter(queue.pop()[0] for _ in range(100)) == {"loud": 50, "late": 50}
    queue = filled({}, loud=1_000)
    taken: Counter[str] = Counter()
    for number in range(200):
        if not queue.of("restless"):
            queue.push("restless", (0, number), ("restless", number))
        taken[queue.pop()[0]] += 1
    assert taken == {"loud": 100, "restless": 100}


def test_within_a_namespace_priority_then_deadline_then_arrival() -> None:
    queue = FairQueue({})
    for name, order in {"late": (0, 9), "first": (0, 5), "second": (0, 5), "urgent": (-3, 99)}.items():
        queue.push("demo", order, name)
    assert [queue.pop() for _ in range(queue.size)] == ["urgent", "first", "second", "late"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)) | st.none(), max_size=120),
    st.sets(st.integers(0, 119)),
)
def test_what_is_put_in_comes_out_once_unless_it_left(moves: list[tuple[str, int] | None], leaving: set[int]) -> None:
    queue = FairQueue({"a": 3})
    there: set[tuple[str, int]] = set()
    for number, move in enumerate(moves):
        if move is not None:
            queue.push(move[0], (move[1], 0), (move[0], number))
            there.add((move[0], number))
        elif number in leaving:
            there = {one for one in there if one[1] % 2}
            queue.keep(set(there).__contains__)
        elif queue.size:
            there.remove(queue.pop())
        assert queue.size == len(there) == sum(queue.of(name) for name in "abc")
    assert {queue.pop() for _ in range(queue.size)} == there


def test_places_are_shared_with_those_who_wait_now() -> None:
    queue = filled({"big": 3}, big=1)
    assert (queue.share("big", 800), queue.share("small", 800)) == (800, 200)
    assert queue.share("small", 1) == 1


def test_weights_are_read_and_what_is_wrong_is_told() -> None:
    assert read_weights(("a=4", "b-c=1000")) == {"a": 4, "b-c": 1000}
    for wrong in ("a", "a=0", "a=1001", "=3", "a=x"):
        with pytest.raises(ValueError, match=r"write NAMESPACE=WEIGHT"):
            read_weights((wrong,))
    with pytest.raises(ValueError, match="a has two weights"):
        read_weights(("a=1", "a=2"))
