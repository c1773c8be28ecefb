"""What users type is read strictly, and what they read is spelled plainly."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon.cli.problems import Problem
from antiphon.cli.text import (
    parse_duration,
    parse_labels,
    parse_task,
    parse_version,
    read_input,
    run_state,
    spell_between,
    spell_duration,
    spell_key,
)
from antiphon.v1.run_pb2 import RUN_STATE_SUCCEEDED
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800), ("1.5s", 1.5)]
)
def test_durations_are_read_with_their_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 s", "5s!", "soon"])
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_duration(text)
    assert "30s" in refused.value.remedy


@pytest.mark.parametrize("text", ["36501d", "9" * 30 + "d", "9" * 400 + "ms"])
def test_a_duration_that_no_clock_can_add_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="longer than 100 years") as refused:
        parse_duration(text)
    assert "36500d" in refused.value.remedy


@pytest.mark.parametrize("text", ["classify", "classify[17]", "a_b[1]"])
def test_tasks_and_members_are_read_as_they_are_spelled(text: str) -> None:
    assert spell_key(parse_task(text)) == text


@pytest.mark.parametrize("text", ["", "classify[0]", "classify[]", "[1]", "classify[1", "1st", "a b"])
def test_what_is_not_a_task_is_refused(text: str) -> None:
    with pytest.raises(Problem):
        parse_task(text)


@given(st.text())
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (parse_duration, parse_task, lambda one: parse_labels([one])):
        try:
            read(text)
        except Problem as problem:
            assert problem.exit_code == 2


def test_labels_are_read_and_a_key_may_come_once() -> None:
    assert parse_labels(["team=search", "note=a=b", "empty="]) == {"team": "search", "note": "a=b", "empty": ""}
    for wrong in (["team"], ["=x"], ["a=1", "a=2"]):
        with pytest.raises(Problem):
            parse_labels(wrong)


def test_a_version_follows_the_name() -> None:
    assert parse_version("review@2") == ("review", "2")
    assert parse_version("review") == ("review", "")


def test_input_comes_from_the_option_a_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"a": 1}')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[2]")))
    assert read_input(None, "--input") is None
    assert read_input('"x"', "--input") == "x"
    assert read_input(f"@{file}", "--input") == {"a": 1}
    assert read_input("-", "--input") == [2]


def test_input_that_is_not_json_is_refused_and_says_where(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text("{")
    with pytest.raises(Problem, match=r"input\.json is not JSON"):
        read_input(f"@{file}", "--input")
    with pytest.raises(Problem, match="--data is not JSON"):
        read_input("{", "--data")
    with pytest.raises(FileNotFoundError):
        read_input(f"@{tmp_path / 'absent'}", "--input")
    for content in (b'"\xff"', b"[" * 100_000, b"NaN", b"1e999", b'"\\ud800"'):
        file.write_bytes(content)
        with pytest.raises(Problem, match=r"input\.json is not JSON"):
            read_input(f"@{file}", "--input")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0123, "12 ms"), (3.44, "3.4 s"), (59.97, "1 min 0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_durations_are_spelled_for_people(seconds: float, text: str) -> None:
    assert spell_duration(timedelta(seconds=seconds)) == text


def test_a_span_with_an_open_end_is_empty() -> None:
    start, end = Timestamp(seconds=10), Timestamp(seconds=12)
    assert spell_between(start, end) == "2.0 s"
    assert spell_between(start, Timestamp()) == ""


def test_states_are_spelled_without_prefix_and_newer_ones_by_number() -> None:
    assert run_state(RUN_STATE_SUCCEEDED) == "SUCCEEDED"
    assert run_state(99) == "99"
