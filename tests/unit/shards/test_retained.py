"""Request ids of archived runs in the store: a day long, and no more than so many."""

from __future__ import annotations

from collections import deque

from antiphon_orchestrator.shards.host import outlived


def test_what_is_too_old_goes() -> None:
    retained = deque([(1, 100, 5), (2, 200, 5), (3, 300, 5)])
    assert outlived(retained, 1000, 200) == 2
    assert list(retained) == [(3, 300, 5)]
    assert outlived(retained, 1000, 200) == 0


def test_the_oldest_go_as_long_as_enough_are_left() -> None:
    retained = deque((n, 1000, 10) for n in range(1, 11))
    assert outlived(retained, 75, 0) == 2
    assert [n for n, _, _ in retained] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert outlived(retained, 75, 0) == 0


def test_nothing_is_left_of_what_is_old_and_too_much() -> None:
    retained = deque([(7, 100, 5)])
    assert outlived(retained, 0, 100) == 7 and not retained
    assert outlived(retained, 0, 100) == 0
