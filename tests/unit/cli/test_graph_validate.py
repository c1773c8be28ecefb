"""Every mistake of a graph is reported with its place; what the file calls right the server's own check has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml
from antiphon import load_graph
from antiphon.cli.graph_findings import Finding, admit, mistakes_of
from antiphon.v1 import graph_pb2
from google.protobuf import json_format

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


def test_mistakes_of_spelling_hide_none_of_meaning(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE + "  - {id: c, capability: nope, timeout: soon}\n")
    shown = command("graph", "validate", "graph.yaml")
    found = [line.rpartition(" ")[2] for line in shown.out.splitlines()]
    assert shown.code == 1 and sorted(found) == ["[cycle]", "[unknown_reference]", "[value]", "[value]"]


def test_the_order_is_judged_of_a_graph_that_lost_a_task_but_no_name(command: Command) -> None:
    Path("graph.yaml").write_text(CYCLE + "  - nobody\n")
    shown = command("graph", "validate", "graph.yaml")
    found = [line.rpartition(" ")[2] for line in shown.out.splitlines()]
    assert shown.code == 1 and sorted(found) == ["[cycle]", "[type]"] and "tasks[2]: write a mapping" in shown.out


def test_a_misspelt_task_is_judged_in_the_fields_that_can_be_understood(command: Command) -> None:
    Path("graph.yaml").write_text("""\
name: review
output: {all: "${tasks.lst.output}"}
tasks:
  - id: list
    capability: inventory.list
    timeout: soon
  - id: classify
    capability: license.classify@1
    foreach: tasks.list.output
    when: tasks.list.output >
    input: {package: "${item}", folder: "${tasks.lists.output}"}
""")
    shown = command("graph", "validate", "graph.yaml")
    found = [(line.split(":")[1], line.rpartition(" ")[2]) for line in shown.out.splitlines()]
    assert found == [
        ("2", "[unknown_reference]"),
        ("5", "[value]"),
        ("6", "[value]"),
        ("9", "[unknown_field]"),
        ("10", "[expression]"),
    ], shown.out


FULL = """\
name: full
input_schema: {type: object, properties: {folder: {type: string}, wanted: {type: boolean}}, additionalProperties: false}
output: {all: "${tasks.classify.output}", folder: "${input.folder}"}
tasks:
  - id: list
    capability: inventory.list@1
    input: {folder: "${input.folder}"}
    retry: [{on: [TRANSIENT], max_attempts: 3, backoff: 1s, max_backoff: 5s}]
  - id: classify
    capability: license.classify@1
    for_each: tasks.list.output
    input: {package: "${item}", at: "${index}"}
    when: input.wanted
  - id: improve
    capability: text.improve@1
    input: {text: "${previous}", round: "${iteration}"}
    until: {condition: "output.score > 0.9", max_iterations: 3}
    compensate: {capability: text.forget@1, input: "${tasks.improve.output}"}
  - id: total
    capability: books.total@1
    quorum: {agree: 2, of: 3, condition: "output.total == other.total", distinct: instance}
    on_failure: continue
  - id: search
    capability: catalog.search@1
    hedge: {delay: 300ms, quantile: 0.95}
    cache: {ttl: 1h}
  - id: once
    capability: mail.send@1
    at_most_once: true
    retry: [{on: [TRANSIENT], max_attempts: 3}]
  - id: pause
    wait: {time: 30s}
    needs: [once, total]
    join: {at_least: 2}
  - id: below
    graph: finance.review@1.2
    needs: [pause]
    deadline: 2h
    join: any
  - id: last
    capability: report.write@1
    input: {text: "${tasks.improve.output}", how: "${tasks.total.state}"}
    join: {at_least: 2}
"""


def broken(node: yaml.Node) -> Iterator[str]:
    """The full graph with one thing wrong in it: each name, each value and each item once."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield spoilt(key, "zz")
            yield from broken(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from broken(value)
    if node.start_mark.index > 0:
        yield spoilt(node, "[{a: b}]")
        yield spoilt(node, "{}")


def spoilt(node: yaml.Node, text: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    space = FULL[:end][len(FULL[:end].rstrip()) :]  # a block ends where the next begins
    return FULL[:start] + text + space + FULL[end:]


def test_no_mistake_of_spelling_brings_one_of_meaning_with_it_that_is_none() -> None:
    assert load_graph(FULL).mistakes == () and admit(load_graph(FULL).graph) == ([], [])
    tried = 0
    for text in broken(yaml.compose(FULL, Loader=yaml.BaseLoader)):
        loaded = load_graph(text)
        if not loaded.mistakes:
            continue  # within an input or a schema names are the user's own
        tried += 1
        consequences = set(mistakes_of(loaded)) - {Finding.of(one) for one in loaded.mistakes}
        assert not consequences, f"{consequences} of {loaded.mistakes}"
    assert tried > 80


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


def test_a_graph_file_becomes_the_json_of_protobuf(command: Command) -> None:
    Path("graph.yaml").write_text(RIGHT)
    shown = command("graph", "convert", "graph.yaml")
    assert shown.code == 0
    assert json_format.Parse(shown.out, graph_pb2.Graph(), ignore_unknown_fields=False) == load_graph(RIGHT).graph
    Path("graph.yaml").write_text(MISSPELLED)
    assert command("graph", "convert", "graph.yaml").code == 1


def test_a_file_with_mistakes_is_not_submitted(command: Command) -> None:
    Path("graph.yaml").write_text(MISSPELLED)
    shown = command("run", "submit", "graph.yaml")
    assert shown.code == 1 and "graph.yaml:4:" in shown.err


def test_garbage_is_a_mistake_not_a_crash(command: Command) -> None:
    Path("graph.yaml").write_bytes(b"\xff\xfe\x00{")
    assert command("graph", "validate", "graph.yaml").code == 1
    assert command("graph", "validate", "absent.yaml").code == 2
