"""The first two words choose the program, before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
from antiphon import command

HEAVY = ("typer", "rich", "antiphon.cli")


def test_servers_get_their_arguments_without_the_word_that_chose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    program = types.ModuleType("antiphon_sidecar.__main__")

    def run(arguments: list[str]) -> int:
        got.append(arguments)
        return 7

    program.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "antiphon_sidecar.__main__", program)
    assert command.delegate(["sidecar", "run", "--config", "x", "--", "python", "agent.py"]) == 7
    assert got == [["run", "--config", "x", "--", "python", "agent.py"]]


def test_other_words_are_not_delegated() -> None:
    assert command.delegate([]) is None
    assert command.delegate(["sidecar"]) is None
    assert command.delegate(["sidecar", "--help"]) is None
    assert command.delegate(["run", "get", "x"]) is None


def test_a_missing_server_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.DELEGATED, ("dev",), ("antiphon_absent.dev", ""))
    assert command.delegate(["dev"]) == 2
    assert "in a checkout of Antiphon, run: pip install ./sdk/python .\n" in capsys.readouterr().err


def test_a_server_that_lacks_a_library_of_its_own_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "antiphon_broken.py").write_text("import absent_library\n")
    monkeypatch.setitem(command.DELEGATED, ("dev",), ("antiphon_broken", ""))
    with pytest.raises(ModuleNotFoundError, match="absent_library"):
        command.delegate(["dev"])


def test_choosing_a_server_loads_neither_typer_nor_rich() -> None:
    script = (
        "import sys\n"
        "from antiphon import command\n"
        "command.DELEGATED[('dev',)] = ('json.tool', '')\n"
        "sys.modules['json.tool'] = type(sys)('json.tool'); sys.modules['json.tool'].main = lambda arguments: 0\n"
        "assert command.delegate(['dev']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
