"""What a shard makes of sidecars that die: who is suspected, which offers say alone, and outcomes of former lives."""

from __future__ import annotations

from antiphon_orchestrator.engine import quarantine
from antiphon_orchestrator.engine.decide import Outcome, Verdict
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.states import AttemptState, TaskState
from antiphon_orchestrator.mesh.session import PendingOffer, Session
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.shards import inputs as i
from shard_rig import SOURCE, Rig, instance

from tests.fakes.plans import SECOND, Node, payload, plan, retry

DONE = Outcome(AttemptState.SUCCEEDED, payload("done"))


def begun(attempts: int = 5) -> tuple[Rig, Plan]:
    """A rig whose only task is out to incarnation i1, and known to have begun."""
    rig = Rig()
    of = plan(Node(retry=(retry(attempts, first=SECOND),)))
    rig.fleet.attach(instance(incarnation="i1"))
    rig.tell(rig.submit("r1", of))
    rig.tell(i.Started(SOURCE, "r1/t0/0/1"))
    return rig, of


def dies(rig: Rig, number: int) -> None:
    """The sidecar dies with its attempt of that number, and another life of it gets the next one, which begins."""
    rig.fleet.detach(f"s/i{number}/a")
    rig.tell(i.SidecarGone(f"i{number}"))
    rig.fleet.attach(instance(incarnation=f"i{number + 1}"))
    rig.now += 60 * SECOND
    rig.tell()
    rig.tell(i.Started(SOURCE, f"r1/t0/0/{number + 1}"))


def written(rig: Rig, number: int) -> bool:
    """Whether the offer of an attempt says that it is to be alone."""
    session = Session(
        "demo", "s", "spiffe://d/ns/demo/sidecar/s", f"i{number}", 1, AttemptTokens(b"key"), lambda: rig.now
    )
    session.policy_epoch = rig.run("r1").tasks[0].attempts[-1].placement.policy_epoch
    session.offer(PendingOffer(0, 1, rig.run("r1"), rig.run("r1").tasks[0], number))
    message = session.next_message()
    assert message is not None
    return message.offers[0].alone


def test_a_task_whose_sidecar_died_twice_is_offered_alone_and_set_aside_at_the_third_death() -> None:
    rig, of = begun()
    assert not written(rig, 1)
    dies(rig, 1)
    assert not written(rig, 2)
    dies(rig, 2)
    assert written(rig, 3)
    dies(rig, 3)
    assert rig.states("r1") == ["QUARANTINED"]
    task = rig.run("r1").tasks[0]
    assert [a.failure.code for a in task.attempts if a.failure] == [quarantine.SIDECAR_DIED] * 3
    assert rig.shard.timers._due.keys() == {("r1", -1, 0)} and not rig.fleet._queues
    assert len(task.attempts) == 3 and rig.offers[-1] == "r1/t0/0/3"
    recovered = rig.recovered(lambda _: of)
    assert recovered.states("r1") == ["QUARANTINED"]
    recovered.fleet.attach(instance(incarnation="i9"))
    recovered.now += 3_000 * SECOND
    recovered.tell()
    assert recovered.states("r1") == ["QUARANTINED"] and recovered.offers == []


def test_a_new_owner_suspects_whom_the_old_one_suspected() -> None:
    rig, of = begun()
    dies(rig, 1)
    dies(rig, 2)
    recovered = rig.recovered(lambda _: of)
    assert written(recovered, 3)


def test_what_was_not_known_to_have_begun_is_not_suspected_after_two_deaths() -> None:
    rig = Rig()
    rig.fleet.attach(instance(incarnation="i1"))
    rig.tell(rig.submit("r1", plan(Node(retry=(retry(5, first=SECOND),)))))
    for number in (1, 2):
        rig.fleet.detach(f"s/i{number}/a")
        rig.tell(i.SidecarGone(f"i{number}"))
        rig.fleet.attach(instance(incarnation=f"i{number + 1}"))
        rig.now += 60 * SECOND
        rig.tell()
    task = rig.run("r1").tasks[0]
    assert [a.failure.code for a in task.attempts if a.failure] == [quarantine.SIDECAR_GONE] * 2
    assert not quarantine.alone(task, 3)


def test_the_outcome_of_a_former_life_settles_the_attempt_while_it_is_out() -> None:
    rig, _ = begun()
    rig.fleet.detach("s/i1/a")  # its stream is gone, and its grace is not over
    rig.tell(i.Report(rig, "demo/other", "r1/t0/0/1", DONE))
    rig.tell(rig.report("r1/t0/0/1", DONE))
    rig.tell(rig.report("r1/t0/0/1", DONE))
    assert [kind for _, kind in rig.verdicts] == [Verdict.GONE, Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert rig.states("r1") == ["SUCCEEDED"]


def test_the_outcome_of_a_former_life_is_recorded_and_not_used_once_the_attempt_is_lost() -> None:
    rig, _ = begun()
    dies(rig, 1)
    before = rig.run("r1").event_seq
    rig.tell(rig.report("r1/t0/0/1", DONE))
    task = rig.run("r1").tasks[0]
    assert rig.verdicts == [("r1/t0/0/1", Verdict.STALE)]
    assert (rig.run("r1").event_seq, task.attempts[0].stale) == (before + 1, True)
    assert task.state is TaskState.RUNNING and task.output is None
    rig.tell(rig.report("r1/t0/0/2", Outcome(AttemptState.SUCCEEDED, payload("second"))))
    assert task.output == payload("second")
