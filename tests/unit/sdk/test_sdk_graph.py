"""Graphs in Python and in files: the same message, and every mistake with its place."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon import Compensate, Graph, Hedge, Mistake, Quorum, Retry, Until, any_of, at_least, item, load_graph, ref
from antiphon.v1 import failure_pb2, graph_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

REVIEW = """
name: review
version: 1.10
description: Looks at every package.
input_schema: {type: object, required: [folder]}
labels: {team: compliance}
deadline: 1h30m
tasks:
  - id: list
    capability: inventory.list@1
    input: {folder: "${input.folder}", deep: true, most: 500, note: no}
    retry:
      - {on: [TRANSIENT, LOST], max_attempts: 5, backoff: 1s, max_backoff: 1m, multiplier: 2}
  - id: classify
    capability: license.classify@1
    for_each: ${tasks.list.output}
    when: size(tasks.list.output) > 0
    timeout: 250ms
    on_failure: continue
    priority: 3
    constraints: {agent_labels: {region: eu}, max_cost: 1.5}
  - id: report
    capability: report.write@1
    needs: [list]
    join: {at_least: 1}
    schedule_timeout: 5m
    input:
      verdicts: ${tasks.classify.output}
      title: "For ${input.folder}"
output: {report: "${tasks.report.output}"}
"""


def built() -> graph_pb2.Graph:
    graph = Graph(
        "review",
        version="1.10",
        description="Looks at every package.",
        input_schema={"type": "object", "required": ["folder"]},
        output={"report": ref("tasks.report.output")},
        deadline=timedelta(minutes=90),
        labels={"team": "compliance"},
    )
    found = graph.task(
        "list",
        "inventory.list@1",
        input={"folder": ref("input.folder"), "deep": True, "most": 500, "note": "no"},
        retry=[
            Retry(
                ["TRANSIENT", "lost"],
                max_attempts=5,
                backoff=timedelta(seconds=1),
                max_backoff=timedelta(minutes=1),
                multiplier=2,
            )
        ],
    )
    graph.task(
        "classify",
        "license.classify@1",
        for_each=found.output,
        when="size(tasks.list.output) > 0",
        timeout=timedelta(milliseconds=250),
        on_failure="continue",
        priority=3,
        agent_labels={"region": "eu"},
        max_cost=1.5,
    )
    graph.task(
        "report",
        "report.write@1",
        needs=[found],
        join=at_least(1),
        schedule_timeout=timedelta(minutes=5),
        input={"verdicts": ref("tasks.classify.output"), "title": f"For {ref('input.folder')}"},
    )
    return graph.to_proto()


def test_a_graph_is_the_same_from_yaml_from_json_and_from_python(tmp_path: Path) -> None:
    loaded = load_graph(REVIEW)
    assert loaded.mistakes == () and loaded.graph == built()
    path = tmp_path / "graph.yaml"
    path.write_text(REVIEW)
    assert load_graph(path) == loaded
    as_json = {
        "name": "review",
        "version": "1.10",
        "description": "Looks at every package.",
        "input_schema": {"type": "object", "required": ["folder"]},
        "labels": {"team": "compliance"},
        "deadline": "90m",
        "output": {"report": "${tasks.report.output}"},
        "tasks": [
            {
                "id": "list",
                "capability": "inventory.list@1",
                "input": {"folder": "${input.folder}", "deep": True, "most": 500, "note": "no"},
                "retry": [
                    {
                        "on": ["TRANSIENT", "LOST"],
                        "max_attempts": 5,
                        "backoff": "1s",
                        "max_backoff": "60s",
                        "multiplier": 2,
                    }
                ],
            },
            {
                "id": "classify",
                "capability": "license.classify@1",
                "for_each": "tasks.list.output",
                "when": "size(tasks.list.output) > 0",
                "timeout": "0.25s",
                "on_failure": "continue",
                "priority": 3,
                "constraints": {"agent_labels": {"region": "eu"}, "max_cost": 1.5},
            },
            {
                "id": "report",
                "capability": "report.write@1",
                "needs": ["list"],
                "join": {"at_least": 1},
                "schedule_timeout": "300s",
                "input": {"verdicts": "${tasks.classify.output}", "title": "For ${input.folder}"},
            },
        ],
    }
    for indent in (None, "\t", 2):
        assert load_graph(json.dumps(as_json, indent=indent)).graph == built()


TRIP = """
name: trip
tasks:
  - {id: pause, wait: {time: 30s}}
  - {id: opening, wait: {moment: timestamp(input.at)}, when: input.wait}
  - {id: approved, wait: {signal: approved}, needs: [pause, opening], join: any, deadline: 2d, on_failure: continue}
  - id: book
    capability: hotel.book@1
    at_most_once: true
    on_failure: escalate
    compensate: {capability: hotel.cancel@1, input: {number: "${tasks.book.output}"}, timeout: 10s,
                 retry: [{on: [LOST], max_attempts: 9}]}
  - {id: improve, capability: text.improve@1, until: {condition: output.good, max_iterations: 5}}
