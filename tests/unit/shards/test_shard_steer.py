"""What people ask of runs, as a shard carries it out: places, slots, timers, recovery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from antiphon_orchestrator.engine import decide, steer, waits
from antiphon_orchestrator.engine.events import Event, SignalReceived
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.shards import inputs as i
from shard_rig import Rig, failed, instance

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan, retry


def wish(run_id: str, decided: Callable[[Run], list[Event]], answers: list[Any] | None = None) -> i.Steer:
    def made(run: Run, now: int) -> i.Steered:
        return i.Steered(decided(run), lambda run: run.event_seq)

    return i.Steer(run_id, CLIENT, "steer", "because", {}, made, (answers if answers is not None else []).append)


def pause(run_id: str) -> i.Steer:
    return wish(run_id, lambda run: steer.pause(run, CLIENT, ""))


def resume(run_id: str) -> i.Steer:
    return wish(run_id, lambda run: steer.resume(run, CLIENT, ""))


def signal(run_id: str, name: str, number: int = 1) -> i.Steer:
    return wish(run_id, lambda run: waits.receive(run, SignalReceived(name, payload(name), CLIENT, str(number), b"")))


def test_a_paused_run_leaves_its_place_in_the_queue_to_others_and_comes_back_when_it_is_resumed() -> None:
    rig, of = Rig(), plan(Node())
    rig.tell(rig.submit("r1", of), pause("r1"))
    assert not rig.fleet._queues
    rig.fleet.attach(instance())
    rig.tell()
    assert rig.offers == []
    rig.tell(rig.submit("r2", of), resume("r1"))
    assert rig.offers == ["r2/t0/0/1"]
    rig.tell(rig.report("r2/t0/0/1"))
    rig.tell()
    assert rig.offers == ["r2/t0/0/1", "r1/t0/0/1"]


def test_a_slot_that_comes_free_for_a_run_that_was_paused_meanwhile_goes_to_another() -> None:
    rig, of = Rig(), plan(Node())
    rig.tell(rig.submit("r1", of), rig.submit("r2", of))
    rig.fleet.attach(instance())
    (reserved,) = [item for item in rig.shard.inbox if isinstance(item, i.Reserved)]
    assert reserved.waiter.run_id == "r1"
    rig.shard.inbox.appendleft(pause("r1"))
    rig.tell()
    assert rig.offers == ["r2/t0/0/1"]


def test_a_slot_that_comes_free_for_a_run_that_was_held_and_let_go_on_meanwhile_is_the_one_it_waits_for() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node())))
    rig.fleet.attach(instance())
    assert [item.waiter.run_id for item in rig.shard.inbox if isinstance(item, i.Reserved)] == ["r1"]
    rig.shard.inbox.extendleft((resume("r1"), pause("r1")))
    rig.tell()
    assert rig.offers == ["r1/t0/0/1"]
    assert not rig.fleet._waiting, "it waits for nothing any more"


def test_a_new_owner_finds_a_run_paused_its_signals_kept_and_its_waits_due() -> None:
    of = plan(Node(wait=5 * SECOND), Node((0,), wait="go"), Node((1,)))
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), signal("r1", "go"), pause("r1"))
    rig.now += 9 * SECOND
    rig.tell()
    assert rig.states("r1") == ["WAITING", "PENDING", "PENDING"]
    other = rig.recovered(lambda submitted: of)
    other.fleet.attach(instance())
    other.tell()
    assert other.states("r1") == ["WAITING", "PENDING", "PENDING"]
    other.tell(resume("r1"))
    assert other.states("r1") == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]


def test_a_wish_is_answered_after_its_commit_is_audited_only_when_it_did_something_and_no_run_is_no_answer() -> None:
    rig, of = Rig(), plan(Node(), Node())
    answers: list[Any] = []
    rig.tell(rig.submit("r1", of))
    before = rig.shard.audit.chain.last_seq
    rig.tell(wish("r1", lambda run: steer.pause(run, CLIENT, ""), answers))
    assert answers == [rig.run("r1").event_seq]
    rig.tell(wish("r1", lambda run: steer.pause(run, CLIENT, ""), answers))
    assert rig.shard.audit.chain.last_seq == before + 1
    rig.tell(wish("nobody", lambda run: [], answers))
    assert answers[2:] == [None]


def test_cancelling_a_task_frees_its_slot_and_its_place() -> None:
    rig, of = Rig(), plan(Node(), Node())
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of))
    rig.tell(wish("r1", lambda run: steer.cancel_task(run, run.tasks[1], False, CLIENT, "")))
    assert not rig.fleet._queues
    rig.tell(wish("r1", lambda run: steer.cancel_task(run, run.tasks[0], False, CLIENT, "")))
    assert rig.cancels == ["r1/t0/0/1"]
    assert rig.archived and rig.run("r1").state.name == "SUCCEEDED"


def test_members_that_are_taken_up_again_are_placed() -> None:
    rig, of = Rig(), plan(Node(members=2), Node())
    rig.fleet.attach(instance(slots=3))
    rig.tell(rig.submit("r1", of))
    rig.tell(rig.report("r1/t0/1/1", failed()))
    assert rig.states("r1") == ["FAILED", "FAILED", "CANCELLED", "RUNNING"]
    rig.tell(wish("r1", lambda run: steer.retry_task(run, run.tasks[0], None, CLIENT, "")))
    assert rig.states("r1") == ["RUNNING", "RUNNING", "RUNNING", "RUNNING"]
    assert rig.offers[-2:] == ["r1/t0/1/2", "r1/t0/2/2"]


def test_at_most_once_is_not_offered_again_when_a_sidecar_that_comes_back_does_not_have_it() -> None:
    rig, of = Rig(), plan(Node(at_most_once=True), Node())
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("r1", of))
    before = rig.shard.live_ids("i")
    rig.tell(i.Inventory("i", frozenset(), before))
    assert rig.states("r1") == ["ESCALATED", "RUNNING"]
    assert rig.offers == ["r1/t0/0/1", "r1/t1/0/1", "r1/t1/0/1"]


def test_an_escalated_task_has_no_timer_and_no_place_and_the_answer_goes_on() -> None:
    rig, of = Rig(), plan(Node(schedule_timeout=5 * SECOND, on_failure=OnFailure.ESCALATE), Node((0,)))
    rig.tell(rig.submit("r1", of))
    rig.now += 6 * SECOND
    rig.tell()
    assert rig.states("r1") == ["ESCALATED", "PENDING"] and not rig.fleet._queues
    assert rig.shard.timers.next_due() == rig.run("r1").submitted.deadline_time
    rig.tell(wish("r1", lambda run: steer.resolve_task(run, run.tasks[0], payload("x"), "", CLIENT)))
    assert rig.states("r1") == ["SUCCEEDED", "READY"]


def test_a_cancelled_run_is_undone_before_it_ends_also_by_a_new_owner() -> None:
    rig, of = Rig(), plan(Node(undone=True), Node((0,)))
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), rig.report("r1/t0/0/1"))
    answers: list[Any] = []
    rig.tell(i.Cancel("r1", CLIENT, "enough", answers.append))
    assert rig.states("r1") == ["SUCCEEDED", "CANCELLED", "RUNNING"]
    assert (rig.offers[-1], answers) == ("r1/t0.compensate/0/1", [])
    other = rig.recovered(lambda submitted: of)
    other.tell(other.report("r1/t0.compensate/0/1"))
    assert other.run("r1").state.name == "CANCELLED"
    rig.tell(rig.report("r1/t0.compensate/0/1"))
    assert [run.state.name for run in answers] == ["CANCELLED"]


def test_what_undoes_a_task_goes_on_when_its_run_is_cancelled_while_it_is_held() -> None:
    rig, of = Rig(), plan(Node(undone=True), Node((0,)))
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), rig.report("r1/t0/0/1"))
    rig.tell(rig.submit("r2", plan(Node())), rig.report("r1/t1/0/1", failed(FailureKind.PERMANENT)), pause("r1"))
    rig.tell(i.Cancel("r1", CLIENT, "enough", lambda answer: None), rig.report("r2/t0/0/1"))
    assert rig.offers[-2:] == ["r2/t0/0/1", "r1/t0.compensate/0/1"]


def test_what_undoes_a_task_and_waits_goes_on_when_its_run_is_cancelled_while_it_is_held() -> None:
    rig, of = Rig(), plan(Node(undone=True, retry=(retry(5),)), Node((0,)))
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), rig.report("r1/t0/0/1"), rig.report("r1/t1/0/1", failed(FailureKind.PERMANENT)))
    rig.tell(rig.report("r1/t0.compensate/0/1", failed()), pause("r1"))
    rig.tell(i.Cancel("r1", CLIENT, "enough", lambda answer: None))
    assert rig.states("r1") == ["SUCCEEDED", "FAILED", "WAITING"]
    rig.now += 60 * SECOND
    rig.tell()
    assert rig.offers[-1] == "r1/t0.compensate/0/2"


def test_what_undoes_a_task_waits_for_an_agent_and_gets_it_although_its_run_was_cancelled() -> None:
    rig, of = Rig(), plan(Node(undone=True), Node((0,)))
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), rig.report("r1/t0/0/1"))
    rig.tell(rig.submit("r2", plan(Node())))
    rig.tell(i.Cancel("r1", CLIENT, "enough", lambda answer: None))
    live = [offer for offer in rig.offers if offer.startswith("r2")] or rig.offers[-1:]
    assert decide.task_deadline(rig.run("r1"), rig.run("r1").tasks[2]) == decide.NEVER
    while rig.run("r1").state.name == "RUNNING":
        rig.tell(rig.report(live.pop()))
        live = live or rig.offers[-1:]
    assert rig.run("r1").state.name == "CANCELLED"
