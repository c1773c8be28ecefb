"""Runs beneath tasks: sub-runs that a graph names, graphs that agents answer with, calls; what each end means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from antiphon.store.v1 import journal_pb2
from antiphon.v1 import graph_pb2
from antiphon_orchestrator.engine import beneath as rules
from antiphon_orchestrator.engine import steer
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import OnFailure, Plan
from antiphon_orchestrator.engine.states import AttemptState, ChildKind, RunState
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.shards import beneath
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.inputs import RequestIdReused
from shard_rig import SOURCE, Rig, failed, instance

from tests.fakes.plans import SECOND, Node, payload, plan, retry

PERSON = "spiffe://antiphon.internal/ns/demo/client/me"
ONE = plan(Node())
STEP = plan(Node(input=payload("step"), retry=(retry(3, FailureKind.LOST),)))
PARENT = plan(Node(graph="below@1"))


def rig_with(slots: int = 9) -> Rig:
    rig = Rig()
    rig.fleet.attach(instance(slots=slots))
    return rig


def opened(run_id: str, of: Plan | Failure = STEP, parent: str = "p", member: int = 0) -> i.Opened:
    plan = of if isinstance(of, Failure) else replace(of, name="below", version="1")
    return i.Opened(parent, 0, member, run_id, plan, "")


def answered(rig: Rig, attempt_id: str, run_id: str, of: Plan | Failure = STEP, given: bytes = b"") -> i.Answered:
    return i.Answered(rig, SOURCE, attempt_id, run_id, of, graph_pb2.Graph(name="steps"), given, 5)


def parent_with_child(of: Plan = PARENT) -> Rig:
    """Run p, whose only task waits for run c beneath it."""
    rig = rig_with()
    rig.tell(rig.submit("p", of))
    rig.tell(opened("c"))
    assert rig.run("p").tasks[0].sub_run == "c"
    return rig


def plan_of(submitted: RunSubmitted) -> Plan:
    return STEP if submitted.parent_attempt_id else PARENT


def recovered(rig: Rig, of: Callable[[RunSubmitted], Plan] = plan_of) -> Rig:
    other = rig.recovered(of)
    other.fleet.attach(instance(slots=9))
    other.tell()
    return other


def test_the_output_of_a_sub_run_is_that_of_its_task() -> None:
    rig = rig_with()
    rig.tell(rig.submit("p", plan(Node(graph="below@1"), Node(needs=(0,)))))
    assert rig.opened == [("p", "t0", 0)]
    rig.tell(opened("c"))
    child = rig.run("c").submitted
    assert (child.parent_attempt_id, child.delegation) == ("p/t0/0/0", ("p/t0/0/0",))
    assert (child.principal, child.input) == (rig.run("p").submitted.principal, payload("input of 0"))
    assert (child.graph_name, child.graph_version, child.child_kind) == ("below", "1", ChildKind.GRAPH)
    rig.tell(rig.report("c/t0/0/1"))
    assert rig.run("c").state is RunState.SUCCEEDED
    assert rig.run("p").tasks[0].output == payload("output")
    assert rig.states("p") == ["SUCCEEDED", "RUNNING"]


def test_the_failure_of_a_sub_run_is_that_of_its_task_with_what_the_task_says_of_failures() -> None:
    rig = parent_with_child(plan(Node(graph="below@1", on_failure=OnFailure.CONTINUE)))
    rig.tell(rig.report("c/t0/0/1", failed(FailureKind.PERMANENT, "no paper")))
    task = rig.run("p").tasks[0]
    assert task.failure == Failure(FailureKind.PERMANENT, "run c: task t0: no paper", retryable=False)
    assert rig.run("p").state is RunState.SUCCEEDED


def test_a_sub_run_has_no_more_time_than_its_task() -> None:
    rig = parent_with_child(plan(Node(graph="below@1", deadline=5 * SECOND)))
    assert rig.run("c").submitted.deadline_time == rig.now + 5 * SECOND
    rig.now += 6 * SECOND
    rig.tell()
    failure = rig.run("p").failure
    assert failure is not None and failure.kind is FailureKind.TIMEOUT
    assert rig.run("c").state is not RunState.RUNNING


def test_a_cancel_goes_down_and_one_of_the_sub_run_alone_comes_up_as_a_failure() -> None:
    rig = parent_with_child()
    rig.tell(i.Cancel("p", PERSON, "enough", lambda answer: None))
    assert [rig.run(run_id).state for run_id in ("p", "c")] == [RunState.CANCELLED] * 2
    rig = parent_with_child()
    rig.tell(i.Cancel("c", PERSON, "not this one", lambda answer: None))
    assert rig.run("p").failure == Failure(
        FailureKind.CANCELLED, f"task t0: run c was cancelled by {PERSON}: not this one", retryable=False
    )


def steered(run_id: str, how: Callable[..., Any]) -> i.Steer:
    def wish(run: Any, now: int) -> i.Steered:
        return i.Steered(how(run, PERSON, "look first"), lambda run: None)

    return i.Steer(run_id, PERSON, "pause", "look first", {}, wish, lambda answer: None)


def test_a_pause_goes_down_and_so_does_its_end_but_not_to_what_somebody_holds_by_itself() -> None:
    rig = parent_with_child()
    rig.tell(steered("p", steer.pause))
    assert rig.run("c").paused is not None
    rig.tell(steered("p", steer.resume))
    assert rig.run("c").paused is None
    rig.tell(steered("c", steer.pause), steered("p", steer.pause), steered("p", steer.resume))
    assert rig.run("c").paused is not None and rig.run("p").paused is None


def test_when_a_held_run_is_cancelled_only_what_is_beneath_its_undoing_goes_on() -> None:
    rig = parent_with_child()
    rig.tell(steered("p", steer.pause), i.Cancel("p", PERSON, "enough", lambda answer: None))
    assert rig.run("c").state is RunState.CANCELLED
    records = [journal_pb2.Record.FromString(raw) for raw in rig.shard.runs["c"].records]
    assert not any(record.HasField("run_resumed") for record in records)
    rig = rig_with()
    rig.tell(rig.submit("r", plan(Node(undone=True), Node((0,)))), rig.report("r/t0/0/1"))
    rig.tell(rig.report("r/t1/0/1", failed(FailureKind.PERMANENT)))
    rig.tell(answered(rig, "r/t0.compensate/0/1", "u", plan(Node(input=payload("step")), Node((0,)))))
    rig.tell(steered("r", steer.pause))
    rig.tell(rig.report("u/t0/0/1"))
    assert rig.states("u") == ["SUCCEEDED", "PENDING"]
    rig.tell(i.Cancel("r", PERSON, "enough", lambda answer: None))
    assert rig.offers[-1] == "u/t1/0/1"


def test_a_graph_that_comes_while_its_run_is_held_begins_when_that_goes_on() -> None:
    rig = rig_with()
    rig.tell(rig.submit("p", PARENT))
    rig.tell(steered("p", steer.pause))
    rig.tell(opened("c"))
    assert "c" not in rig.shard.runs
    rig.tell(steered("p", steer.resume))
    assert rig.opened == [("p", "t0", 0)] * 2
    rig.tell(opened("c"), opened("d"))
    assert "c" in rig.shard.runs and "d" not in rig.shard.runs, "asked twice, begun once"


@pytest.mark.parametrize("cut", [1, 2])
def test_a_new_owner_goes_on_wherever_the_last_one_died(cut: int) -> None:
    rig = parent_with_child()
    rig.tell(rig.report("c/t0/0/1"))
    assert rig.run("p").state is RunState.SUCCEEDED
    rig.log = rig.log[:-cut]
    other = recovered(rig)
    if "c" not in other.shard.runs:
        other.tell(opened("c"))
    if other.run("c").state is RunState.RUNNING:
        other.tell(i.SidecarGone("i"))
        other.now += 10 * SECOND
        other.tell()
        other.tell(other.report(f"c/t0/0/{len(other.run('c').tasks[0].attempts)}"))
    assert other.run("p").state is RunState.SUCCEEDED
    assert other.run("p").tasks[0].children is not None and len(other.run("p").tasks[0].children) == 1


def test_a_pause_that_had_not_gone_down_when_the_last_owner_died_does_so() -> None:
    rig = parent_with_child()
    rig.tell(steered("c", steer.pause), steered("c", steer.resume))
    rig.now += SECOND
    rig.tell(steered("p", steer.pause))
    seq, records = rig.log[-1]
    rig.log[-1] = (seq, [raw for raw in records if journal_pb2.Record.FromString(raw).run_id == "p"])
    other = rig.recovered(plan_of)
    assert other.run("p").paused is not None and other.run("c").paused is None
    other.tell()
    assert other.run("c").paused is not None


@pytest.mark.parametrize("moved", [False, True])
def test_a_sub_run_that_was_let_go_on_while_the_run_above_it_is_held_goes_on_with_a_new_owner(moved: bool) -> None:
    rig = parent_with_child()
    rig.tell(steered("p", steer.pause))
    rig.now += SECOND
    rig.tell(steered("c", steer.resume))
    if moved:
        rig.tell(i.Archived({run_id: rig.run(run_id).event_seq for run_id in ("p", "c")}))
        del rig.log[:-1]
    other = recovered(rig)
    assert other.run("p").paused is not None and other.run("c").paused is None
    other.tell(steered("p", steer.resume), steered("p", steer.pause))
    assert other.run("c").paused is not None, "it is held by the next pause"


def test_a_graph_that_is_not_there_fails_its_task() -> None:
    rig = rig_with()
    rig.tell(rig.submit("p", PARENT))
    rig.tell(opened("c", Failure(FailureKind.PERMANENT, "the graph below@1 is not registered", "GRAPH_NOT_FOUND")))
    failure = rig.run("p").failure
    assert failure is not None and failure.code == "GRAPH_NOT_FOUND"


def test_a_graph_that_its_principal_may_not_run_fails_its_task() -> None:
    rig = rig_with()
    rig.denied = Failure(FailureKind.POLICY, "no policy permits it", "d1", retryable=False)
    rig.tell(rig.submit("p", PARENT))
    rig.tell(opened("c"))
    failure = rig.run("p").failure
    assert "c" not in rig.shard.runs
    assert failure is not None and failure.kind is FailureKind.POLICY


def test_recursion_ends_at_the_depth_that_is_allowed() -> None:
    rig = rig_with()
    rig.tell(rig.submit("r0", PARENT))
    for depth in range(1, rules.MOST_ABOVE + 2):
        deeper = plan(Node(graph="below@1", input=payload(f"round {depth}")))
        rig.tell(opened(f"r{depth}", deeper, f"r{depth - 1}"))
    assert f"r{rules.MOST_ABOVE + 1}" not in rig.shard.runs
    failure = rig.run("r0").failure
    assert failure is not None and failure.code == rules.TOO_DEEP
    assert all(entry.run.state is RunState.FAILED for entry in rig.shard.runs.values())


def test_a_graph_that_asks_for_itself_with_the_same_input_is_cut_at_once() -> None:
    rig = rig_with()
    again = plan(Node(graph="below@1", input=payload("input of 0", "pii")))
    rig.tell(rig.submit("r0", PARENT))
    rig.tell(opened("r1", again, "r0"))
    failure = rig.run("r0").failure
    assert failure is not None and failure.code == rules.REPEATED
    assert rig.opened == [("r0", "t0", 0)], "it was not even looked up"


def test_agents_that_call_each_other_with_the_same_input_are_cut() -> None:
    rig = rig_with()
    found: list[Any] = []
    rig.tell(rig.submit("r", ONE))
    rig.tell(i.Call(SOURCE, "r/t0/0/1", "c", "c1", ONE, None, b"d", payload("input of 0"), None, found.append))
    assert isinstance(found[0], i.CallRefused) and found[0].code == rules.REPEATED
    assert str(found[0]) == "text.work is at work on the same input further up; that would go round for ever"
    rig.tell(i.Call(SOURCE, "r/t0/0/1", "c", "c2", ONE, None, b"d", payload("another"), None, found.append))
    assert rig.run("c2").state is RunState.RUNNING


def test_a_call_is_in_the_record_of_its_task() -> None:
    rig = rig_with()
    rig.tell(rig.submit("r", ONE))
    for _ in range(2):  # the same call again is the same run
        rig.tell(i.Call(SOURCE, "r/t0/0/1", "mine", "c1", ONE, None, b"d", payload("x"), None, lambda answer: None))
    message = views.task_message(rig.run("r"), rig.run("r").tasks[0])
    assert [(c.run_id, c.name, c.attempt, c.call_id) for c in message.children] == [("c1", "text.work@1", 1, "mine")]
    assert rig.states("r") == ["RUNNING"] and rig.run("r").tasks[0].sub_run == ""
    other = rig.recovered(lambda submitted: ONE)
    assert views.task_message(other.run("r"), other.run("r").tasks[0]).children == message.children


def calling(attempt: int, run_id: str, answers: list[Any], given: str = "x", over: str = "") -> i.Call:
    """Call 1 of an attempt of the only task of run r."""
    digest, attempt_id = given.encode(), f"r/t0/0/{attempt}"
    return i.Call(SOURCE, attempt_id, "1", run_id, ONE, None, digest, payload(given), None, answers.append, over=over)


def calling_rig(answers: list[Any]) -> Rig:
    """Attempt 1 of the task of run r has called c1."""
    rig = rig_with()
    rig.tell(rig.submit("r", plan(Node(retry=(retry(9, FailureKind.LOST),)))))
    rig.tell(calling(1, "c1", answers))
    return rig


def tried_again(rig: Rig) -> int:
    """The number of the next attempt: the last one is lost."""
    number = len(rig.run("r").tasks[0].attempts)
    rig.tell(rig.report(f"r/t0/0/{number}", failed(FailureKind.LOST)))
    rig.now += 5 * SECOND
    rig.tell()
    assert rig.offers[-1] == f"r/t0/0/{number + 1}"
    return number + 1


def test_another_attempt_has_the_call_that_is_at_work_and_the_one_that_succeeded() -> None:
    answers: list[Any] = []
    rig = calling_rig(answers)
    rig.tell(calling(tried_again(rig), "none", answers))
    assert answers == []
    rig.tell(rig.report("c1/t0/0/1"))
    assert [answer.run_id for answer in answers] == ["c1", "c1"]
    rig.tell(calling(tried_again(rig), "none", answers))
    assert answers[-1].run_id == "c1" and "none" not in rig.shard.runs
    rig.tell(i.Archived({"c1": rig.run("c1").event_seq}))
    rig.tell(calling(3, "none", answers))
    assert answers[-1] == "c1" and "none" not in rig.shard.runs


@pytest.mark.parametrize("how", ["failed", "cancelled", "archived"])
def test_another_attempt_makes_a_call_anew_that_did_not_succeed(how: str) -> None:
    answers: list[Any] = []
    rig = calling_rig(answers)
    if how == "cancelled":
        rig.tell(i.Cancel("c1", PERSON, "enough", lambda answer: None))
    else:
        rig.tell(rig.report("c1/t0/0/1", failed(FailureKind.PERMANENT)))
        rig.tell(calling(1, "none", answers))
        assert [answer.run_id for answer in answers] == ["c1", "c1"], "an attempt has one outcome for one call"
    number, over = tried_again(rig), ""
    if how == "archived":
        rig.tell(i.Archived({"c1": rig.run("c1").event_seq}))
        rig.tell(calling(number, "none", answers))
        assert answers[-1] == "c1", "what came of it the archive knows"
        over = "c1"
    rig.tell(calling(number, "c2", answers, over=over))
    assert rig.run("c2").state is RunState.RUNNING
    assert rig.run("c2").submitted.parent_attempt_id == f"r/t0/0/{number}"
    for shard in (rig, rig.recovered(lambda submitted: ONE)):  # repeated, it is the same
        shard.tell(calling(number, "none", answers, over=over))
        assert "none" not in shard.shard.runs
    rig.tell(rig.report("c2/t0/0/1", failed(FailureKind.PERMANENT)))
    assert answers[-1].run_id == "c2"
    rig.tell(calling(tried_again(rig), "c3", answers))
    assert rig.run("c3").state is RunState.RUNNING


def test_another_attempt_may_call_for_another_thing_and_what_nobody_waits_for_ends() -> None:
    answers: list[Any] = []
    rig = calling_rig(answers)
    rig.tell(calling(1, "none", answers, "y"))
    assert isinstance(answers.pop(), RequestIdReused)
    number = tried_again(rig)
    rig.tell(calling(number, "c2", answers, "y"))
    assert rig.run("c2").state is RunState.RUNNING and rig.run("c1").cancel is not None
    rig.tell(calling(number, "none", answers, "y"), calling(number, "none", answers, "z"))
    assert isinstance(answers[-1], RequestIdReused) and "none" not in rig.shard.runs


def test_beneath_one_run_there_are_no_more_tasks_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beneath, "MOST_BENEATH", 3)
    rig = rig_with()
    two = plan(Node(graph="below@1", input=payload("a")), Node(needs=(0,)))
    rig.tell(rig.submit("r0", PARENT))
    rig.tell(opened("r1", two, "r0"))
    deeper = plan(Node(graph="below@1", input=payload("b")), Node())
    rig.tell(opened("r2", deeper, "r1"))
    assert rig.run("r0").grown == 4, "counted by the outermost run"
    assert recovered(rig, lambda s: {"r0": PARENT}.get(s.request_id, deeper)).run("r0").grown == 4
    rig.tell(opened("r3", STEP, "r2"))
    failure = rig.run("r2").tasks[0].failure
    assert failure is not None and failure.code == rules.TOO_MUCH


def test_an_agent_answers_with_a_graph_whose_output_is_its_task_s() -> None:
    rig = rig_with(slots=1)
    rig.tell(rig.submit("r", plan(Node(), Node(needs=(0,)))))
    rig.tell(answered(rig, "r/t0/0/1", "s"))
    assert rig.verdicts == [("r/t0/0/1", "ACCEPTED")]
    assert rig.run("r").tasks[0].attempts[0].state is AttemptState.SUCCEEDED
    assert rig.states("r") == ["RUNNING", "PENDING"]
    assert rig.offers[-1] == "s/t0/0/1", "its agent has its only place back"
    child = rig.run("s").submitted
    assert (child.graph_name, child.child_kind) == ("fake", ChildKind.ANSWER)
    rig.tell(rig.report("s/t0/0/1"))
    assert rig.run("r").tasks[0].output == payload("output")
    rig.tell(rig.report("r/t1/0/1"))
    assert rig.run("r").state is RunState.SUCCEEDED
    rig.tell(answered(rig, "r/t0/0/1", "another"))
    assert rig.verdicts[-1] == ("r/t0/0/1", "DUPLICATE") and "another" not in rig.shard.runs


def test_a_graph_that_an_agent_answers_with_while_its_run_is_held_begins_when_that_goes_on() -> None:
    rig = rig_with()
    rig.tell(rig.submit("r", ONE))
    rig.tell(steered("r", steer.pause))
    rig.tell(answered(rig, "r/t0/0/1", "s"))
    assert (rig.states("s"), rig.offers) == (["PENDING"], ["r/t0/0/1"])
    rig.tell(steered("r", steer.resume))
    assert rig.offers[-1] == "s/t0/0/1"


def test_a_graph_with_mistakes_fails_the_attempt_that_answered_it() -> None:
    rig = rig_with()
    rig.tell(rig.submit("r", ONE))
    rig.tell(answered(rig, "r/t0/0/1", "s", Failure(FailureKind.INVALID_OUTPUT, "2 mistakes", retryable=False)))
    assert rig.run("r").state is RunState.FAILED and rig.verdicts == [("r/t0/0/1", "ACCEPTED")]
    assert rig.run("r").tasks[0].attempts[0].state is AttemptState.FAILED


def test_the_output_of_an_answered_graph_has_to_fit_what_its_agent_promised() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2, capabilities=("text.work", "text.other")))
    rig.fleet._schemas.add('{"type": "number"}')
    rig.fleet.declare("demo", "text.work@1.0", '{"type": "number"}')
    rig.tell(rig.submit("r", ONE))
    rig.tell(answered(rig, "r/t0/0/1", "s", plan(Node(capability="text.other@1"))))
    rig.tell(rig.report("s/t0/0/1"))
    assert rig.run("s").state is RunState.SUCCEEDED
    failure = rig.run("r").failure
    assert failure is not None and failure.kind is FailureKind.INVALID_OUTPUT


def test_an_agent_that_answers_for_ever_with_its_own_capability_is_cut() -> None:
    same = plan(Node(input=payload("input of 0")))
    rig = rig_with()
    rig.tell(rig.submit("r", ONE))
    rig.tell(answered(rig, "r/t0/0/1", "s", plan(Node(input=payload("a")))))
    rig.tell(answered(rig, "s/t0/0/1", "s2", same))
    failure = rig.run("r").failure
    assert failure is not None and failure.code == rules.REPEATED


def test_an_escalated_task_has_no_sub_run_and_begins_a_new_one_when_it_is_tried_again() -> None:
    rig = parent_with_child(plan(Node(graph="below@1", deadline=5 * SECOND, on_failure=OnFailure.ESCALATE)))
    rig.now += 6 * SECOND
    rig.tell()
    assert rig.states("p") == ["ESCALATED"] and rig.run("c").state is not RunState.RUNNING
    task = rig.run("p").tasks[0]
    rig.tell(steered("p", lambda run, who, why: steer.retry_task(run, task, None, who, why)))
    rig.tell(opened("c2"))
    rig.tell(rig.report("c2/t0/0/1"))
    assert rig.run("p").state is RunState.SUCCEEDED


def test_what_a_long_run_knows_of_runs_beneath_it_moves_with_it() -> None:
    rig = parent_with_child()
    rig.tell(i.Archived({"p": rig.run("p").event_seq}))
    head = rig.log[-1:]
    rig.log = [entry for entry in rig.log if not any(b"\x0a\x01p" in raw[:3] for raw in entry[1])] + head
    other = rig.recovered(plan_of)
    assert other.run("p").tasks[0].sub_run == "c"
    assert other.run("p").grown == 1
