"""What a turn may hold, and what must never be starved, repeated or forgotten by it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
from antiphon.v1 import run_pb2
from antiphon_orchestrator.engine import decide, steer
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.events import Event
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run, Task
from antiphon_orchestrator.engine.states import AttemptState, RunState, TaskState
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.inputs import RequestIdReused
from antiphon_orchestrator.shards.turn import MAX_INPUTS, MAX_WAITS, MIN_INPUTS, most_inputs
from antiphon_orchestrator.store.port import MAX_TXN_BYTES
from shard_rig import Rig, failed, instance, returned

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan, retry

BIG = payload("x" * 60_000)


def size_of(records: list[bytes]) -> int:
    return sum(len(raw) + 8 for raw in records)


def test_the_loss_of_a_sidecar_with_thousands_of_attempts_takes_several_turns() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=20_000))
    rig.tell(rig.submit("r1", plan(Node(members=9_000, retry=(retry(2),)))))
    assert len(rig.offers) == 9_000
    rig.fleet.detach("s/i/a")
    rig.tell(i.SidecarGone("i"))
    assert max(size_of(turn.records) for turn in rig.turns) < MAX_TXN_BYTES
    assert all(task.live is None for task in rig.run("r1").all_tasks())


def test_a_task_may_end_by_itself_while_its_cancel_waits_for_a_large_expansion() -> None:
    of = plan(Node(), Node((0,), members=2_000), Node())
    rig, slow = Rig(), partial(next, itertools.count(0.0, 0.002))
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("r1", of))

    def cancel(run: Run, now: int) -> i.Steered:
        return i.Steered(steer.cancel_task(run, run.tasks[2], False, CLIENT, "enough"), bool)

    for item in (
        rig.report("r1/t0/0/1"),
        i.Steer("r1", CLIENT, "cancel_task", "enough", {}, cancel, lambda answer: None),
        rig.report("r1/t2/0/1"),
    ):
        rig.shard.inbox.append(item)
        rig.turn(slow)
    run = rig.run("r1")
    assert len(run.tasks[1].members) < 2_000, "it is still being expanded"
    assert (run.tasks[2].state, run.frontier) == (TaskState.SUCCEEDED, [1])
    for one in (rig, rig.recovered(lambda submitted: of)):
        one.tell()
        assert (len(one.run("r1").tasks[1].members), one.run("r1").frontier) == (2_000, [])


def test_no_order_of_large_inputs_makes_a_segment_the_store_refuses() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=100))
    items: list[i.Input] = []
    for n in range(40):
        item = rig.submit(f"r{n}", plan(Node(input=BIG), Node((0,), members=20, input=BIG)))
        item.event.warnings = ("w" * 500_000,) if n % 3 else ()
        item.event.input = payload("y" * 500_000)
        items.append(item)
    rig.tell(*items)
    rig.tell(*[rig.report(offer) for offer in rig.offers])
    assert max(size_of(turn.records) for turn in rig.turns) < MAX_TXN_BYTES
    assert len(rig.shard.runs) == 40


def test_a_turn_takes_a_part_of_what_is_under_way_so_that_sidecars_work_meanwhile() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=200))
    rig.shard.inbox.extend(rig.submit(f"r{n}", plan(Node())) for n in range(200))
    assert rig.turn().inputs == 125
    rig.tell()
    rig.shard.inbox.extend(rig.report(offer) for offer in tuple(rig.offers))
    assert rig.turn().inputs == 125
    assert len(rig.offers) == 200 and len(rig.verdicts) == 125
    assert [most_inputs(n) for n in (0, 100, 160, 400, 10_000)] == [MIN_INPUTS, MIN_INPUTS, 100, 250, MAX_INPUTS]


def test_a_run_that_moves_with_a_large_snapshot_does_not_keep_the_inbox_out_while_new_runs_come() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=300))
    rig.tell(rig.submit("long", plan(*[Node() for _ in range(22)])))
    for n in range(21):
        rig.tell(rig.report(f"long/t{n}/0/1", Outcome(AttemptState.SUCCEEDED, BIG)))
    rig.tell(rig.submit("other", plan(Node())))
    rig.shard.inbox.append(i.Archived({"long": rig.run("long").event_seq}))
    rig.shard.inbox.append(rig.report("other/t0/0/1"))
    turns = 0
    while rig.shard.inbox and turns < 20:
        for n in range(200 - rig.shard.backlog.size):
            rig.shard.backlog.push("demo", (0, 0), rig.submit(f"{turns}-{n}", plan(Node()), input=payload("z" * 5_000)))
        rig.turn()
        turns += 1
    assert turns <= 3 and rig.run("other").state is RunState.SUCCEEDED
    assert max(size_of(turn.records) for turn in rig.turns) < MAX_TXN_BYTES


def test_timers_fire_although_the_inbox_is_never_empty() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node()), deadline_time=rig.now + SECOND))
    rig.now += 2 * SECOND
    rig.shard.inbox.extend(i.Read("none", lambda run: run, lambda answer: None) for _ in range(MAX_INPUTS))
    rig.turn()
    assert rig.run("r1").state is RunState.FAILED


def test_a_report_that_waits_is_taken_before_the_deadline_that_passed_meanwhile() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node()), deadline_time=rig.now + SECOND))
    rig.now += 2 * SECOND
    rig.tell(rig.report("r1/t0/0/1"))
    assert rig.run("r1").state is RunState.SUCCEEDED


def test_a_fan_out_that_was_recovered_does_not_spin_when_its_deadline_passes() -> None:
    of = plan(Node(members=3, deadline=10 * SECOND, on_failure=OnFailure.SKIP))
    rig = Rig()
    rig.fleet.attach(instance(slots=3))
    rig.tell(rig.submit("r1", of))
    other = rig.recovered(lambda submitted: of)
    other.shard.timers.clear(("r1", 0, 1))  # one member is late to learn of it
    other.now += 11 * SECOND
    other.tell()
    assert other.states("r1") == ["RUNNING", "RUNNING", "FAILED", "FAILED"]


def test_nothing_is_answered_before_the_commit_not_even_a_refusal() -> None:
    rig = Rig()
    answers: list[object] = []
    rig.shard.inbox.append(rig.submit("r1", plan(Node())))
    other = rig.submit("r2", plan(Node()), answers.append, request_id="r1")
    other.event.request_digest = b"something else"
    rig.shard.inbox.append(other)
    turn = rig.shard.take_turn(rig.now, lambda: 0.0)
    assert answers == []
    rig.shard.release(turn, 1)
    assert [type(answer) for answer in answers] == [RequestIdReused]


def test_a_run_that_ends_while_its_beginning_is_archived_stays_until_its_end_is_archived_too() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node())))
    upto = rig.run("r1").event_seq
    rig.tell(rig.report("r1/t0/0/1"))
    assert rig.run("r1").state is RunState.SUCCEEDED
    rig.tell(i.Archived({"r1": upto}))
    assert "r1" in rig.shard.runs
    assert rig.shard.oldest_pinned() == ("r1", 1)
    rig.tell(i.Archived({"r1": rig.run("r1").event_seq}))
    assert "r1" not in rig.shard.runs


def test_an_answer_of_the_archive_that_comes_late_does_not_shift_the_numbers_of_events() -> None:
    of = plan(Node(), Node((0,)))
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of))
    upto = rig.run("r1").event_seq
    rig.tell(i.Archived({"r1": upto}))
    rig.tell(i.Archived({"r1": upto - 1}))
    entry = rig.recovered(lambda submitted: of).shard.runs["r1"]
    assert entry.first_seq == upto + 1
    assert entry.first_seq + len(entry.records) == entry.run.event_seq + 1


def test_runs_too_large_for_one_snapshot_are_moved_in_parts_and_no_segment_is_beyond_its_limit() -> None:
    of = plan(Node(members=40, input=BIG), Node((0,)))
    rig = Rig()
    rig.fleet.attach(instance(slots=100))
    rig.tell(*[rig.submit(f"r{n}", of) for n in range(3)])
    small = plan(Node(members=10, input=BIG), Node((0,)))
    rig.tell(*[rig.submit(f"s{n}", small) for n in range(4)])
    before = len(rig.log)
    rig.turns.clear()
    rig.tell(i.Archived({run_id: rig.run(run_id).event_seq for run_id in list(rig.shard.runs)}))
    assert max(size_of(turn.records) for turn in rig.turns) < MAX_TXN_BYTES
    oldest = rig.shard.oldest_pinned()
    assert oldest is not None and oldest[1] > before
    del rig.log[: oldest[1] - 1]
    assert [rig.shard.runs[f"s{n}"].first_seq > 1 for n in range(4)] == [True] * 4
    other = rig.recovered(lambda event: of if event.request_id.startswith("r") else small)
    assert {run_id: entry.run.event_seq for run_id, entry in other.shard.runs.items()} == {
        run_id: entry.run.event_seq for run_id, entry in rig.shard.runs.items()
    }


def test_an_attempt_is_offered_once_on_a_stream_however_many_inventories_lack_it() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.shard.inbox.append(rig.submit("r1", plan(Node())))
    turn = rig.shard.take_turn(rig.now, lambda: 0.0)
    first = rig.shard.live_ids("i")  # a stream begins while the commit is under way
    rig.log.append((1, turn.records))
    rig.shard.release(turn, 1)
    assert rig.offers == ["r1/t0/0/1"]
    rig.tell(i.Inventory("i", frozenset(), first))
    assert rig.offers == ["r1/t0/0/1"]
    second = rig.shard.live_ids("i")  # the next stream: nothing that was sent on the first one counts
    third = rig.shard.live_ids("i")
    rig.tell(i.Inventory("i", frozenset(), second))
    assert rig.offers == ["r1/t0/0/1"]
    rig.tell(i.Inventory("i", frozenset(), third))
    assert rig.offers == ["r1/t0/0/1"] * 2


def test_an_attempt_that_is_held_is_not_offered_again() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node())))
    before = rig.shard.live_ids("i")
    rig.tell(i.Inventory("i", before, before))
    assert rig.offers == ["r1/t0/0/1"]


def test_a_reserved_slot_of_an_instance_that_has_gone_places_the_task_anew() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node())))
    assert rig.states("r1") == ["READY"]
    rig.fleet.attach(instance("a"))
    rig.fleet.detach("s/i/a")
    rig.fleet.attach(instance("b"))
    rig.tell()
    assert rig.states("r1") == ["RUNNING"]
    assert rig.run("r1").tasks[0].attempts[0].instance == "s/i/b"
    rig.tell(rig.report("r1/t0/0/1"))
    rig.fleet.attach(instance("a"))
    assert [n.in_use for n in rig.fleet.instances()] == [0, 0]


def test_other_spellings_of_an_attempt_id_are_unknown() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(members=1))))
    for rest in ("/t0/1/0", "/t0/-1/1", "/t0/1/-1", "/t0/2/1", "/t0/1/2", "/t1/0/1", "", "0/t0/1/1"):
        attempt_id = "r1" + rest
        rig.tell(rig.report(attempt_id))
        assert rig.verdicts.pop() == (attempt_id, "GONE")
    rig.tell(rig.report("r1/t0/1/1"))
    assert rig.verdicts.pop() == ("r1/t0/1/1", "ACCEPTED")


def test_an_outcome_that_is_repeated_is_a_duplicate_whatever_it_was() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(), Node())))
    rig.tell(rig.report(rig.offers[0], returned()))
    rig.tell(rig.report("r1/t0/0/1", returned()))
    assert [kind for _, kind in rig.verdicts] == ["ACCEPTED", "DUPLICATE"]


def test_a_decision_is_made_of_what_it_says() -> None:
    rig = Rig()
    rig.fleet.attach(instance("a", slots=2))
    rig.tell(rig.submit("r1", plan(Node())))
    decision = run_pb2.RoutingDecision.FromString(rig.run("r1").tasks[0].attempts[0].placement.decision)
    assert (decision.chosen, decision.capability, decision.considered) == ("s/i/a", "text.work@1.0", 1)
    assert decision.policy.permit and decision.policy.policies == ["dev.flow"]


def test_a_large_run_is_held_let_go_on_and_taken_over_in_turns_between_which_others_are_heard() -> None:
    rig, large = Rig(), plan(Node(members=5000))
    rig.tell(rig.submit("r1", large))
    for kind, way in (("pause", steer.pause), ("resume", steer.resume)):
        rig.shard.inbox.append(wish("r1", kind, way))
        rig.turn(ticking())
        rig.shard.inbox.append(rig.submit(f"beside {kind}", plan(Node(wait=SECOND))))
        turn = rig.turn(ticking())
        assert turn.inputs == 1 and rig.shard.has_work(rig.now), f"a {kind} was done in one go"
        while rig.shard.has_work(rig.now):
            assert rig.turn(ticking()).waits <= 2 * MAX_WAITS
    other = rig.recovered(lambda submitted: large)
    assert other.turn(ticking()).waits <= 2 * MAX_WAITS
    assert other.shard.has_work(other.now)
    other.fleet.attach(instance(slots=5000))
    other.tell()
    assert len(other.offers) == len(set(other.offers)) == 5000


def test_what_is_held_while_it_is_still_let_go_on_begins_nothing() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node(members=5000))))
    rig.tell(wish("r1", "pause", steer.pause))
    rig.shard.inbox.append(wish("r1", "resume", steer.resume))
    rig.turn(ticking())
    rig.fleet.attach(instance(slots=5000))
    rig.shard.inbox.append(wish("r1", "pause", steer.pause))
    while rig.run("r1").paused is None:
        rig.turn(ticking())
    begun = len(rig.offers)
    assert begun < 5000
    rig.tell()
    assert len(rig.offers) == begun
    rig.tell(wish("r1", "resume", steer.resume))
    assert len(set(rig.offers)) == 5000


def test_what_is_retried_of_a_large_run_does_not_have_all_of_it_looked_at_again() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=200))
    rig.tell(rig.submit("r1", plan(Node(members=3000, on_failure=OnFailure.ESCALATE))))
    rig.tell(*[rig.report(offer, failed(FailureKind.PERMANENT)) for offer in rig.offers[:100]])
    escalated = [task for task in rig.run("r1").all_tasks() if task.state is TaskState.ESCALATED]
    assert len(escalated) == 100
    rig.turns.clear()
    for task in escalated:
        rig.shard.inbox.append(wish("r1", "retry", partial(retried, task)))
        rig.turn(ticking())
    rig.tell()
    assert sum(turn.waits for turn in rig.turns) < 2 * len(escalated)
    answered = 100
    while (run := rig.run("r1")).state is RunState.RUNNING:
        fresh, answered = rig.offers[answered:], len(rig.offers)
        assert fresh, "what was retried never had its turn"
        rig.tell(*[rig.report(offer) for offer in fresh])
    assert run.state is RunState.SUCCEEDED


def retried(task: Task, run: Run, principal: str, reason: str) -> list[Event]:
    """What it takes to have this task taken up again."""
    return steer.retry_task(run, task, None, principal, reason)


def ticking() -> Callable[[], float]:
    """A clock by which each look takes a tenth of what a turn may."""
    moments = itertools.count()
    return lambda: next(moments) / 2500


def wish(run_id: str, kind: str, decide: Callable[[Run, str, str], list[Event]]) -> i.Steer:
    """What somebody asks of a run."""

    def asked(run: Run, now: int) -> i.Steered:
        return i.Steered(decide(run, CLIENT, ""), lambda run: None)

    return i.Steer(run_id, CLIENT, kind, "", {}, asked, lambda answer: None)


def test_a_run_that_is_still_expanded_keeps_nobody_else_out() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    answers: list[object] = []
    rig.shard.inbox.append(rig.submit("large", plan(Node(members=500, input=BIG, capability="nobody.does@1"))))
    rig.turn()
    rig.shard.inbox.append(rig.submit("small", plan(Node()), answers.append))
    rig.turn()
    assert answers and rig.offers == ["small/t0/0/1"]
    rig.shard.inbox.append(i.Cancel("large", CLIENT, "enough", lambda run: None))
    rig.turn()
    assert rig.run("large").cancel is not None and len(rig.run("large").tasks[0].members) < 500


def test_a_turn_ends_in_time_however_much_one_run_has_to_decide() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=200))
    seconds = itertools.count(step=0.001)
    rig.shard.inbox.append(rig.submit("r1", plan(*(Node(when=True) for _ in range(100)))))
    rig.turn(lambda: next(seconds))
    assert 0 < len(rig.offers) <= 10
    slow = itertools.chain([0.0], itertools.repeat(1.0))
    rig.shard.inbox.append(rig.submit("r2", plan(Node())))
    rig.turn(lambda: next(slow))  # a step of the first run takes all the time there is, and the inbox has its own
    assert "r2" in rig.shard.runs
    while rig.shard.has_work(rig.now):
        before = len(rig.offers)
        rig.turn(lambda: next(seconds))
        assert before < len(rig.offers) <= before + 10
    assert len(rig.offers) == 101


def test_the_inputs_of_a_fan_out_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "MOST_INPUT_BYTES", 300 * len(BIG))
    of = plan(Node(members=300, input=BIG), Node(members=301, input=BIG))
    rig = Rig()
    rig.tell(rig.submit("r1", of))
    right, wrong = rig.run("r1").tasks
    assert (right.state, wrong.state) == (TaskState.RUNNING, TaskState.FAILED)
    assert wrong.failure is not None and "take more than" in wrong.failure.message
    assert right.input_bytes == rig.recovered(lambda event: of).run("r1").tasks[0].input_bytes == 300 * len(BIG)


def test_new_runs_that_take_long_keep_out_neither_outcomes_nor_cancels() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("old", plan(Node(deadline=2 * SECOND))), rig.submit("other", plan(Node())))
    seconds = itertools.count(step=0.001)
    large = plan(Node(members=500, input=BIG, capability="nobody.does@1"))
    for n in range(40):
        item = rig.submit(f"new{n}", large)
        rig.shard.backlog.push(item.event.namespace, (0, item.event.deadline_time), item)
    rig.shard.inbox.extend([rig.report("old/t0/0/1"), i.Cancel("other", CLIENT, "enough", lambda run: None)])
    for _ in range(2):
        rig.turn(lambda: next(seconds))
    assert rig.run("old").state is RunState.SUCCEEDED and rig.run("other").cancel is not None
    assert 2 < len(rig.shard.runs) < 10, "and new runs are taken meanwhile"
