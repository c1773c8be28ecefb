"""What `antiphon new agent` writes is complete: it imports, its test passes, its graph and configuration are right."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from antiphon.cli import new_go, new_typescript

from tests.unit.cli.conftest import Command


def test_the_files_are_written_and_named(command: Command) -> None:
    shown = command("new", "agent", "--lang", "python", "hello-world")
    assert shown.code == 0
    written = {str(Path("hello-world") / name) for name in ("agent.py", "test_agent.py", "sidecar.toml", "README.md")}
    assert written <= set(shown.out.splitlines())
    assert "cd hello-world" in shown.err


def test_the_agent_passes_its_own_test(command: Command) -> None:
    command("new", "agent", "hello-world")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "hello-world"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_graph_is_right(command: Command) -> None:
    command("new", "agent", "hello-world")
    shown = command("graph", "validate", "hello-world/graph.yaml")
    assert shown.code == 0, shown.out


def test_the_sidecar_configuration_is_right() -> None:
    from antiphon.cli.new import _SIDECAR

    assert tomllib.loads(_SIDECAR)["agent"][0]["command"] == ["python", "agent.py"]


def test_a_project_in_typescript_depends_on_the_sdk_of_this_checkout(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antiphon.cli.new_typescript.sdk_folder", lambda: tmp_path / 'a "quoted" folder')
    shown = command("new", "agent", "--lang", "typescript", "hello-world")
    assert shown.code == 0
    package = json.loads(Path("hello-world/package.json").read_text())
    assert package["dependencies"] == {"@antiphon/sdk": f'file:{tmp_path}/a "quoted" folder'}
    assert '"hello-world.greet@1"' in Path("hello-world/src/agent.ts").read_text()
    assert tomllib.loads(Path("hello-world/sidecar.toml").read_text())["agent"][0]["command"] == [
        "node",
        "dist/main.js",
    ]
    assert command("graph", "validate", "hello-world/graph.yaml").code == 0


def test_without_a_checkout_there_is_no_sdk_for_typescript(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_typescript, "__file__", str(tmp_path / "a/b/c/new_typescript.py"))
    assert "is not here" in command("new", "agent", "--lang", "typescript", "hello").err
    (tmp_path / "typescript").mkdir()
    (tmp_path / "typescript/package.json").touch()
    assert "make typescript" in command("new", "agent", "--lang", "typescript", "hello").err


def test_without_a_checkout_there_is_no_sdk_for_go(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_go, "__file__", str(tmp_path / "a/b/c/new_go.py"))
    shown = command("new", "agent", "--lang", "go", "hello")
    assert shown.code == 2 and "is not here" in shown.err
    assert not Path("hello").exists()


def test_nothing_is_overwritten(command: Command) -> None:
    command("new", "agent", "hello")
    Path("hello/agent.py").write_text("mine")
    shown = command("new", "agent", "hello")
    assert shown.code == 2 and "hello/agent.py" in shown.err
    assert Path("hello/agent.py").read_text() == "mine"


def test_wrong_names_and_languages_are_refused(command: Command) -> None:
    assert command("new", "agent", "Hello World").code == 2
    shown = command("new", "agent", "--lang", "cobol", "hello")
    assert shown.code == 2 and "python" in shown.err
