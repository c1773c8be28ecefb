"""Breakers: which failures open one, what an open one lets through, and how it closes."""

from __future__ import annotations

import pytest
from antiphon.v1 import run_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.engine.events import Placement
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.placement.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from antiphon_orchestrator.placement.fleet import Fleet, Instance, Need
from hypothesis import given
from hypothesis import strategies as st
from shard_rig import POLICY, Rig, failed, instance

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan

NEED = Need("demo", "text.work@1", (), 0.0, frozenset())
TRANSIENT = FailureKind.TRANSIENT


class World:
    """A fleet whose clock is turned by hand, with the states of breakers as they were told."""

    def __init__(self, *names: str, slots: int = 2) -> None:
        self.now = 1_000 * SECOND
        self.fleet = Fleet(POLICY, SchemaSet(Values()), lambda: self.now)
        self.told: list[int] = []
        self.fleet.broke = lambda one: self.told.append(one.breaker_state)
        for name in names:
            self.fleet.attach(instance(name, slots))

    def one(self, name: str = "a") -> Instance:
        found = self.fleet.instance(f"s/i/{name}")
        assert found is not None
        return found

    def end(self, name: str = "a", kind: FailureKind | None = None) -> None:
        """An attempt that was out to it ends, well or not."""
        self.one(name).in_use += 1
        failure = None if kind is None else Failure(kind, "private")
        self.fleet.give_back(f"s/i/{name}", 0.1, kind is not None, failure)

    def place(self) -> Placement | None:
        result = self.fleet.place(NEED, CLIENT, "client", payload("x"), 1)
        assert result is None or isinstance(result, Placement)
        return result

    def open(self, name: str = "a") -> None:
        for _ in range(10):
            self.end(name, TRANSIENT)
        assert self.one(name).breaker_state == OPEN


def test_an_instance_that_only_fails_gets_no_more_work_and_the_decision_counts_it() -> None:
    world = World("a", "b")
    world.open("a")
    placed = [world.place(), world.place()]
    assert [one.instance for one in placed if one] == ["s/i/b", "s/i/b"]
    decision = run_pb2.RoutingDecision.FromString(placed[0].decision)  # type: ignore[union-attr]
    assert [(refusal.reason, refusal.count) for refusal in decision.refusals] == [("breaker", 1)]
    assert world.place() is None
    assert "private" not in world.one("a").breaker.reason  # type: ignore[union-attr]
    assert world.told == [OPEN]


def test_a_task_that_waits_for_a_broken_instance_is_told_why() -> None:
    world = World("a")
    world.open()
    explained = world.fleet.explain(NEED, ("r1", 0, 0))
    assert [(refusal.reason, refusal.count) for refusal in explained.refusals] == [("breaker", 1)]
    assert explained.summary == (
        "s/i/a gets nothing for now: 10 of its last 10 attempts failed, the last one with TRANSIENT"
    )