"""


def test_waits_loops_and_what_undoes_a_task_are_the_same_from_a_file_and_from_python() -> None:
    graph = Graph("trip")
    graph.wait("pause", time=timedelta(seconds=30))
    graph.wait("opening", moment=ref("timestamp(input.at)"), when="input.wait")
    graph.wait(
        "approved",
        signal="approved",
        needs=["pause", "opening"],
        join=any_of(),
        deadline=timedelta(days=2),
        on_failure="continue",
    )
    graph.task(
        "book",
        "hotel.book@1",
        at_most_once=True,
        on_failure="escalate",
        compensate=Compensate(
            "hotel.cancel@1",
            {"number": ref("tasks.book.output")},
            retry=[Retry(["LOST"], max_attempts=9)],
            timeout=timedelta(seconds=10),
        ),
    )
    graph.task("improve", "text.improve@1", until=Until("${output.good}", max_iterations=5))
    loaded = load_graph(TRIP)
    assert not loaded.mistakes
    assert loaded.graph == graph.to_proto()


def test_quorums_hedges_and_caches_are_the_same_from_a_file_and_from_python() -> None:
    graph = Graph("check")
    near = "output.total - other.total < 0.01"
    graph.task("sum", "books.sum@1", quorum=Quorum(2, of=3, condition=f"${{{near}}}", distinct="instance"))
    graph.task("vote", "books.vote@1", quorum=Quorum(3, of=5))
    graph.task("find", "books.find@1", hedge=Hedge(timedelta(milliseconds=200), quantile=0.95, share=0.2))
    graph.task("tax", "books.tax@1", cache=timedelta(hours=1))
    loaded = load_graph(
        f"""
name: check
tasks:
  - {{id: sum, capability: books.sum@1, quorum: {{agree: 2, of: 3, condition: {near}, distinct: instance}}}}
  - {{id: vote, capability: books.vote@1, quorum: {{agree: 3, of: 5, distinct: agent}}}}
  - {{id: find, capability: books.find@1, hedge: {{delay: 200ms, quantile: 0.95, share: 0.2}}}}
  - {{id: tax, capability: books.tax@1, cache: {{ttl: 1h}}}}
"""
    )
    assert not loaded.mistakes
    assert loaded.graph == graph.to_proto()


def test_mistakes_in_quorums_hedges_and_caches_have_their_place() -> None:
    loaded = load_graph(
        """
name: check
tasks:
  - {id: a, capability: a.b@1, quorum: {agree: 1, of: 17, distinct: sidecar}}
  - {id: b, capability: a.b@1, quorum: {agree: 2}}
  - {id: c, capability: a.b@1, hedge: {quantile: 1, share: 0.9}}
  - {id: d, capability: a.b@1, cache: 1h}
  - {id: e, capability: a.b@1, cache: {}, retry: [{on: [NO_QUORUM], max_attempts: 2}]}
"""
    )
    assert [(mistake.field, mistake.line) for mistake in loaded.mistakes] == [
        ("tasks[0].quorum.agree", 4),
        ("tasks[0].quorum.of", 4),
        ("tasks[0].quorum.distinct", 4),
        ("tasks[1].quorum", 5),
        ("tasks[2].hedge", 6),
        ("tasks[2].hedge.quantile", 6),
        ("tasks[2].hedge.share", 6),
        ("tasks[3].cache", 7),
        ("tasks[4].cache", 8),
        ("tasks[4].retry[0].on[0]", 8),
    ]


def test_mistakes_in_waits_loops_and_what_undoes_a_task_have_their_place() -> None:
    loaded = load_graph(
        """
name: trip
tasks:
  - {id: a, wait: {time: 30s, signal: go}}
  - {id: b, wait: {signal: "no name"}}
  - {id: c, wait: 30s}
  - {id: d, capability: a.b@1, until: {condition: "true"}, at_most_once: perhaps}
  - {id: e, capability: a.b@1, compensate: {input: 1}}
  - {id: f}
"""
    )
    assert [(mistake.field, mistake.line) for mistake in loaded.mistakes] == [
        ("tasks[0].wait", 4),
        ("tasks[1].wait.signal", 5),
        ("tasks[2].wait", 6),
        ("tasks[3].until", 7),
        ("tasks[3].at_most_once", 7),
        ("tasks[4].compensate", 8),
        ("tasks[5]", 9),
    ]


def test_positions_lead_back_to_the_text() -> None:
    positions = load_graph(REVIEW).positions
    assert positions["name"] == (2, 1)
    assert positions["tasks[1].when"] == (17, 5)
    assert positions["tasks[0].retry[0].backoff"] == positions["tasks[0].retry[0].initial_backoff"] == (13, 50)
    assert positions["tasks[2].input.title"] == (29, 7)


def test_every_mistake_is_reported_with_its_place() -> None:
    loaded = load_graph(
        """name: [review]
