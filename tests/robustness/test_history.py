"""The rules over what clients noted find what they are for."""

from __future__ import annotations

import pytest
from antiphon.v1 import run_pb2

from tests.robustness.history import (
    Submission,
    every_submission_is_one_run,
    every_submission_succeeds_as_expected,
    watches_have_no_gap_and_no_repeat,
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
