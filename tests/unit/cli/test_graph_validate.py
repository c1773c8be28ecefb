"""Every mistake of a graph is reported with its place; what the file calls right the server's own check has seen."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.cli.conftest import Command

RIGHT = """\
name: review
version: "1"
tasks:
  - id: list
    capability: inventory.list@1
  - id: classify
    capability: license.classify@1
    for_each: tasks.list.output
"""
MISSPELLED = """\
name: review
tasks:
  - id: list
    capabilty: inventory.list@1
    timeout: soon
"""
CYCLE = """\
name: review
tasks:
  - id: a
    capability: x.y@1
    needs: [b]
  - id: b
    capability: x.y@1
    needs: [a, nobody]
"""


def test_a_right_graph_is_called_right(command: Command) -> None:
    Path("graph.yaml").write_text(RIGHT)
    shown = command("graph", "validate", "graph.yaml")
    assert (shown.code, shown.out) == (0, "")
    assert "review is right, 2 tasks" in shown.err


def test_mistakes_of_spelling_have_their_lines(command: Command) -> None:
    Path("graph.yaml").write_text(MISSPELLED)
    shown = command("graph", "validate", "graph.yaml")
    assert shown.code == 1
    lines = shown.out.splitlines()
    assert any(line.startswith("graph.yaml:4:") and "capabil" in line and "[unknown_field]" in line for line in lines)
    assert any(line.startswith("graph.yaml:5:") and "timeout" in line for line in lines)


def test_mistakes_of_spelling_hide_none_of_meaning_in_other_tasks(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE + "  - {id: c, capability: nope, timeout: soon}\n")
    shown = command("graph", "validate", "graph.yaml")
    found = [line.rpartition(" ")[2] for line in shown.out.splitlines()]
    assert shown.code == 1 and sorted(found) == ["[cycle]", "[unknown_reference]", "[value]"]


def test_nothing_is_guessed_of_a_graph_that_lost_a_task(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE + "  - nobody\n")
    shown = command("graph", "validate", "graph.yaml")
    assert shown.code == 1 and shown.out.count("\n") == 1 and "tasks[2]: write a mapping" in shown.out


def test_mistakes_of_meaning_have_their_lines_all_of_them(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE)
    shown = command("graph", "validate", "graph.yaml")
    assert shown.code == 1
    assert "[cycle]" in shown.out and "[unknown_reference]" in shown.out
    assert all(
        line.startswith("graph.yaml:") and not line.startswith("graph.yaml:1:1:") for line in shown.out.splitlines()
    )


def test_programs_get_line_column_field_message_and_code(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE)
    told = json.loads(command("graph", "validate", "graph.yaml", "--json").out)
    assert {frozenset(one) for one in told["mistakes"]} == {frozenset(("line", "column", "field", "message", "code"))}
    assert told["warnings"] == []


def test_a_file_with_mistakes_is_not_submitted(command: Command) -> None:
    Path("graph.yaml").write_text(MISSPELLED)
    shown = command("run", "submit", "graph.yaml")
    assert shown.code == 1 and "graph.yaml:4:" in shown.err


def test_garbage_is_a_mistake_not_a_crash(command: Command) -> None:
    Path("graph.yaml").write_bytes(b"\xff\xfe\x00{")
    assert command("graph", "validate", "graph.yaml").code == 1
    assert command("graph", "validate", "absent.yaml").code == 2
