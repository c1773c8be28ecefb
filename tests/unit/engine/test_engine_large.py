"""Runs with very many tasks: what is done to all of them looks at each a few times, and there is a most."""

from __future__ import annotations

from antiphon_orchestrator.engine import decide
from antiphon_orchestrator.engine.events import CancelRequested, Event
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.run import Run, apply, start
from antiphon_orchestrator.engine.states import RunState, TaskState

from tests.fakes.plans import Node, plan, submitted

MEMBERS = 2_500


def expanded(*nodes: Node) -> Run:
    """A run whose fan-outs have all their members."""
    run = start("r1", plan(*nodes), submitted(), 0)
    while events := decide.advance(run, 0):
        play(run, events)
    return run


def play(run: Run, events: list[Event]) -> None:
    for event in events:
        apply(run, event, 0)


def test_cancelling_goes_on_where_it_stopped() -> None:
    run = expanded(Node(members=MEMBERS), Node(members=MEMBERS))
    apply(run, CancelRequested("somebody", "enough"), 0)
    steps = 0
    while events := decide.advance(run, 0):
        assert len(events) <= decide.MEMBERS_PER_STEP + 2
        play(run, events)
        steps += 1
        passed = run.passed or {}
        ended = [sum(member.ended for member in node.members) for node in run.tasks]
        assert [passed.get(0, 0), passed.get(1, 0)] == ended
    assert run.state is RunState.CANCELLED and steps <= 2 * MEMBERS // decide.MEMBERS_PER_STEP + 2


def test_members_that_ended_before_are_passed_over() -> None:
    run = expanded(Node(members=MEMBERS), Node((0,)))
    node = run.tasks[0]
    for number in (1, 2, 7, MEMBERS):
        play(run, decide.fail_task(node.members[number - 1], Failure(FailureKind.PERMANENT, "no")))
    while run.state is RunState.RUNNING:
        play(run, decide.advance(run, 0))
    assert {member.state for member in node.members} == {TaskState.CANCELLED, TaskState.FAILED}
    assert sum(member.state is TaskState.FAILED for member in node.members) == 4
    assert run.passed == {0: MEMBERS}


def test_a_list_that_means_more_work_than_anybody_wants_is_refused() -> None:
    run = expanded(Node(members=decide.MOST_MEMBERS + 1))
    assert run.state is RunState.FAILED and run.failure is not None
    assert "for_each" not in run.failure.message and "100000 are the most" in run.failure.message
    assert run.tasks[0].members == []


def test_a_page_of_tasks_begins_behind_its_place() -> None:
    run = expanded(Node(members=3), Node((0,)))
    everything = list(run.all_tasks())
    for number, task in enumerate(everything):
        assert list(run.tasks_behind(task.plan.index, task.member)) == everything[number + 1 :]
    assert list(run.tasks_behind(-1, 0)) == everything
    assert list(run.tasks_behind(9, 9)) == []
