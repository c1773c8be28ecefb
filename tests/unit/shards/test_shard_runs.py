"""Runs in a shard: requests, outcomes, cancels, labels and what a new owner makes of the log."""

from __future__ import annotations

from typing import Any

import pytest
from antiphon.store.v1 import journal_pb2
from antiphon.v1 import payload_pb2
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import AttemptState, RunState
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.leaving import let_archived_go
from antiphon_orchestrator.shards.turn import REQUEST_KEPT
from shard_rig import SOURCE, Rig, failed, instance, returned

from tests.fakes.plans import CLIENT, SECOND, Node, payload, plan, retry


def outcome(text: bytes, *labels: tuple[str, str]) -> Outcome:
    message = payload_pb2.Payload(inline=text)
    for key, value in labels:
        message.labels.add(key=key, value=value)
    return Outcome(AttemptState.SUCCEEDED, message.SerializeToString())


def test_a_request_id_is_one_run_before_and_after_the_archive_and_for_a_new_owner() -> None:
    answers: list[Any] = []
    of = plan(Node())
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of, answers.append))
    rig.tell(rig.submit("r2", of, answers.append, request_id="r1"))
    other = rig.recovered(lambda submitted: of)
    other.tell(other.submit("r3", of, answers.append, request_id="r1"))
    assert [answer.run_id for answer in answers] == ["r1", "r1", "r1"]
    rig.tell(rig.report("r1/t0/0/1"))
    rig.tell(i.Archived({"r1": rig.run("r1").event_seq}))
    rig.tell(rig.submit("r4", of, answers.append, request_id="r1"))
    assert answers[3:] == ["r1"]
    assert rig.shard.retain
    rig.shard.settle_retained(rig.shard.retain, rig.now)
    assert rig.shard.oldest_pinned() is None
    rig.tell(rig.submit("r5", of, answers.append, request_id="r1"))
    assert answers[4:] == ["r1"]
    rig.shard.settle_retained((), rig.now + REQUEST_KEPT + 1)
    rig.tell(rig.submit("r6", of, answers.append, request_id="r1"))
    assert answers[5].run_id == "r6"


def test_who_waits_is_answered_at_the_end_who_does_not_at_once() -> None:
    waiting: list[Run] = []
    at_once: list[Run] = []
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node()), waiting.append, wait=True))
    rig.tell(rig.submit("r1", plan(Node()), at_once.append))
    assert (waiting, len(at_once)) == ([], 1)
    rig.tell(rig.report("r1/t0/0/1"))
    assert [run.state for run in waiting] == [RunState.SUCCEEDED]


def test_a_late_outcome_is_recorded_once_and_never_used() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(retry=(retry(3, first=0, longest=0),)), Node((0,)))))
    rig.tell(i.SidecarGone("i"))
    for expected in ("STALE", "DUPLICATE", "DUPLICATE"):
        rig.tell(rig.report("r1/t0/0/1", outcome(b"1")))
        assert rig.verdicts[-1] == ("r1/t0/0/1", expected)
    assert rig.run("r1").tasks[0].output is None


def test_only_the_sidecar_an_attempt_is_out_to_may_end_it() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node())))
    for source in ("demo/s2", "other/s", "demo/", "s", ""):
        rig.tell(i.Report(rig, source, "r1/t0/0/1", outcome(b"1")))
        assert rig.verdicts[-1] == ("r1/t0/0/1", "GONE")
    assert rig.run("r1").state is RunState.RUNNING


def test_a_returned_offer_is_placed_again_in_the_same_turn() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node())))
    rig.turns.clear()
    rig.tell(rig.report("r1/t0/0/1", returned()))
    assert len([turn for turn in rig.turns if turn.records]) == 1
    assert rig.offers == ["r1/t0/0/1", "r1/t0/0/2"]
    assert [n.in_use for n in rig.fleet.instances()] == [1]


def test_a_cancel_reaches_agents_and_a_slot_reserved_for_the_run_goes_to_another() -> None:
    answers: list[Run] = []
    rig = Rig()
    rig.fleet.attach(instance(slots=1))
    rig.tell(rig.submit("r1", plan(Node(), Node())), rig.submit("r2", plan(Node())))
    assert rig.states("r1") == ["RUNNING", "READY"]
    rig.tell(i.Cancel("r1", "someone", "enough", answers.append))
    assert rig.cancels == ["r1/t0/0/1"]
    assert [run.state for run in answers] == [RunState.CANCELLED]
    assert rig.states("r2") == ["RUNNING"]
    rig.tell(rig.report("r1/t0/0/1", failed(FailureKind.CANCELLED)), rig.report("r2/t0/0/1"))
    assert [n.in_use for n in rig.fleet.instances()] == [0]
    assert rig.verdicts == [("r1/t0/0/1", "STALE"), ("r2/t0/0/1", "ACCEPTED")]