def test_tasks_that_gave_up_waiting_for_a_broken_instance_keep_on_saying_why() -> None:
    rig = Rig()
    rig.fleet.attach(broken := instance("a", 2))
    for _ in range(10):
        broken.in_use += 1
        rig.fleet.give_back("s/i/a", 0.1, True, Failure(TRANSIENT, "private"))
    impatient = plan(Node(schedule_timeout=SECOND // 2))
    rig.tell(rig.submit("r1", impatient), rig.submit("r2", impatient))
    rig.now += SECOND // 2
    rig.tell()
    for run_id in ("r1", "r2"):
        failure = rig.run(run_id).tasks[0].failure
        assert failure is not None and failure.kind is FailureKind.NO_AGENT
        assert failure.cause == (
            "s/i/a gets nothing for now: 10 of its last 10 attempts failed, the last one with TRANSIENT; "
            "1 considered; refused: 1 breaker"
        )


@pytest.mark.parametrize("kind", [k for k in FailureKind if k not in (1, FailureKind.TIMEOUT, 8)])
def test_failures_that_are_not_the_instances_own_open_nothing(kind: FailureKind) -> None:
    world = World("a")
    for _ in range(50):
        world.end(kind=kind)
    assert world.one().breaker is None


def test_a_smaller_share_of_failures_opens_nothing() -> None:
    world = World("a")
    for number in range(200):
        world.end(kind=TRANSIENT if number % 3 == 0 else None)
    assert world.one().breaker_state == CLOSED and not world.told


def test_a_half_open_breaker_lets_one_attempt_through_which_closes_it() -> None:
    world = World("a")
    world.open()
    assert world.fleet.due() == world.now + SECOND
    world.now += SECOND
    world.fleet.look()
    assert world.one().breaker_state == HALF_OPEN and world.fleet.due() is None
    assert world.place() is not None
    assert world.place() is None
    world.one().in_use -= 1
    world.end()
    assert world.told == [OPEN, HALF_OPEN, CLOSED]
    assert world.place() is not None and world.place() is not None


def test_an_attempt_that_says_nothing_makes_room_for_another_try() -> None:
    world = World("a")
    world.open()
    world.now += SECOND
    world.fleet.look()
    assert world.place() is not None and world.place() is None
    world.fleet.give_back("s/i/a")  # it came back unread
    assert world.one().breaker_state == HALF_OPEN
    assert world.place() is not None and world.place() is None


def test_a_window_lets_no_second_attempt_through_while_one_is_tried() -> None:
    world = World("a")
    world.open()
    world.now += SECOND
    world.fleet.look()
    assert world.place() is not None
    world.fleet.window("s/i/a", 5, 9)
    assert world.place() is None


def test_what_only_a_broken_instance_offers_is_offered() -> None:
    world = World("a")
    world.open()
    assert world.fleet.offered("demo", "text.work@1") and not world.fleet.offered("demo", "text.work@2")


def test_each_pause_is_twice_the_last_up_to_eight_times_the_first() -> None:
    world = World("a")
    world.open()
    pauses = []
    for _ in range(9):
        due = world.fleet.due()
        assert due is not None
        pauses.append((due - world.now) // SECOND)
        world.now = due
        world.fleet.look()
        world.end(kind=TRANSIENT)
    assert pauses == [1, 2, 4, 8, 8, 8, 8, 8, 8]


def test_whoever_waits_is_served_when_the_pause_is_over() -> None:
    world = World("a", slots=1)
    given: list[str] = []
    world.fleet.deliver = lambda waiter, offered: given.append(waiter.run_id)
    world.open()
    for number in range(3):
        world.fleet.wait(NEED, 0, 9, 0, f"r{number}", 0, 0)
    world.fleet.look()
    assert not given
    world.now += SECOND
    world.fleet.look()
    assert given == ["r0"]


def test_an_instance_that_works_again_has_no_breaker_any_more() -> None:
    world = World("a")
    for _ in range(5):
        world.end(kind=TRANSIENT)
    for _ in range(20):
        world.end()
    assert world.one().breaker is None


def test_a_window_and_a_newer_stream_leave_a_breaker_as_it_is() -> None:
    world = World("a")
    world.open()
    world.fleet.window("s/i/a", 5, 9)
    assert world.place() is None
    world.fleet.attach(instance("a", 9))
    assert world.place() is None and world.fleet.broken == 1
    world.fleet.detach("s/i/a")
    assert world.fleet.broken == 0 and world.fleet.due() is None


def test_in_a_shard_failures_open_the_breaker_of_the_instance_they_come_from() -> None:
    rig = Rig()
    rig.fleet.attach(instance("a", 20))
    for number in range(10):
        rig.tell(rig.submit(f"r{number}", plan(Node())))
    rig.tell(*(rig.report(attempt_id, failed()) for attempt_id in list(rig.offers)))
    (broken,) = rig.fleet.instances()
    assert broken.breaker_state == OPEN
    rig.tell(rig.submit("late", plan(Node())))
    assert rig.states("late") == ["READY"]


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 12))
def test_it_opens_exactly_at_the_number_and_the_share_of_failures(outcomes: list[bool], most: int) -> None:
    breaker = Breaker(most, 0.5, SECOND, 0)
    seen: list[bool] = []
    for bad in outcomes:
        seen = [*seen, bad][-2 * most :]
        opened = breaker.note(TRANSIENT if bad else None, 0)
        assert opened == (bad and sum(seen) >= most and sum(seen) * 2 >= len(seen))
        if opened:
            return