versoin: 1
tasks:
  - id: a
    capability: x@1
    wen: "true"
    timeout: 30
    on_failure: explode
    join: some
    priority: 11
    retry: [{on: [TRANSIANT], max_attempts: 0, wait: 1s}]
    needs: b
    id: again
  - just text
  - {id: c, constraints: {agent_labels: [eu], max_cost: cheap}, input: !!python/name:os.system x}
input_schema: text
"""
    )
    found = {(one.field, one.code, one.line) for one in loaded.mistakes}
    assert found == {
        ("name", "type", 1),
        ("versoin", "unknown_field", 2),
        ("tasks[0].wen", "unknown_field", 6),
        ("tasks[0].timeout", "value", 7),
        ("tasks[0].on_failure", "value", 8),
        ("tasks[0].join", "value", 9),
        ("tasks[0].priority", "value", 10),
        ("tasks[0].retry[0].on[0]", "value", 11),
        ("tasks[0].retry[0].max_attempts", "value", 11),
        ("tasks[0].retry[0].wait", "unknown_field", 11),
        ("tasks[0].needs", "type", 12),
        ("tasks[0].id", "duplicate", 13),
        ("tasks[1]", "type", 14),
        ("tasks[2]", "value", 15),
        ("tasks[2].constraints.agent_labels", "type", 15),
        ("tasks[2].constraints.max_cost", "value", 15),
        ("tasks[2].input", "type", 15),
        ("input_schema", "type", 16),
    }
    hints = {one.field: one.message for one in loaded.mistakes}
    assert "did you mean when?" in hints["tasks[0].wen"] and "did you mean version?" in hints["versoin"]
    assert "did you mean TRANSIENT?" in hints["tasks[0].retry[0].on[0]"]
    (tasks,) = load_graph("{name: a, tasks: {a: {capability: x@1}}}").mistakes
    assert "- {id: a, capability: text.count@1}" in tasks.message


def test_names_that_a_server_refuses_are_mistakes_of_the_file() -> None:
    loaded = load_graph("{name: My Review, version: v1, tasks: [{id: a-b, capability: x@1}]}")
    assert [(one.field, one.code) for one in loaded.mistakes] == [
        ("name", "value"),
        ("version", "value"),
        ("tasks[0].id", "value"),
    ]
    assert "'My Review' will not do" in loaded.mistakes[0].message
    assert list(loaded.mistakes) == sorted(loaded.mistakes, key=lambda one: (one.line, one.column))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("tasks: []", "needs at least one task"),
        ("[a, b]", "write a mapping"),
        ("name: a\n---\nname: b", "not YAML"),
        ("name: 'open", "not YAML"),
        ('name: "\\UFFFFFFFF"', "not YAML"),
        ("name: \x00", "not YAML"),
        ("[" * 100_000, "nested deeper"),
        ("x" * (1 << 20) + "x", "at most"),
        ("output: &a [*a]", "nested deeper"),
        ("output: {b: &b {c: 1}, <<: *b}\nname: x", "tasks is missing"),
        ('{"name": "a", "name": "b"}', "there twice"),
        ('name: "\\ud800"', "lone surrogate"),
        ('output: {"a": "\\ud800"}', "lone surrogate"),
        ('output: {"\\ud800": 1}', "surrogates not allowed"),
        ('labels: {"\\ud800": x}', "lone surrogate"),
        ("? [a]\n: b", "plain word"),
    ],
)
def test_what_is_no_graph_is_a_mistake_and_never_an_exception(text: str, says: str) -> None:
    loaded = load_graph(text)
    assert any(says in one.message for one in loaded.mistakes), loaded.mistakes


def test_an_alias_bomb_is_defused() -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    loaded = load_graph("name: x\noutput:\n" + "".join(f"  {line}\n" for line in layers))
    assert any("aliases counted each time" in one.message for one in loaded.mistakes)
    assert len(loaded.positions) < 200_000


def test_a_file_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_bytes(b"name: \xff")
    assert load_graph(path).mistakes == (Mistake("", "this is not UTF-8 text: byte 6 cannot be read", "value", 1, 1),)
    path.write_bytes(b" " * (2 << 20))
    assert "at most" in load_graph(path).mistakes[0].message
    with pytest.raises(FileNotFoundError):
        load_graph(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("spelled", "seconds", "nanos"),
    [("250ms", 0, 250_000_000), ("1.5h", 5400, 0), ("1h30m", 5400, 0), ("2d", 172_800, 0), ("0s", 0, 0)],
)
def test_durations_are_read_as_they_are_spelled(spelled: str, seconds: int, nanos: int) -> None:
    deadline = load_graph(f"deadline: {spelled}").graph.deadline
    assert (deadline.seconds, deadline.nanos) == (seconds, nanos)


@pytest.mark.parametrize("spelled", ["30", "s", "-1s", "1w", "1s ", "366d", "1e3s", "", "null"])
def test_other_durations_are_mistakes(spelled: str) -> None:
    assert any(one.field == "deadline" for one in load_graph(f"deadline: '{spelled}'").mistakes)


FIELDS = "name tasks id capability needs when input join retry on timeout constraints priority output labels"
WORDS = "at_least any 30s ${x} null 1 1e9 0x - : { } [ ] , &a *a !t | ' \""
words = st.sampled_from([*FIELDS.split(), *WORDS.split(), "- ", ": ", "\n", "\n  "])
documents = st.lists(words, max_size=40).map("".join) | st.text(max_size=200)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
tasks = st.dictionaries(st.sampled_from(FIELDS.split()), values)


@settings(max_examples=300, deadline=None)
@given(documents | st.builds(json.dumps, st.fixed_dictionaries({"name": values, "tasks": st.lists(tasks, max_size=3)})))
@example('{"tasks": [{"retry": [{"on": [null]}]}]}')
def test_no_text_makes_the_loader_raise(text: str) -> None:
    loaded = load_graph(text)
    for one in loaded.mistakes:
        assert one.line >= 1 and one.column >= 1 and one.message and one.code
    if not loaded.mistakes:
        assert loaded.graph.name and loaded.graph.tasks
    loaded.graph.SerializeToString()


@given(values)
def test_json_in_a_file_is_read_as_json(value: Any) -> None:
    text = json.dumps({"name": "a", "tasks": [{"id": "a", "capability": "b@1"}], "output": value})
    loaded = load_graph(text)
    if not loaded.mistakes and "NaN" not in text and "Infinity" not in text:
        read = json.loads(loaded.graph.output)
        assert read == value or repr(read) == repr(json.loads(json.dumps(value)))


def test_the_builder_takes_bare_and_wrapped_expressions() -> None:
    graph = Graph("g")
    graph.task("a", "x@1", when="${ input.a } ", for_each=ref("input.list"), input=item, join=any_of())
    graph.task("b", "x@1", when="${a} && ${b}", input=None)
    first, second = graph.to_proto().tasks
    assert (first.when, first.for_each, first.input) == ("input.a", "input.list", '"${item}"')
    assert first.join.HasField("any") and second.when == "${a} && ${b}" and second.input == ""
    assert not first.retry and not first.HasField("constraints") and not first.HasField("timeout")


def test_the_builder_refuses_what_it_cannot_say() -> None:
    graph = Graph("g")
    with pytest.raises(TypeError):
        graph.task("a", "x@1", input={1, 2})
    with pytest.raises(ValueError):
        graph.task("a", "x@1", retry=[Retry(["NEVER"])])
    with pytest.raises(ValueError):
        graph.task("a", "x@1", on_failure="explode")  # type: ignore[arg-type]


def test_the_words_of_files_are_the_enum_s() -> None:
    kinds = [name.removeprefix("FAILURE_KIND_") for name in failure_pb2.FailureKind.DESCRIPTOR.values_by_name][1:]
    kinds.remove("NO_QUORUM")  # of a whole task, which no rule tries again
    text = f"tasks: [{{id: a, capability: x@1, retry: [{{on: [{', '.join(kinds)}], max_attempts: 2}}]}}]\nname: a"
    assert len(load_graph(text).graph.tasks[0].retry[0].kinds) == len(kinds)


def test_a_task_that_runs_a_graph_is_the_same_from_a_file_and_from_python() -> None:
    graph = Graph("above")
    graph.sub_run(
        "below", "finance.review@1.2", input={"n": ref("input.n")}, when="input.n > 1", deadline=timedelta(hours=2)
    )
    graph.sub_run("each", "review", for_each="input.all", on_failure="continue")
    text = """
name: above
tasks:
  - {id: below, graph: finance.review@1.2, input: {n: "${input.n}"}, when: input.n > 1, deadline: 2h}
  - {id: each, graph: review, for_each: input.all, on_failure: continue}
"""
    loaded = load_graph(text)
    assert not loaded.mistakes and loaded.graph == graph.to_proto()
    wrong = load_graph("name: above\ntasks:\n  - {id: a, graph: Review@x}\n  - {id: b}\n").mistakes
    assert [(one.field, one.line) for one in wrong] == [("tasks[0].graph", 3), ("tasks[1]", 4)]