def test_nobody_in_time_is_a_failure_that_says_so_and_its_place_in_the_queue_is_void() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node(schedule_timeout=5 * SECOND))), rig.submit("r2", plan(Node())))
    rig.now += 6 * SECOND
    rig.tell()
    failure = rig.run("r1").tasks[0].failure
    assert failure is not None and failure.kind is FailureKind.NO_AGENT
    assert failure.cause == "nobody offers text.work@1; start an agent that does; 0 considered"
    rig.fleet.attach(instance())
    rig.tell()
    assert rig.states("r2") == ["RUNNING"]


def test_a_task_that_looks_for_an_agent_again_takes_no_place_in_the_queue_meanwhile() -> None:
    rig = Rig()
    again = plan(Node(schedule_timeout=5 * SECOND, retry=(retry(2, FailureKind.NO_AGENT, first=10 * SECOND),)))
    rig.tell(rig.submit("r1", again))
    rig.now += 6 * SECOND
    rig.tell()
    assert rig.states("r1") == ["WAITING"] and not rig.fleet._queues
    rig.fleet.attach(instance())
    rig.tell()
    assert rig.offers == []
    rig.now += 10 * SECOND
    rig.tell()
    assert rig.offers == ["r1/t0/0/1"]


def test_held_timers_fire_when_they_are_let_go() -> None:
    rig = Rig()
    rig.shard.timers_held = True
    rig.tell(rig.submit("r1", plan(Node()), deadline_time=rig.now + SECOND))
    rig.now += 2 * SECOND
    rig.tell()
    assert rig.run("r1").state is RunState.RUNNING
    assert rig.shard.next_due() is None
    rig.shard.timers_held = False
    rig.tell()
    assert rig.run("r1").failure is not None and rig.run("r1").failure.kind is FailureKind.TIMEOUT  # type: ignore[union-attr]


def test_a_refused_task_ends_its_run_also_when_another_run_made_room_for_it() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(Node(input=payload("x", "restricted")))))
    rig.tell(rig.submit("r2", plan(Node())))
    rig.fleet.attach(instance(clearance=["restricted"]))
    rig.tell()
    assert rig.run("r1").failure is not None
    assert rig.run("r1").failure.kind is FailureKind.POLICY  # type: ignore[union-attr]
    assert rig.states("r2") == ["RUNNING"]


@pytest.mark.parametrize("own", [(), (("region", "us"),), (("region", "eu"),), (("pii", ""), ("region", "us"))])
def test_an_output_carries_the_labels_of_its_input_whatever_it_says_itself(own: tuple[tuple[str, str], ...]) -> None:
    source = payload_pb2.Payload(inline=b"1")
    source.labels.add(key="region", value="eu")
    rig = Rig()
    rig.fleet.attach(instance(clearance=["region"]))
    rig.tell(rig.submit("r1", plan(Node(input=source.SerializeToString()))))
    rig.tell(rig.report("r1/t0/0/1", outcome(b"2", *own)))
    made = payload_pb2.Payload.FromString(rig.run("r1").tasks[0].output or b"")
    assert {(label.key, label.value) for label in made.labels} == {("region", "eu"), *own}


def test_an_output_that_may_not_be_released_or_breaks_its_schema_is_a_failure() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2, output_schema='{"type": "integer"}'))
    rig.tell(rig.submit("r1", plan(Node())), rig.submit("r2", plan(Node())))
    rig.tell(rig.report("r1/t0/0/1", outcome(b"1", ("restricted", ""))), rig.report("r2/t0/0/1", outcome(b'"x"')))
    kinds = [rig.run(run_id).tasks[0].failure.kind for run_id in ("r1", "r2")]  # type: ignore[union-attr]
    assert kinds == [FailureKind.POLICY, FailureKind.INVALID_OUTPUT]


def test_a_hostile_value_never_gets_a_record_that_cannot_be_written() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=9, output_schema='{"additionalProperties": false}'))
    texts = [b'{"\\ud800": 1}', b'{"a": "\\udfff"}', b"\xff", b"[" * 60_000, b"1e999", b"NaN", b'{"a":1,"a":2}', b""]
    for number, text in enumerate(texts):
        rig.tell(rig.submit(f"r{number}", plan(Node())))
        rig.tell(rig.report(f"r{number}/t0/0/1", outcome(text)))
        assert rig.verdicts[-1][1] == "ACCEPTED"
        assert rig.run(f"r{number}").state is not RunState.RUNNING


