"""What a shard knows of sidecars: what is out to each, what they were asked, and until when no time may fail it."""

from __future__ import annotations

from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.states import AttemptState, RunState
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.shard import Shard
from shard_rig import Rig, failed, instance, returned

from tests.fakes.plans import SECOND, Node, plan, retry


def walked(shard: Shard) -> dict[str, int]:
    """Attempts that are out, by incarnation, counted by walking all that lives."""
    counts: dict[str, int] = {}
    for entry in shard.runs.values():
        for task in entry.run.all_tasks():
            if (live := task.live) is not None:
                incarnation = live.instance.split("/")[1]
                counts[incarnation] = counts.get(incarnation, 0) + 1
    return counts


def counted(shard: Shard) -> dict[str, int]:
    counts = {incarnation: len(shard.out.of(incarnation)) for incarnation in shard.incarnations()}
    assert shard.out.count == sum(counts.values())
    return counts


def test_what_is_out_to_a_sidecar_is_known_through_every_end_of_an_attempt_and_by_a_new_owner() -> None:
    again = retry(3, FailureKind.TRANSIENT, FailureKind.LOST)
    of = plan(Node(retry=(again,)), Node(retry=(again,)), Node(members=4, retry=(again,)), Node(deadline=5 * SECOND))
    rig = Rig()
    rig.fleet.attach(instance("a", slots=3, incarnation="one"))
    rig.fleet.attach(instance("b", slots=3, incarnation="one"))
    rig.fleet.attach(instance("c", slots=6, incarnation="two"))
    steps: list[tuple[i.Input, ...]] = [
        (rig.submit("r1", of), rig.submit("r2", of)),
        (rig.report("r1/t0/0/1"), rig.report("r2/t0/0/1", failed())),
        (rig.report("r1/t1/0/1", returned()),),
        (i.SidecarGone("one"),),
        (i.Cancel("r2", "me", "enough", lambda answer: None),),
    ]
    for step in steps:
        rig.tell(*step)
        assert counted(rig.shard) == walked(rig.shard) != {}
        other = rig.recovered(lambda submitted: of)
        assert counted(other.shard) == walked(other.shard)
        rig.now += 2 * SECOND
        rig.tell()
    assert counted(rig.shard) == walked(rig.shard)
    rig.tell(i.SidecarGone("two"))
    assert "two" not in rig.shard.incarnations() or walked(rig.shard)["two"]


def test_timers_of_a_new_owner_wait_for_the_inventory_of_a_sidecar_that_has_a_stream() -> None:
    of = plan(Node(deadline=5 * SECOND))
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of))
    other = rig.taken(lambda submitted: of)
    before = other.shard.live_ids("i")  # its stream is there; what it holds was not said yet
    other.now += 10 * SECOND
    other.tell()
    assert other.run("r1").tasks[0].attempts[0].state is AttemptState.OFFERED
    # The outcome was in time, and the sidecar says it with its inventory.
    other.tell(i.Inventory("i", before, before), other.report("r1/t0/0/1"))
    assert other.run("r1").state is RunState.SUCCEEDED


def test_timers_of_a_new_owner_wait_for_every_sidecar_and_for_no_inventory_of_an_older_stream() -> None:
    of = plan(Node(deadline=5 * SECOND), Node(deadline=5 * SECOND))
    rig = Rig()
    rig.fleet.attach(instance("a", incarnation="one"))
    rig.fleet.attach(instance("b", incarnation="two"))
    rig.tell(rig.submit("r1", of))
    other = rig.taken(lambda submitted: of)
    older = other.shard.live_ids("one")
    newer = other.shard.live_ids("one")
    other.now += 10 * SECOND
    other.tell(i.Inventory("one", older, older))
    assert other.shard.timers_held
    other.tell(i.Inventory("one", newer, newer))
    assert other.shard.timers_held, "the other one was not heard yet"
    other.tell(i.SidecarGone("two"))
    assert not other.shard.timers_held
    other.tell()
    assert other.run("r1").failure is not None


def test_timers_wait_for_nobody_when_nothing_is_out_nor_for_one_whose_work_was_cancelled_meanwhile() -> None:
    of = plan(Node())
    rig = Rig()
    rig.tell(rig.submit("r1", of))
    assert not rig.taken(lambda submitted: of).shard.timers_held
    rig.fleet.attach(instance())
    rig.tell()
    other = rig.taken(lambda submitted: of)
    other.tell(i.Cancel("r1", "me", "enough", lambda answer: None))
    assert other.shard.timers_held
    assert other.shard.live_ids("i") == frozenset()
    assert not other.shard.timers_held


def test_what_a_sidecar_holds_and_nobody_waits_for_is_cancelled_once_it_says_so() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("r1", plan(Node())), rig.submit("r2", plan(Node())))
    rig.tell(i.Cancel("r1", "me", "enough", lambda answer: None))
    assert rig.cancels == ["r1/t0/0/1"]
    rig.cancels.clear()  # it was lost with the stream that it was to go by
    held = frozenset({"r1/t0/0/1", "r2/t0/0/1", "gone/t0/0/1"})
    before = rig.shard.live_ids("i")
    rig.tell(i.Inventory("i", held, before))
    assert rig.cancels == ["gone/t0/0/1", "r1/t0/0/1"]
    assert rig.offers == ["r1/t0/0/1", "r2/t0/0/1"]
