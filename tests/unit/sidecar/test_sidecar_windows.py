"""Dividing slots among replicas: fair, never more than there are, and one slot goes round."""

from __future__ import annotations

from antiphon_sidecar.attempts import End
from antiphon_sidecar.inflight import Inflight
from antiphon_sidecar.windows import Grant, divide, settle, settled
from hypothesis import given
from hypothesis import strategies as st

WANTED = st.lists(st.integers(0, 50), min_size=1, max_size=5)


@given(total=st.integers(0, 200), wanted=WANTED, turn=st.integers(0, 10))
def test_shares_add_up_and_a_want_is_cut_only_for_someone_who_has_no_more(
    total: int, wanted: list[int], turn: int
) -> None:
    shares = divide(total, wanted, turn)
    assert sum(shares) == total
    for want, share in zip(wanted, shares, strict=True):
        if share < want:
            assert max(shares) <= share + 1


def test_one_slot_goes_to_who_wants_it_and_round_among_several() -> None:
    assert divide(1, [0, 3, 0], 0) == [0, 1, 0]
    assert {tuple(divide(1, [2, 2, 2], turn)) for turn in range(3)} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_what_nobody_wants_is_spread() -> None:
    assert divide(9, [0, 0, 0], 0) == [3, 3, 3]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("capacity"), st.integers(0, 20)),
            st.tuples(st.just("want"), st.tuples(st.integers(0, 2), st.integers(0, 20))),
            st.tuples(st.just("ack"), st.integers(0, 2)),
            st.tuples(st.just("offer"), st.integers(0, 2)),
            st.tuples(st.just("end"), st.integers(0, 2)),
            st.tuples(st.just("turn"), st.none()),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_replicas_never_believe_in_more_than_the_capacity_while_it_does_not_fall(
    steps: list[tuple[str, object]],
) -> None:
    grants, capacity, turn, generation = [Grant(), Grant(), Grant()], 10, 0, 0

    def go() -> None:
        nonlocal generation
        for index, slots in settle(grants, capacity, turn):
            generation += 1
            grants[index].generation = generation
            assert grants[index].slots == slots

    go()
    fell = False
    for what, value in steps:
        if what == "capacity":
            assert isinstance(value, int)
            fell, capacity = fell or value < capacity, value
        elif what == "want":
            assert isinstance(value, tuple)
            grants[value[0]].wanted = value[1]
        elif what == "ack":
            assert isinstance(value, int)
            grants[value].acknowledge(grants[value].generation)
        elif what == "offer":
            assert isinstance(value, int)
            grants[value].out += grants[value].out < grants[value].allowed
        elif what == "end":
            assert isinstance(value, int)
            grants[value].out -= grants[value].out > 0
        else:
            turn += 1
        go()
        if not fell:
            assert sum(max(grant.allowed, grant.out) for grant in grants) <= capacity
    for _ in range(4):  # acknowledged and ended, everything comes to rest
        for grant in grants:
            grant.out = 0
            grant.acknowledge(grant.generation)
        go()
    assert settled(grants, capacity, turn)
    assert sum(grant.slots for grant in grants) == capacity


def test_slots_of_a_replica_that_the_others_report_gone_are_given_to_them_without_its_word() -> None:
    core = Inflight()
    seat = core.add_seat("echo", lambda: None)
    core.agent_came(seat, 1, 0, 0.0)
    gone, other = core.attach(lambda: None), core.attach(lambda: None)
    assert (gone.grants["echo"].slots, other.grants["echo"].slots) == (1, 0)
    core.slots.demanded(other, "echo", 5)
    assert other.grants["echo"].slots == 0, "the one that has the slot has not acknowledged that it goes"
    core.slots.away(gone, True)
    assert (gone.windows["echo"][1], other.windows["echo"][1]) == (0, 1)
    core.offer(gone, "echo", "r/t/0/1", 0, 1, None, b"", 1, 5.0, 0.0)
    core.offer(other, "echo", "r/t/0/2", 1, 1, None, b"", 1, 5.0, 0.0)
    assert [(report.attempt_id, report.end) for report in gone.reports] == [("r/t/0/1", End.NO_SLOT)]
    assert [attempt.attempt_id for attempt in core.take(seat, 0.0, 10, 1 << 20)] == ["r/t/0/2"]
    core.slots.away(gone, False)
    core.slots.demanded(gone, "echo", 5)
    core.slots.give_turns()
    assert gone.grants["echo"].slots == 0, "the one slot is in use"
