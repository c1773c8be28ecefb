"""Whatever happens, a command ends with an exit code and a line about what went wrong, or one for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from antiphon import FieldViolation, PolicyInvalid, RequestInvalid
from antiphon.cli.problems import Problem, describe

from tests.unit.cli.conftest import Command

GROUPS = ("run", "graph", "agent", "orchestrator", "sidecar", "certs", "new")


def test_help_shows_every_command(command: Command) -> None:
    shown = command("--help")
    assert shown.code == 0
    for word in (*GROUPS, "dev", "demo", "version"):
        assert word in shown.out


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_help(command: Command, group: str) -> None:
    assert command(group, "--help").code == 0


def test_a_group_alone_shows_its_help_as_wrong_usage(command: Command) -> None:
    shown = command("run")
    assert shown.code == 2 and "submit" in shown.out + shown.err


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("run", "get"),
        ("run", "list", "--limit", "x"),
        ("run", "list", "--waiting-for", "x"),
        ("run", "get", "a", "b"),
        ("agent", "--no"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(command: Command, words: tuple[str, ...]) -> None:
    shown = command(*words)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and "--help" in shown.err


def test_a_missing_profile_is_one_line_with_a_remedy(command: Command) -> None:
    shown = command("run", "list")
    assert shown.code == 2
    assert shown.err.count("\n") == 1 and "antiphon certs join TOKEN" in shown.err and "Traceback" not in shown.err


def test_the_version_is_also_an_option(command: Command) -> None:
    shown = command("--version")
    assert shown.code == 0 and shown.out == command("version").out != ""


def test_ctrl_c_is_one_line_that_says_what_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("antiphon.cli.runs.with_client", interrupted)
    shown = command("run", "watch", "r-1")
    assert shown.code == 130 and shown.err.count("\n") == 1 and "antiphon run list" in shown.err


def test_errors_are_json_for_programs(command: Command) -> None:
    shown = command("run", "list", "--json")
    assert shown.code == 2 and shown.out == ""
    assert "profile" in json.loads(shown.err)["error"]["message"]


def test_a_missing_file_is_named(command: Command) -> None:
    shown = command("run", "submit", "absent.yaml")
    assert shown.code == 2 and "absent.yaml" in shown.err


def failing(error: Exception) -> Callable[..., int]:
    def run(*_: object, **__: object) -> int:
        raise error

    return run


def test_a_bug_keeps_its_traceback_in_a_file(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("antiphon.cli.main.app", failing(KeyError("surprise")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("ANTIPHON_DEBUG", raising=False)
    shown = command("version")
    assert shown.code == 1 and "Traceback" not in shown.err and "KeyError: 'surprise'" in shown.err
    (kept,) = tmp_path.glob("antiphon-*.log")
    assert str(kept) in shown.err and "Traceback" in kept.read_text()


def test_a_bug_shows_its_traceback_when_asked(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antiphon.cli.main.app", failing(KeyError("surprise")))
    monkeypatch.setenv("ANTIPHON_DEBUG", "1")
    assert "Traceback" in command("version").err


def test_an_interruption_is_not_an_error_of_ours(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("antiphon.cli.main.app", interrupted)
    assert command("version").code == 130


@pytest.mark.parametrize("words", ["version --json", "version", "verify --list"])
def test_a_reader_that_is_gone_is_no_failure(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "antiphon.command", *words.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_that_is_no_export_and_a_bundle_that_is_none_are_named(command: Command, tmp_path: Path) -> None:
    wrong, bundle = tmp_path / "wrong", tmp_path / "bundle.pem"
    wrong.write_bytes(b"\xff\n")
    bundle.write_text("-----BEGIN CERTIFICATE-----")
    shown = command("audit", "verify", str(wrong), "--trust-bundle", str(bundle))
    assert shown.code == 2 and f"{wrong}:1: is not a line of an export" in shown.err and "audit export" in shown.err
    shown = command("audit", "verify", str(wrong), "--trust-bundle", str(wrong))
    assert (
        shown.code == 2 and shown.err == f"antiphon: {wrong} holds no certificates; give the authority's bundle.pem\n"
    )


def test_problems_say_what_to_do() -> None:
    told = describe(Problem("the file is empty", "write something into it"))
    assert told.line() == "antiphon: the file is empty; write something into it"
    assert told.exit_code == 2


def test_of_a_refused_request_its_mistakes_are_told_each_on_a_line_if_there_are_several() -> None:
    one, other = FieldViolation("name", "is too long"), FieldViolation("", "and 7 more")
    broken = "name breaks a rule of the request; see the field violations"
    told = describe(RequestInvalid(broken, violations=[one]))
    assert told.line() == "antiphon: name: is too long"
    assert json.loads(told.json())["error"]["message"] == f"{broken}; name: is too long"
    told = describe(RequestInvalid(broken, violations=[one, other]))
    assert told.line() == "antiphon: name breaks a rule of the request\nname: is too long\nand 7 more"
    many = "the policies have 8 mistakes, and nothing is changed; see the field violations"
    told = describe(PolicyInvalid(many, violations=[one, other]))
    assert told.line() == f"antiphon: {many.partition('; ')[0]}\nname: is too long\nand 7 more"
    told = describe(PolicyInvalid(many, violations=[one]))
    assert told.line() == f"antiphon: {many.partition('; ')[0]}; name: is too long"
    assert describe(PolicyInvalid(many)).line() == f"antiphon: {many}"


def test_version_names_both_distributions(command: Command) -> None:
    assert json.loads(command("version", "--json").out).keys() == {"antiphon", "antiphon-server"}
    assert command("version").out.startswith("antiphon 0.")


def test_commands_of_servers_reach_their_program_from_here_too(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[list[str]] = []

    def delegate(words: Sequence[str]) -> int:
        got.append(list(words))
        return 3

    monkeypatch.setattr("antiphon.cli.main.delegate", delegate)
    shown = command("sidecar", "run", "--help", "--", "python", "agent.py")
    assert shown.code == 3
    assert got == [["sidecar", "run", "--help", "--", "python", "agent.py"]]
