"""Single rules of the engine, each in the few lines it takes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from antiphon.v1 import graph_pb2, payload_pb2
from antiphon_orchestrator.admission import compile_graph
from antiphon_orchestrator.engine import decide
from antiphon_orchestrator.engine.decide import Outcome, backoff
from antiphon_orchestrator.engine.events import (
    AttemptEnded,
    AttemptOffered,
    AttemptStarted,
    Event,
    Placement,
    RunEnded,
    TaskCompleted,
    TaskEnded,
    TaskExpanded,
    TaskReady,
    TaskReopened,
    TaskWaiting,
)
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import EvaluationFailed, OnFailure, Plan
from antiphon_orchestrator.engine.run import Run, apply, start
from antiphon_orchestrator.engine.states import (
    ATTEMPT_TRANSITIONS,
    RUN_TRANSITIONS,
    TASK_TRANSITIONS,
    AttemptState,
    IllegalTransition,
    RunState,
    TaskState,
    TaskTrigger,
)

from tests.fakes.plans import SECOND, FakeEvaluator, Node, payload, plan, retry, submitted


class Ports:
    def jitter(self) -> float:
        return 0.5


def begun(of: Plan) -> Run:
    run = start("r", of, submitted(), 0)
    go_on(run)
    return run


def go_on(run: Run, events: list[Event] | None = None, now: int = 0) -> None:
    for event in events or ():
        apply(run, event, now)
    while following := decide.advance(run, now):
        for event in following:
            apply(run, event, now)


def offer(run: Run, index: int, member: int = 0, now: int = 0) -> None:
    apply(run, decide.offer(run, run.task(index, member), Placement("a", "s/i/a", "c@1", b"", 1), 1), now)


def settle(run: Run, index: int, outcome: Outcome, member: int = 0, now: int = 0) -> str:
    task = run.task(index, member)
    verdict, events = decide.settle(run, task, len(task.attempts), outcome, now, Ports())
    go_on(run, events, now)
    return verdict


SUCCESS = Outcome(AttemptState.SUCCEEDED, payload("done"))
FAILURE = Outcome(AttemptState.FAILED, failure=Failure(FailureKind.TRANSIENT, "trouble"))

EVENT_OF: dict[TaskTrigger, Event] = {
    TaskTrigger.NEEDS_MET: TaskReady(0, 0, b""),
    TaskTrigger.DUE: TaskReady(0, 0, b""),
    TaskTrigger.WAITED: TaskWaiting(0, 0, 1, ""),
    TaskTrigger.EXPANDED: TaskExpanded(0, 1, 1, []),
    TaskTrigger.OFFERED: AttemptOffered(0, 0, 2, Placement("a", "s/i/a", "c@1", b"", 1), 1),
    TaskTrigger.RETURNED: AttemptEnded(0, 0, 1, AttemptState.RETURNED),
    TaskTrigger.SUCCEEDED: AttemptEnded(0, 0, 1, AttemptState.SUCCEEDED),
    TaskTrigger.BACKED_OFF: TaskWaiting(0, 0, 1, ""),
    TaskTrigger.FAILED: TaskEnded(0, 0, TaskState.FAILED),
    TaskTrigger.SKIPPED: TaskEnded(0, 0, TaskState.SKIPPED),
    TaskTrigger.CANCELLED: TaskEnded(0, 0, TaskState.CANCELLED),
    TaskTrigger.REOPENED: TaskReopened(0, 0, "someone", ""),
}


@pytest.mark.parametrize(
    ("state", "trigger"),
    [
        (state, trigger)
        for state, trigger in itertools.product(TaskState, EVENT_OF)
        # Two triggers may be one event, which the state tells apart: a WAITING task that is ready is DUE, any other
        # NEEDS_MET; a
        # PENDING one that waits has WAITED, any other BACKED_OFF.
        if (state, trigger) not in TASK_TRANSITIONS
        and (state is TaskState.WAITING) == (trigger is TaskTrigger.DUE)
        and (state is TaskState.PENDING or trigger is not TaskTrigger.WAITED)
        and (state is not TaskState.PENDING or trigger is not TaskTrigger.BACKED_OFF)
    ],
)
def test_a_task_refuses_whatever_its_table_does_not_name(state: TaskState, trigger: TaskTrigger) -> None:
    run = start("r", plan(Node(), Node((0,))), submitted(), 0)
    apply(run, TaskReady(0, 0, b""), 0)
    offer(run, 0)
    run.tasks[0].state = state
    run.frontier.append(0)
    with pytest.raises(IllegalTransition):
        apply(run, EVENT_OF[trigger], 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [pair for pair in itertools.product(AttemptState, AttemptState) if pair not in ATTEMPT_TRANSITIONS],
)
def test_an_attempt_refuses_whatever_its_table_does_not_name(before: AttemptState, after: AttemptState) -> None:
    run = begun(plan(Node()))
    offer(run, 0)
    run.tasks[0].attempts[0].state = before
    event: Event = AttemptEnded(0, 0, 1, after)
    if after is AttemptState.RUNNING:
        event = AttemptStarted(0, 0, 1)
    with pytest.raises(IllegalTransition):
        apply(run, event, 0)


@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in itertools.product(RunState, RunState) if pair not in RUN_TRANSITIONS]
)
def test_a_run_refuses_whatever_its_table_does_not_name(before: RunState, after: RunState) -> None:
    run = begun(plan(Node()))
    run.state = before
    with pytest.raises(IllegalTransition):
        apply(run, RunEnded(after), 0)


def test_members_come_in_order_without_gaps() -> None:
    run = start("r", plan(Node(members=3)), submitted(), 0)
    with pytest.raises(IllegalTransition):
        apply(run, TaskExpanded(0, 3, 2, [b""]), 0)


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tries", [1, 2, 5, 100])
def test_a_wait_is_between_half_and_all_of_the_exponential_one(tries: int, jitter: float) -> None:
    rule = retry(100, first=SECOND, longest=20 * SECOND)
    whole = min(20 * SECOND, SECOND * 2 ** (tries - 1))
    wait = backoff(rule, tries, jitter)
    assert whole / 2 <= wait <= whole
    assert wait == int(whole / 2 + whole / 2 * jitter)


def test_the_first_rule_that_names_a_kind_decides_and_returned_offers_cost_no_try() -> None:
    rules = (retry(2, FailureKind.TRANSIENT), retry(9, FailureKind.TRANSIENT, FailureKind.TIMEOUT))
    run = begun(plan(Node(retry=rules)))
    for _ in range(3):
        offer(run, 0)
        assert settle(run, 0, Outcome(AttemptState.RETURNED)) == "ACCEPTED"
    offer(run, 0)
    settle(run, 0, FAILURE)
    assert run.tasks[0].state is TaskState.WAITING
    now = run.tasks[0].wait_until
    go_on(run, decide.on_time(run, run.tasks[0], now - 1), now - 1)
    assert run.tasks[0].state is TaskState.WAITING
    go_on(run, decide.on_time(run, run.tasks[0], now), now)
    offer(run, 0, now=now)
    settle(run, 0, FAILURE, now=now)
    assert [task.state.name for task in run.tasks] == ["FAILED"]
    assert run.state is RunState.FAILED


def test_an_offer_that_keeps_coming_back_is_not_made_again_at_once_for_ever() -> None:
    run = begun(plan(Node()))
    now, offers = 0, 0
    while now < 60 * SECOND:
        offer(run, 0, now=now)
        offers += 1
        settle(run, 0, Outcome(AttemptState.RETURNED), now=now)
        if run.tasks[0].state is TaskState.WAITING:
            now = run.tasks[0].wait_until
            go_on(run, decide.on_time(run, run.tasks[0], now), now)
        assert run.tasks[0].state is TaskState.READY
        assert offers < 30
    offer(run, 0, now=now)
    assert settle(run, 0, SUCCESS, now=now) == "ACCEPTED"
    assert run.state is RunState.SUCCEEDED


def test_an_attempt_that_had_begun_cannot_come_back_unused() -> None:
    run = begun(plan(Node(retry=(retry(2, FailureKind.LOST),))))
    offer(run, 0)
    go_on(run, decide.started(run, run.tasks[0], 1))
    assert settle(run, 0, Outcome(AttemptState.RETURNED)) == "ACCEPTED"
    assert run.tasks[0].attempts[0].state is AttemptState.LOST
    assert run.tasks[0].state is TaskState.WAITING


def test_a_deadline_ends_a_task_that_waits_for_its_next_try() -> None:
    run = begun(plan(Node(retry=(retry(9, first=4 * SECOND),), deadline=10 * SECOND)))
    now = 0
    for _ in range(2):
        offer(run, 0, now=now)
        settle(run, 0, FAILURE, now=now)
        if run.tasks[0].state is TaskState.WAITING:
            now = run.tasks[0].wait_until
            go_on(run, decide.on_time(run, run.tasks[0], now), now)
    offer(run, 0, now=now)
    go_on(run, decide.on_time(run, run.tasks[0], 10 * SECOND), 10 * SECOND)
    assert run.tasks[0].failure is not None and run.tasks[0].failure.kind is FailureKind.TIMEOUT
    assert run.tasks[0].attempts[-1].state is AttemptState.CANCELLED
    assert settle(run, 0, SUCCESS) == "STALE"
    assert run.state is RunState.FAILED


def test_a_rule_for_no_agent_lets_a_task_look_for_one_again_for_as_long_each_time() -> None:
    rule = retry(3, FailureKind.NO_AGENT, first=20 * SECOND)
    run = start("r", plan(Node(retry=(rule,), schedule_timeout=10 * SECOND)), submitted(), 0)
    go_on(run, now=SECOND)
    task, ends = run.tasks[0], []
    while not task.ended:
        due = decide.next_due(run, task)
        assert due is not None and decide.on_time(run, task, due - 1) == []
        ends.append((task.state.name, due // SECOND))
        go_on(run, decide.on_time(run, task, due), due)
    assert ends == [("READY", 11), ("WAITING", 31), ("READY", 41), ("WAITING", 81), ("READY", 91)]
    assert task.failure is not None and task.failure.kind is FailureKind.NO_AGENT


def test_attempts_count_with_it_and_the_wait_between_them_is_none_for_an_agent() -> None:
    both = retry(3, FailureKind.NO_AGENT, FailureKind.TRANSIENT, first=20 * SECOND)
    run = start("r", plan(Node(retry=(both,), schedule_timeout=10 * SECOND)), submitted(), 0)
    go_on(run, now=SECOND)
    task = run.tasks[0]
    offer(run, 0, now=SECOND)
    settle(run, 0, FAILURE, now=2 * SECOND)
    go_on(run, decide.on_time(run, task, task.wait_until), 17 * SECOND)
    assert (task.state, decide.next_due(run, task)) == (TaskState.READY, 27 * SECOND)
    go_on(run, decide.on_time(run, task, 27 * SECOND), 27 * SECOND)
    assert (task.state, task.reason) == (TaskState.WAITING, "attempt 2 of 3 found no agent")
    go_on(run, decide.on_time(run, task, task.wait_until), task.wait_until)
    go_on(run, decide.on_time(run, task, task.again_time + 10 * SECOND), task.again_time + 10 * SECOND)
    assert task.state is TaskState.FAILED


def looped(**settings: Any) -> Run:
    """A loop that has 9 s from the first second on, and whose first iteration ends in the seventh."""
    run = start(
        "r", plan(Node(**{"iterations": 9, "most_iterations": 9, "deadline": 9 * SECOND} | settings)), submitted(), 0
    )
    go_on(run, now=SECOND)
    offer(run, 0, 1, SECOND)
    settle(run, 0, SUCCESS, 1, 7 * SECOND)
    return run


def test_the_deadline_of_a_loop_is_that_of_all_its_iterations() -> None:
    run = looped()
    assert decide.next_due(run, run.task(0, 2)) == decide.task_deadline(run, run.task(0, 2)) == 10 * SECOND
    offer(run, 0, 2, 8 * SECOND)
    go_on(run, decide.on_time(run, run.task(0, 2), 10 * SECOND), 10 * SECOND)
    assert run.state is RunState.FAILED and run.failure is not None
    assert run.failure.message == "task t0: iteration 2: the task's deadline passed"


def test_no_iteration_begins_when_the_deadline_has_passed_and_the_last_one_counts_all_the_same() -> None:
    run = looped()
    offer(run, 0, 2, 8 * SECOND)
    settle(run, 0, SUCCESS, 2, 11 * SECOND)
    assert (run.tasks[0].state, len(run.tasks[0].members)) == (TaskState.FAILED, 2)
    assert run.failure is not None and run.failure.kind is FailureKind.TIMEOUT
    run = looped(iterations=2)
    offer(run, 0, 2, 8 * SECOND)
    settle(run, 0, SUCCESS, 2, 11 * SECOND)
    assert run.state is RunState.SUCCEEDED


def test_a_loop_that_a_person_lets_go_on_has_its_deadline_anew() -> None:
    run = looped(on_failure=OnFailure.ESCALATE)
    go_on(run, decide.on_time(run, run.task(0, 2), 10 * SECOND), 10 * SECOND)
    assert run.task(0, 2).state is TaskState.ESCALATED
    go_on(run, [TaskReopened(0, 2, "someone", "")], 50 * SECOND)
    assert decide.task_deadline(run, run.task(0, 2)) == 59 * SECOND
    go_on(run, decide.on_time(run, run.task(0, 2), 60 * SECOND), 60 * SECOND)
    go_on(run, [TaskCompleted(0, 2, payload("done"), principal="someone")], 100 * SECOND)
    assert decide.task_deadline(run, run.task(0, 3)) == 109 * SECOND
    offer(run, 0, 3, 105 * SECOND)
    settle(run, 0, SUCCESS, 3, 111 * SECOND)
    assert run.tasks[0].state is TaskState.ESCALATED, "the fourth would have begun too late"
    go_on(run, [TaskReopened(0, 0, "someone", "")], 200 * SECOND)
    assert decide.task_deadline(run, run.task(0, 4)) == 209 * SECOND


def test_a_failed_member_takes_all_others_with_it_in_bounded_steps() -> None:
    run = begun(plan(Node(members=250)))
    offer(run, 0, 1)
    offer(run, 0, 200)
    verdict, events = decide.settle(run, run.task(0, 1), 1, FAILURE, 0, Ports())
    for event in events:
        apply(run, event, 0)
    sizes = []
    while following := decide.advance(run, 0):
        sizes.append(len(following))
        for event in following:
            apply(run, event, 0)
    assert verdict == "ACCEPTED"
    assert max(sizes) <= 102
    assert [m.state.name for m in run.tasks[0].members].count("CANCELLED") == 249
    assert run.failure is not None and "member 1: trouble" in run.failure.message
    assert run.task(0, 200).attempts[0].state is AttemptState.CANCELLED


def test_a_failed_member_of_a_tolerant_fan_out_is_a_hole_in_its_list() -> None:
    run = begun(plan(Node(members=3, on_failure=OnFailure.CONTINUE)))
    for member, outcome in ((1, SUCCESS), (2, FAILURE), (3, SUCCESS)):
        offer(run, 0, member)
        settle(run, 0, outcome, member)
    assert run.tasks[0].state is TaskState.SUCCEEDED
    assert run.view(run.tasks[0]).output(0) == [payload("done"), b"", payload("done")]
    assert run.state is RunState.SUCCEEDED


def test_a_cancel_finds_a_fan_out_that_has_only_half_of_its_members() -> None:
    run = start("r", plan(Node(members=300)), submitted(), 0)
    for event in decide.advance(run, 0):
        apply(run, event, 0)
    assert len(run.tasks[0].members) == 100
    go_on(run, decide.cancel_run(run, "someone", "enough"))
    assert run.state is RunState.CANCELLED
    assert {m.state for m in run.tasks[0].members} == {TaskState.CANCELLED}
    assert len(run.tasks[0].members) == 100


class _Shrinking(FakeEvaluator):
    """A list that is shorter the second time, as under a join of any when more needs end."""

    def members(self, task: int, view: object, first: int, limit: int) -> tuple[int, list[bytes]]:
        return (150, [b""] * 100) if first == 1 else (50, [])


def test_a_list_that_changes_between_two_chunks_fails_the_task_and_never_spins() -> None:
    of = plan(Node(members=150))
    changing = Plan(of.name, of.version, of.tasks, of.roots, of.deadline, _Shrinking([Node(members=150)]), of.index_of)
    run = start("r", changing, submitted(), 0)
    for _ in range(20):
        events = decide.advance(run, 0)
        for event in events:
            apply(run, event, 0)
    assert run.state is RunState.FAILED
    assert run.failure is not None and "150 items, then one of 50" in run.failure.message


class _Mended(FakeEvaluator):
    """A list with an item behind the first hundred of which no input can be made, until somebody mends that."""

    bad = True

    def members(self, task: int, view: object, first: int, limit: int) -> tuple[int, list[bytes]]:
        if first > 1 and self.bad:
            raise EvaluationFailed("input", "item 120 has no field 'x'")
        return 150, [b""] * min(limit, 151 - first)


def test_an_item_that_is_bad_escalates_however_far_behind_it_is() -> None:
    of, evaluator = plan(Node(members=150, on_failure=OnFailure.ESCALATE)), _Mended([Node(members=150)])
    run = begun(Plan(of.name, of.version, of.tasks, of.roots, of.deadline, evaluator, of.index_of))
    node = run.tasks[0]
    assert (node.state, node.failure and node.failure.message) == (TaskState.ESCALATED, "item 120 has no field 'x'")
    assert {member.state for member in node.members} == {TaskState.CANCELLED} and run.state is RunState.RUNNING
    evaluator.bad = False
    go_on(run, [TaskReopened(0, 0, "someone", "")])
    assert len(node.members) == 150 and {member.state for member in node.members} == {TaskState.READY}


def graph(*tasks: graph_pb2.GraphTask, output: str = "") -> Plan:
    return compile_graph(graph_pb2.Graph(name="g", version="1", tasks=tasks, output=output)).plan


def test_a_real_graph_runs_by_its_expressions() -> None:
    run = begun(
        graph(
            graph_pb2.GraphTask(id="list", capability="text.list@1"),
            graph_pb2.GraphTask(id="each", capability="text.each@1", for_each="tasks.list.output"),
            graph_pb2.GraphTask(id="none", capability="text.none@1", when="size(tasks.each.output) > 2"),
            graph_pb2.GraphTask(
                id="sum", capability="text.sum@1", input='{"all": "${tasks.each.output}"}', needs=["none"],
                join=graph_pb2.Join(any=graph_pb2.AnyOf()),
            ),
            output='{"sum": "${tasks.sum.output}"}',
        )
    )  # fmt: skip
    offer(run, 0)
    settle(run, 0, Outcome(AttemptState.SUCCEEDED, payload_of(b'["a", "b"]')))
    assert [m.input for m in run.tasks[1].members] == [payload_of(b'"a"'), payload_of(b'"b"')]
    for member, text in ((1, b"1"), (2, b"2")):
        offer(run, 1, member)
        settle(run, 1, Outcome(AttemptState.SUCCEEDED, payload_of(text)), member)
    assert run.tasks[2].state is TaskState.SKIPPED
    assert run.tasks[3].input == payload_of(b'{"all":[1,2]}')
    offer(run, 3)
    settle(run, 3, Outcome(AttemptState.SUCCEEDED, payload_of(b"3")))
    assert (run.state, run.output) == (RunState.SUCCEEDED, payload_of(b'{"sum":3}'))


def test_an_expression_that_cannot_be_evaluated_is_a_failure_of_its_task_not_of_the_shard() -> None:
    run = begun(
        graph(
            graph_pb2.GraphTask(id="a", capability="text.a@1"),
            graph_pb2.GraphTask(id="b", capability="text.b@1", for_each="tasks.a.output.list"),
        )
    )
    offer(run, 0)
    settle(run, 0, Outcome(AttemptState.SUCCEEDED, payload_of(b'{"list": "\\ud800"}')))
    assert run.tasks[1].failure is not None
    assert (run.tasks[1].failure.kind, run.tasks[1].failure.field) == (FailureKind.INVALID_INPUT, "for_each")
    assert run.state is RunState.FAILED


def payload_of(text: bytes) -> bytes:
    return payload_pb2.Payload(inline=text).SerializeToString()


def test_what_is_told_of_a_part_keeps_all_that_is_known_of_its_failure() -> None:
    failure = Failure(FailureKind.PERMANENT, "no account", "no-account", False, "Traceback", "/iban")
    told = failure.of("task pay")
    assert told == Failure(FailureKind.PERMANENT, "task pay: no account", "no-account", False, "Traceback", "/iban")
