"""The page of failures is what the promises and the marks of tests say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import failures  # noqa: E402  a tool, which no package holds


def test_a_row_names_its_tests_and_one_without_says_so() -> None:
    rows = {"agent dies": "it is tried again", "moon falls": "nothing happens"}
    text = failures.page(rows, [("agent dies", "tests/a/test_b.py", "test_it_is_tried_again")])
    assert "| agent dies | it is tried again | [it is tried again](../tests/a/test_b.py) |\n" in text
    assert "| moon falls | nothing happens | *not yet kept* |\n" in text


def test_a_mark_without_a_promise_is_refused() -> None:
    with pytest.raises(ValueError, match="proves 'sun falls'"):
        failures.page({}, [("sun falls", "tests/a/test_b.py", "test_x")])


def test_marks_are_found_in_the_source_of_tests(tmp_path: Path) -> None:
    folder = tmp_path / "tests/a"
    folder.mkdir(parents=True)
    (folder / "test_b.py").write_text(
        "@pytest.mark.proves('one', 'two')\n@other\nasync def test_x(): ...\ndef test_y(): ...\n"
    )
    assert list(failures.marks(tmp_path)) == [(row, "tests/a/test_b.py", "test_x") for row in ("one", "two")]
