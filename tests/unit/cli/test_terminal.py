"""What is shown may come from anybody, and never controls the terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest
from antiphon.cli import output
from antiphon.cli.run_view import task_line
from antiphon.cli.watch_view import event_line
from antiphon.v1.run_pb2 import RUN_STATE_PAUSED, TASK_STATE_CANCELLED, RunEvent, Task, TaskKey
from rich.text import Text
from rich.tree import Tree

HOSTILE = "all\x1b[1A\x1b[2K fine \x1b]0;mine\x07 \x9b2J\x7f ok \ud83d"
HARMLESS = "all\ufffd[1A\ufffd[2K fine \ufffd]0;mine"
CONTROLS = {chr(number) for number in (*range(32), *range(127, 160), *range(0xD800, 0xE000))} - {"\n"}


def test_no_form_of_text_controls_whoever_reads_the_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    tree = Tree(Text(HOSTILE, "red"))
    tree.add(HOSTILE)
    for thing in (HOSTILE, Text(HOSTILE), tree, output.table((HOSTILE,), [[HOSTILE]]), output.facts([("a", HOSTILE)])):
        output.show(thing)
        shown = capsys.readouterr().out
        assert HARMLESS in shown and not CONTROLS & set(shown)
    output.note(HOSTILE)
    output.show_line(HOSTILE)
    printed = capsys.readouterr()
    assert not CONTROLS & set(printed.out + printed.err)


def test_json_holds_every_character_as_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (output.show_json, output.show_json_line):
        show({"message": HOSTILE})
        shown = capsys.readouterr().out
        assert not CONTROLS & set(shown) and json.loads(shown) == {"message": HOSTILE}


def test_on_a_terminal_only_colours_are_left() -> None:
    code = (
        "from antiphon.cli import output\n"
        "from rich.text import Text\n"
        f"text = {HOSTILE!r}\n"
        "output.show(Text(text, 'red'))\n"
        "output.show_content(text.encode('utf-8', 'replace'))\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    subprocess.run([sys.executable, "-c", code], stdout=slave, env=environment, check=True)
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert shown.startswith(f"\x1b[31m{HARMLESS}") and shown.count("\x1b") == 2
    assert shown.count(HARMLESS) == 2 and not {"\x9b", "\x07", "\x7f"} & set(shown)


def test_for_a_pipe_a_value_is_what_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.show_content(b"\x1b\x00\xff")
    assert capfdbinary.readouterr().out == b"\x1b\x00\xff"


def test_on_a_pipe_each_row_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "why " * 200
    output.show(output.table(("TASK", "WHY"), [["a", reason], ["b", "short"]]))
    head, first, second = capsys.readouterr().out.splitlines()
    assert (head, second) == ("TASK  WHY", "b     short") and first == f"a     {reason.rstrip()}"
    broken = "on hold\nCREATED\tby me\n"
    for cell in (broken, Text(broken, "dim")):
        output.show(output.table(("TASK", "WHY"), [[cell, "short"]]))
        assert capsys.readouterr().out.splitlines()[1:] == [r"on hold\nCREATED\tby me\n  short"]


def test_what_breaks_lines_breaks_no_line_of_a_run_or_of_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(key=TaskKey(task_id="t"), state=TASK_STATE_CANCELLED, reason="stopped\nr1  SUCCEEDED")
    event = RunEvent(event_seq=7, run_state=RUN_STATE_PAUSED, reason="on hold\n    8  run SUCCEEDED")
    for shown in (task_line(task, "t"), event_line(event)):
        output.show(shown)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(r"stopped\nr1  SUCCEEDED") and second.endswith(r"on hold\n    8  run SUCCEEDED")
