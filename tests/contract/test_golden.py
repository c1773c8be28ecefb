"""Bytes that were written once are read today as they were meant, and written the same again."""

from __future__ import annotations

import pytest

from tools import golden

LINES = golden.lines(golden.PATH.read_text())


@pytest.mark.parametrize("message", sorted({line.message for line in LINES}))
def test_golden_bytes_still_say_the_same(message: str) -> None:
    found = [golden.complaint(line) for line in LINES if line.message == message]
    assert found == [None] * len(found)


def test_every_message_and_every_field_of_it_has_golden_bytes() -> None:
    missing = sorted({line.message for line in golden.missing(LINES)})
    assert missing == [], "run: python tools/golden.py"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"wire": "08"}, "cannot be read"),
        ({"wire": "f8ff0301"}, "is unknown"),
        ({"says": {"run_id": "another"}}, "say something else"),
        ({"message": "antiphon.v1.Nothing"}, "no such message"),
    ],
)
def test_a_line_that_no_longer_holds_is_noticed(change: dict[str, str], complaint: str) -> None:
    line = next(line for line in LINES if line.message == "antiphon.v1.GetRunRequest")
    assert complaint in (golden.complaint(line._replace(**change)) or "")


def test_a_line_that_no_longer_holds_stops_the_command_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wire.jsonl"
    path.write_text(golden.PATH.read_text().replace('"wire":"', '"wire":"f8ff0301', 1))
    before = path.read_text()
    monkeypatch.setattr(golden, "PATH", path)
    assert golden.main() == 1
    assert path.read_text() == before
    assert "never changed" in capsys.readouterr().err


def test_the_command_adds_what_is_missing_and_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wire.jsonl"
    all_lines = golden.PATH.read_text().splitlines(keepends=True)
    path.write_text("".join(all_lines[1:]))
    monkeypatch.setattr(golden, "PATH", path)
    assert golden.main() == 0
    assert path.read_text() == "".join([*all_lines[1:], all_lines[0]])
