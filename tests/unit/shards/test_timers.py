"""Timers against a dictionary that is searched whole."""

from __future__ import annotations

from antiphon_orchestrator.shards.timers import GRAIN, Key, Timers
from hypothesis import given, settings
from hypothesis import strategies as st

keys = st.tuples(st.sampled_from(["a", "b"]), st.integers(-1, 2), st.integers(0, 1))
moments = st.integers(0, 20 * GRAIN)
steps = st.one_of(
    st.tuples(st.just("set"), keys, moments),
    st.tuples(st.just("clear"), keys, moments),
    st.tuples(st.just("pop"), keys, moments),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=60), st.integers(1, 5))
def test_a_timer_fires_once_never_early_and_at_most_a_grain_late(
    given_steps: list[tuple[str, Key, int]], limit: int
) -> None:
    timers, model = Timers(), dict[Key, int]()
    for step, key, moment in given_steps:
        if step == "set":
            timers.set(key, moment)
            model[key] = moment
        elif step == "clear":
            timers.clear(key)
            model.pop(key, None)
        else:
            fired = timers.pop_due(moment, limit)
            assert len(fired) <= limit
            for key in fired:
                assert model.pop(key) <= moment
            if len(fired) < limit:
                assert all(due + GRAIN > moment for due in model.values())
        due = timers.next_due()
        assert (due is None) == (not model)
        if due is not None:
            assert min(model.values()) <= due < min(model.values()) + GRAIN


def test_earlier_timers_fire_before_later_ones() -> None:
    timers = Timers()
    for place, due in enumerate([5, 1, 4, 2, 3]):
        timers.set(("r", place, 0), due * GRAIN)
    assert [key[1] for key in timers.pop_due(9 * GRAIN, 9)] == [1, 3, 4, 2, 0]


def test_moving_a_timer_leaves_nothing_behind() -> None:
    timers = Timers()
    timers.set(("r", 0, 0), GRAIN)
    timers.set(("r", 0, 0), 9 * GRAIN)
    assert timers.pop_due(8 * GRAIN, 9) == []
    assert timers.next_due() == 9 * GRAIN
    timers.clear(("r", 0, 0))
    assert timers.next_due() is None
