"""Without a Go toolchain the checks of Go say in one line that they were not run; in CI they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import check

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "protos"))
import golang


@pytest.fixture(autouse=True)
def no_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)


def test_nothing_of_go_is_looked_at_and_a_line_says_so() -> None:
    assert not golang.available()
    assert check.CHECKS["go"]() == (True, "not run: go is not on the PATH")


def test_in_continuous_integration_that_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(FileNotFoundError, match="go is missing"):
        golang.available()
    passed, said = check.CHECKS["go"]()
    assert not passed and "install it from https://go.dev/dl" in said