def test_a_watcher_sees_every_event_once_from_its_cursor_on_and_then_the_end() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[int] = []
            self.over: list[RunState] = []

        def records(self, records: list[bytes]) -> None:
            self.seen += [journal_pb2.Record.FromString(raw).event_seq for raw in records]

        def progress(self, task_id: str, member: int, progress: Any) -> None:
            self.seen.append(-1)

        def partial(self, task_id: str, member: int, piece: Any) -> None: ...

        def ended(self, run: Run) -> None:
            self.over.append(run.state)

    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(), Node((0,)))))
    whole, rest = Watcher(), Watcher()
    rig.tell(i.Watch("r1", 0, whole, lambda answer: None), i.Watch("r1", 1, rest, lambda answer: None))
    rig.tell(i.Progress("demo/s", "r1/t0/0/1", None))
    rig.tell(rig.report("r1/t0/0/1"), rig.report("r1/t1/0/1"))
    last = rig.run("r1").event_seq
    assert [seq for seq in whole.seen if seq > 0] == list(range(1, last + 1))
    assert [seq for seq in rest.seen if seq > 0] == list(range(2, last + 1))
    assert whole.seen.count(-1) == 1
    assert whole.over == rest.over == [RunState.SUCCEEDED]


def test_a_new_owner_takes_up_what_was_ready_waits_and_counts_what_is_out() -> None:
    of = plan(Node(), Node(), Node(retry=(retry(2),)))
    rig = Rig()
    rig.fleet.attach(instance(slots=2))
    rig.tell(rig.submit("r1", of))
    rig.tell(rig.report(rig.offers[1], failed()))
    other = rig.recovered(lambda submitted: of)
    assert other.shard.incarnations() == {"i"}
    other.fleet.attach(instance(slots=3))
    other.tell()
    running = rig.states("r1").count("RUNNING")
    assert [n.in_use for n in other.fleet.instances()] == [other.states("r1").count("RUNNING")]
    assert other.states("r1").count("RUNNING") >= running


def test_a_task_that_nobody_took_or_that_was_cancelled_waits_for_no_slot() -> None:
    rig = Rig()
    rig.tell(*[rig.submit(f"r{n}", plan(Node(capability=f"no.one{n}@1", schedule_timeout=SECOND))) for n in range(3)])
    assert len(rig.fleet._queues) == 3
    rig.tell(i.Cancel("r0", CLIENT, "enough", lambda answer: None))
    assert len(rig.fleet._queues) == 2
    rig.now += 2 * SECOND
    rig.tell()
    assert rig.states("r1") == ["FAILED"] and not rig.fleet._queues


def test_what_an_agent_hands_on_in_a_call_carries_the_labels_of_what_it_was_given() -> None:
    rig, of = Rig(), plan(Node(input=payload("name", "pii")))
    rig.fleet.attach(instance(slots=2, clearance=["pii"]))
    rig.tell(rig.submit("r1", of))
    call = i.Call(
        SOURCE, "r1/t0/0/1", "c", "r2", plan(Node()), None, b"digest", payload("surname"), None, lambda _: None
    )
    rig.tell(call)
    given = payload_pb2.Payload.FromString(rig.run("r2").submitted.input)
    assert [label.key for label in given.labels] == ["pii"]


def test_whoever_waited_for_a_run_and_left_is_forgotten() -> None:
    rig, of = Rig(), plan(Node())
    sinks = [lambda answer: None for _ in range(3)]
    submits = [rig.submit("r1", of, sink, wait=True) for sink in sinks]
    rig.tell(*submits)
    waiters = rig.shard.runs["r1"].waiters
    assert waiters == sinks
    rig.tell(i.Leave("", submits[1].key, sinks[1]), i.Leave("r1", b"", sinks[0]), i.Leave("", b"unknown", sinks[2]))
    assert waiters == sinks[2:]


def test_a_watcher_that_comes_and_goes_within_one_turn_does_not_stay() -> None:
    class Nobody:
        def records(self, records: list[bytes]) -> None: ...

        def progress(self, task_id: str, member: int, progress: Any) -> None: ...

        def partial(self, task_id: str, member: int, piece: Any) -> None: ...

        def ended(self, run: Run) -> None: ...

    rig, watcher = Rig(), Nobody()
    rig.tell(rig.submit("r1", plan(Node())))
    rig.tell(i.Watch("r1", 0, watcher, lambda found: None), i.Unwatch("r1", watcher))
    assert rig.shard.runs["r1"].watchers == []


def test_in_a_store_that_takes_no_turn_archived_runs_are_let_go_of_but_for_those_of_the_turn() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=10))
    rig.tell(*(rig.submit(f"r{n}", plan(Node())) for n in range(3)))
    rig.tell(*(rig.report(offer) for offer in rig.offers[:2]))
    rig.shard.inbox.append(rig.report(rig.offers[1]))
    turn = rig.shard.take_turn(rig.now, lambda: 0.0)  # is being committed: a second, stale report of r1
    rig.shard.inbox.append(i.Archived({"r0": 100, "r1": 3, "r2": 1}))
    let_archived_go(rig.shard, rig.now)
    assert set(rig.shard.runs) == {"r1", "r2"} and len(rig.shard.retain) == 1
    rig.shard.release(turn, 9)
    rig.tell()
    assert set(rig.shard.runs) == {"r1", "r2"}
    rig.tell(i.Archived({"r1": rig.run("r1").event_seq}))
    assert set(rig.shard.runs) == {"r2"} and len(rig.shard.retain) == 2
