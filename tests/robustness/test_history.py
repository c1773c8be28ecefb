"""The rules over what clients noted find what they are for."""

from __future__ import annotations

import pytest
from antiphon.v1 import run_pb2

from tests.harness import Entry
from tests.robustness.history import (
    ONCE,
    UNDONE,
    Record,
    Submission,
    every_submission_is_one_run,
    every_submission_succeeds_as_expected,
    members_that_agree_are_of_different_instances,
    runs_beneath_tasks_end_with_them,
    watches_have_no_gap_and_no_repeat,
    what_has_failed_is_undone,
    what_is_used_again_was_worked_out,
    what_may_be_done_once_is_begun_once,
)


def submission(*watched: list[int], run_id: str = "r1", output: bytes = b"5") -> Submission:
    """One that expects 5 and was answered by a run of three events."""
    run = run_pb2.Run(run_id=run_id, state=run_pb2.RUN_STATE_SUCCEEDED, event_seq=3)
    run.output.inline = output
    return Submission("q", 5, [run], list(watched))


def test_a_watch_that_told_everything_once_is_fine() -> None:
    assert list(watches_have_no_gap_and_no_repeat([submission([1, 2, 3], [1, 2, 3])])) == []


@pytest.mark.parametrize("told", [[1, 3], [1, 2, 2, 3], [2, 3], [1, 2], [1, 3, 2], [1, 2, 3, 4], []])
def test_a_watch_with_a_gap_a_repeat_or_too_little_is_found(told: list[int]) -> None:
    assert len(list(watches_have_no_gap_and_no_repeat([submission([1, 2, 3], told)]))) == 1


def test_a_run_that_failed_or_answered_something_else_is_found() -> None:
    failed = submission()
    failed.answers[0].state = run_pb2.RUN_STATE_FAILED
    assert len(list(every_submission_succeeds_as_expected([submission(), failed, submission(output=b"6")]))) == 2


def test_two_runs_for_one_request_and_one_run_for_two_requests_are_found() -> None:
    twice = submission()
    twice.answers += submission(run_id="r2").answers
    assert len(list(every_submission_is_one_run([twice]))) == 1
    other = submission()
    other.request_id = "p"
    assert len(list(every_submission_is_one_run([submission(), other]))) == 1


def record(
    run_id: str, state: run_pb2.RunState.ValueType, *tasks: run_pb2.Task, parent: str = "", graph: str = ""
) -> Record:
    """A run as it ended."""
    run = run_pb2.Run(run_id=run_id, state=state, parent_attempt_id=parent, graph_name=graph)
    return Record(run, list(tasks))


def done(task_id: str, member: int = 0, **fields: object) -> run_pb2.Task:
    """A task that succeeded."""
    key = run_pb2.TaskKey(task_id=task_id, member=member)
    return run_pb2.Task(key=key, state=run_pb2.TASK_STATE_SUCCEEDED, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "parents", "found"), [("SUCCEEDED", 1, 0), ("FAILED", 1, 1), ("SUCCEEDED", 2, 1)])
def test_a_run_beneath_two_tasks_or_with_another_end_than_its_task_is_found(
    state: str, parents: int, found: int
) -> None:
    child = record("c", run_pb2.RunState.Value(f"RUN_STATE_{state}"), parent="p/a/0/0")
    begun = run_pb2.Child(run_id="c", kind=run_pb2.CHILD_KIND_GRAPH)
    above = [record(f"p{n}", run_pb2.RUN_STATE_SUCCEEDED, done("a", children=[begun])) for n in range(parents)]
    assert len(list(runs_beneath_tasks_end_with_them([child, *above]))) == found


def test_a_run_beneath_a_task_that_is_not_there_or_that_no_task_has_is_found() -> None:
    begun = run_pb2.Child(run_id="c", kind=run_pb2.CHILD_KIND_CALL)
    missing = record("p", run_pb2.RUN_STATE_SUCCEEDED, done("a", children=[begun]))
    orphan = record("o", run_pb2.RUN_STATE_SUCCEEDED, parent="p/a/0/1")
    assert len(list(runs_beneath_tasks_end_with_them([missing, orphan]))) == 2


def test_a_quorum_that_one_instance_has_answered_twice_is_found() -> None:
    agreement = run_pb2.Agreement(of=2, agree=2, chosen=1, groups=[run_pb2.AnswerGroup(members=[1, 2])])
    voted = record("r", run_pb2.RUN_STATE_SUCCEEDED, done("vote", agreement=agreement), done("vote", 1))
    for instances, found in ((("x", "y"), 0), (("x", "x"), 1)):
        for member, instance in enumerate(instances, 1):
            won = run_pb2.Attempt(state=run_pb2.ATTEMPT_STATE_SUCCEEDED, instance=instance)
            voted.attempts["vote", member] = [won]
        assert len(list(members_that_agree_are_of_different_instances([voted]))) == found


def test_a_result_that_is_used_again_and_that_nobody_has_worked_out_is_found() -> None:
    used = record("r", run_pb2.RUN_STATE_SUCCEEDED, done("a", reused=run_pb2.ReusedResult(origin_attempt_id="q/a/0/1")))
    journal = [Entry(event, "work.pure", "q/a/0/1", "q/a/0", "worker", 1) for event in ("begun", "done")]
    assert list(what_is_used_again_was_worked_out([used], journal)) == []
    assert len(list(what_is_used_again_was_worked_out([used], journal[:1]))) == 1


def test_a_run_that_failed_and_is_not_undone_or_that_succeeded_and_is_is_found() -> None:
    both = done("a"), done("a.compensate", compensates="a")
    assert list(what_has_failed_is_undone([record("r", run_pb2.RUN_STATE_FAILED, *both, graph=UNDONE)])) == []
    assert len(list(what_has_failed_is_undone([record("r", run_pb2.RUN_STATE_FAILED, both[0], graph=UNDONE)]))) == 1
    assert len(list(what_has_failed_is_undone([record("r", run_pb2.RUN_STATE_SUCCEEDED, *both, graph=UNDONE)]))) == 1


def test_what_may_be_done_once_and_was_begun_twice_is_found() -> None:
    paid = [record("r", run_pb2.RUN_STATE_SUCCEEDED, done("pay"), graph=ONCE)]
    journal = [Entry("begun", "work.sleep", f"r/pay/0/{n}", "r/pay/0", "worker", 1) for n in (1, 2)]
    assert list(what_may_be_done_once_is_begun_once(paid, journal[:1])) == []
    assert len(list(what_may_be_done_once_is_begun_once(paid, journal))) == 1
