"""The evaluator: payloads in, payloads out, with their labels, or EvaluationFailed."""

import json

import pytest
from admission_views import RunView, graph, labels_of, members_of, payload, task, value_of
from antiphon.v1.graph_pb2 import Graph
from antiphon.v1.payload_pb2 import BlobReference, FieldLabels, Label, Payload
from antiphon_orchestrator.admission import compile_graph
from antiphon_orchestrator.engine.plan import EvaluationFailed, Evaluator

BLOB = Payload(blob=BlobReference(digest="0" * 64, size=10)).SerializeToString()


def evaluator(definition: Graph) -> Evaluator:
    return compile_graph(definition).plan.evaluator


def test_an_input_is_made_of_what_it_refers_to() -> None:
    made = evaluator(graph(task("a"), task("b", input='{"t": "${tasks.a.output.text}", "n": "${input.n + 1}"}')))
    view = RunView(payload({"n": 1}), {0: payload({"text": "hello"})})
    assert value_of(made.input(1, view)) == {"t": "hello", "n": 2}
    assert Payload.FromString(made.input(1, view)).inline == b'{"t":"hello","n":2}'


def test_an_absent_input_is_null() -> None:
    assert evaluator(graph(task("a"))).input(0, RunView(payload(1))) == b""


@pytest.mark.parametrize(
    "whole",
    [
        payload({"a": 1}, "pii", origin_attempt_id="run-1/a/0/1"),
        BLOB,
        Payload(inline=b"\x89PNG", media_type="image/png").SerializeToString(),
        Payload(inline=b"not json").SerializeToString(),
        b"",
    ],
)
def test_a_whole_source_passes_untouched(whole: bytes) -> None:
    made = evaluator(graph(task("a", input='"${input}"'), task("b", input='"${tasks.a.output}"')))
    assert made.input(0, RunView(whole)) == whole
    assert made.input(1, RunView(outputs={0: whole})) == whole


def test_a_missing_output_is_null_and_the_failure_can_be_read() -> None:
    text = '["${tasks.a.output}", "${tasks.a.state}", "${tasks.a.failure.kind}", "${tasks.a.failure == null}"]'
    made = evaluator(graph(task("a"), task("b", input=text), task("c", input='"${tasks.a.output}"')))
    view = RunView(states={0: "FAILED"}, failures={0: ("LOST", "gone")})
    assert value_of(made.input(1, view)) == [None, "FAILED", "LOST", False]
    assert made.input(2, view) == b""


def test_labels_join_once_each() -> None:
    made = evaluator(graph(task("a"), task("b", input='{"x": "${tasks.a.output.x}", "y": "${input.y}"}')))
    view = RunView(payload({"y": 1}, "pii", "region:eu"), {0: payload({"x": 2}, "pii", "region:us")})
    assert labels_of(made.input(1, view)) == ["pii", "region:eu", "region:us"]


def test_labels_of_a_part_follow_only_that_part() -> None:
    parts = [
        FieldLabels(pointer="/a/b", labels=[Label(key="secret")]),
        FieldLabels(pointer="/x~1y", labels=[Label(key="odd")]),
    ]
    view = RunView(payload({"a": {"b": 1, "c": 2}, "x/y": 3}, "all", field_labels=parts))

    def labels(expression: str) -> list[str]:
        made = evaluator(graph(task("a", input=json.dumps({"v": f"${{{expression}}}"}))))
        return labels_of(made.input(0, view))

    assert labels("input.a.c") == ["all"]
    assert labels("input.a.b") == labels("input.a") == ["all", "secret"]
    assert labels("input['x/y']") == ["all", "odd"]
    assert labels("input") == labels("[input].map(x, x.a.c)") == ["all", "secret", "odd"]


def test_too_many_labels_fail_rather_than_get_lost() -> None:
    made = evaluator(graph(task("a"), task("b", input='["${tasks.a.output}", "${input}"]')))
    view = RunView(payload(1, *(f"l{n}" for n in range(40))), {0: payload(1, *(f"m{n}" for n in range(40)))})
    with pytest.raises(EvaluationFailed, match="input: joins 80 labels"):
        made.input(1, view)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (BLOB, "tasks.a.output is kept by reference; pass it whole"),
        (Payload(inline=b"x", media_type="text/plain").SerializeToString(), "tasks.a.output is text/plain, not JSON"),
        (Payload(inline=b"{").SerializeToString(), "tasks.a.output is not JSON: expecting property name"),
        (Payload(inline=b"\xff").SerializeToString(), "tasks.a.output is not UTF-8"),
        (Payload(inline=b"[" * 60_000).SerializeToString(), "tasks.a.output is nested too deeply"),
        (payload({}), "tasks.a.output has no field 'x'"),
    ],
)
def test_what_cannot_be_read_is_a_failure_of_the_task(value: bytes, says: str) -> None:
    made = evaluator(graph(task("a"), task("b", input='{"v": "${tasks.a.output.x}"}')))
    with pytest.raises(EvaluationFailed) as failed:
        made.input(1, RunView(outputs={0: value}))
    assert failed.value.field == "input"
    assert failed.value.message.startswith("${tasks.a.output.x} " + says)


def test_other_json_media_types_are_json() -> None:
    made = evaluator(graph(task("a", input='"${input.x}"')))
    for media_type in ("application/json; charset=utf-8", "application/problem+json", "Application/JSON"):
        assert value_of(made.input(0, RunView(payload({"x": 1}, media_type=media_type)))) == 1


def test_a_condition_is_true_or_false_and_nothing_else() -> None:
    made = evaluator(graph(task("a", when="input.ok")))
    assert made.when(0, RunView(payload({"ok": True}))) is True
    assert made.when(0, RunView(payload({"ok": False}))) is False
    for value, says in (("no", "a string"), (1, "a number"), (None, "null"), ([], "a list"), ({}, "an object")):
        with pytest.raises(EvaluationFailed, match=f"when: gives {says}, not true or false"):
            made.when(0, RunView(payload({"ok": value})))
    with pytest.raises(EvaluationFailed, match="when: input has no field 'ok'"):
        made.when(0, RunView(payload({})))


def test_a_fan_out_gives_each_item_its_input_in_chunks() -> None:
    made = evaluator(graph(task("a", for_each="input.xs", input='{"n": "${index}", "v": "${item.v * 2}"}')))
    view = RunView(payload({"xs": [{"v": number} for number in range(5)]}, "pii"))
    count, inputs = members_of(made, view, 0, most=2)
    assert (count, [value_of(item) for item in inputs]) == (5, [{"n": 0, "v": 0}, {"n": 1, "v": 2}])
    assert all(labels_of(item) == ["pii"] for item in inputs)
    left = members_of(made, view, 0, 3)[1]
    assert [value_of(item) for item in left] == [{"n": n, "v": 2 * n} for n in (2, 3, 4)]
    assert made.members(0, view, 6, 10) == (5, [])


def test_a_chunk_is_short_where_inputs_take_long_to_make() -> None:
    slow = graph(task("a", for_each="input.xs", input='"${input.l.map(x, x + item).size()}"'))
    made = evaluator(slow)
    view = RunView(payload({"xs": list(range(50)), "l": list(range(1500))}))
    first = 1
    chunks = []
    while first <= 50:
        count, inputs = made.members(0, view, first, 100)
        assert count == 50 and [value_of(one) for one in inputs] == [1500] * len(inputs)
        chunks.append(len(inputs))
        first += len(inputs)
    assert sum(chunks) == 50 and max(chunks) < 50


def test_all_chunks_see_the_list_of_the_first() -> None:
    definition = graph(task("a"), task("b", for_each="tasks.a.output == null ? [1, 2, 3] : [9]"))
    made = evaluator(definition)
    views = [RunView() for _ in range(200)]  # of as many runs, whose chunks come in turns
    for view in views:
        assert made.members(1, view, 1, 1)[0] == 3
        view.outputs[0] = payload("late")
    for first in (2, 3):
        assert [made.members(1, view, first, 1)[0] for view in views] == [3] * 200
    assert not any(view.kept for view in views), "what is no longer needed is gone"
    assert made.members(1, view, 1, 1)[0] == 1
    assert evaluator(definition).members(1, view, 1, 5)[0] == 1


def test_without_an_input_a_member_gets_its_item() -> None:
    made = evaluator(graph(task("a", for_each="input"), task("b", for_each="tasks.a.output", input='"${item}"')))
    assert members_of(made, RunView(payload([1, {"a": 2}], "pii")), 0) == (
        2,
        [Payload(inline=item, labels=[Label(key="pii")]).SerializeToString() for item in (b"1", b'{"a":2}')],
    )
    outputs = [payload({"k": 1}, "secret"), BLOB, b""]
    assert members_of(made, RunView(outputs={0: outputs}), 1) == (3, outputs)


def test_the_output_of_a_fan_out_is_the_list_of_its_members() -> None:
    made = evaluator(
        graph(
            task("a", for_each="input"),
            task("b", input='{"all": "${tasks.a.output}", "n": "${tasks.a.output.filter(x, x != null).size()}"}'),
            task("c", for_each="tasks.a.output", input='"${item.k}"'),
            task("d", input='"${tasks.a.output}"'),
            task("e", for_each="tasks.a.output.filter(x, x != null)"),
        )
    )
    view = RunView(outputs={0: [payload({"k": 1}, "m"), b"", payload({"k": 3}, "n")]})
    assert value_of(made.input(1, view)) == {"all": [{"k": 1}, None, {"k": 3}], "n": 2}
    assert labels_of(made.input(3, view)) == ["m", "n"]
    assert value_of(made.input(3, view)) == [{"k": 1}, None, {"k": 3}]
    count, inputs = made.members(2, view, 1, 1)
    assert (count, value_of(inputs[0]), labels_of(inputs[0])) == (3, 1, ["m"])
    with pytest.raises(EvaluationFailed, match=r"input: .*item is null and has no field 'k'"):
        made.members(2, view, 2, 1)
    assert [labels_of(item) for item in members_of(made, view, 4)[1]] == [["m", "n"], ["m", "n"]]


def test_an_empty_list_has_no_members() -> None:
    assert evaluator(graph(task("a", for_each="input"))).members(0, RunView(payload([])), 1, 10) == (0, [])


@pytest.mark.parametrize(("value", "says"), [(None, "null"), ("abc", "a string"), ({}, "an object")])
def test_a_fan_out_over_anything_but_a_list_fails(value: object, says: str) -> None:
    made = evaluator(graph(task("a", for_each="input"), task("b", for_each="tasks.a.output")))
    with pytest.raises(EvaluationFailed, match=f"for_each: gives {says}, not a list"):
        made.members(0, RunView(payload(value)), 1, 10)
    with pytest.raises(EvaluationFailed, match="for_each: gives null, not a list"):
        made.members(1, RunView(), 1, 10)


def test_an_item_larger_than_a_payload_fails() -> None:
    made = evaluator(graph(task("a", for_each="[input, [input, input]]")))
    view = RunView(payload("x" * 40_000))
    with pytest.raises(EvaluationFailed, match="input: is larger than 65536 bytes"):
        made.members(0, view, 1, 10)


def test_the_output_of_a_run_is_as_the_graph_says() -> None:
    made = evaluator(graph(task("a"), task("b"), output='{"r": "${tasks.a.output.x}"}'))
    answer, _ = made.output(RunView(outputs={0: payload({"x": 1}, "pii")}))
    assert (value_of(answer), labels_of(answer)) == ({"r": 1}, ["pii"])
    with pytest.raises(EvaluationFailed, match="output: "):
        made.output(RunView())


def test_without_an_output_the_ends_of_the_graph_answer() -> None:
    made = evaluator(graph(task("a"), task("b", needs=["a"]), task("c", needs=["a"], for_each="input"), task("d")))
    view = RunView(outputs={0: payload(0, "no"), 1: payload({"x": 1}, "pii"), 2: [payload(1, "m"), b""]})
    answer, warning = made.output(view)
    assert value_of(answer) == {"b": {"x": 1}, "c": [1, None], "d": None}
    assert (labels_of(answer), warning) == (["pii", "m"], "")


def test_what_does_not_fit_an_output_that_no_graph_asked_for_is_null_there_and_said_so() -> None:
    made = evaluator(graph(*(task(id) for id in "abcdefg")))

    view = RunView(
        outputs={
            0: payload("x" * 40_000, "one"),
            1: payload("x" * 40_000, "two"),
            2: BLOB,
            3: payload("x", media_type="image/png"),
            4: payload("\ud800"),
            5: payload("x" * 70_000),
            6: payload("fits"),
        }
    )
    answer, warning = made.output(view)
    assert value_of(answer) == {**dict.fromkeys("bcdef"), "a": "x" * 40_000, "g": "fits"}
    assert labels_of(answer) == ["one"]
    assert warning.startswith(
        "the output has null for what these tasks answered: b (does not fit beside the others in 65536 bytes),"
        " c (is kept by reference; pass it whole), d (is image/png, not JSON; pass it whole),"
        " e (holds half of a surrogate pair, which UTF-8 has no form for), f (is larger than 65536 bytes); it is in"
    )


def test_so_it_is_when_no_task_fits() -> None:
    made = evaluator(graph(*(task(f"t{n}") for n in range(70))))
    many = {n: payload(n, f"label{n}") for n in range(70)}
    answer, warning = made.output(RunView(outputs=many))
    assert (answer, warning.partition("; ")[0]) == (
        b"",
        "the output is null: that of all tasks nothing depends on joins 70 labels",
    )
    made = evaluator(graph(*(task(f"t{n}" + "x" * 58) for n in range(1000))))
    answer, warning = made.output(RunView())
    assert answer == b"" and "is larger than 65536 bytes" in warning
    answer, warning = evaluator(graph(*(task(f"t{n}") for n in range(20)))).output(RunView(outputs={}))
    assert warning == ""
    large = payload("x" * 70_000)
    _, warning = evaluator(graph(*(task(f"t{n}") for n in range(20)))).output(
        RunView(outputs=dict.fromkeys(range(20), large))
    )
    assert "t7 (is larger than 65536 bytes) and 12 more; " in warning


def test_what_one_successor_read_the_next_sees_unchanged() -> None:
    made = evaluator(
        graph(task("a", input='"${input.xs}"'), task("b", for_each="input.xs + [4]"), task("c", input='"${input.xs}"'))
    )
    view = RunView(payload({"xs": [1, {"k": [2]}]}))
    before = made.input(0, view)
    assert made.members(1, view, 1, 9)[0] == 3
    assert made.input(2, view) == before


def test_an_entry_of_shared_context_is_a_value_like_any_other_and_brings_its_labels() -> None:
    text = '{"most": "${context.namespace.limits.most}", "plan": "${context.run[\'plan/a\']}"}'
    made = evaluator(graph(task("a", input=text)))
    limits, plan = payload({"most": 3}, "region:eu"), payload(["x"], "pii")
    view = RunView(entries={("namespace", "limits"): limits, ("run", "plan/a"): plan})
    assert value_of(made.input(0, view)) == {"most": 3, "plan": ["x"]}
    assert labels_of(made.input(0, view)) == ["region:eu", "pii"]


@pytest.mark.parametrize("whole", [payload({"a": 1}, "pii"), BLOB])
def test_an_entry_that_is_asked_for_whole_passes_untouched(whole: bytes) -> None:
    made = evaluator(graph(task("a", input='"${context.graph.all}"')))
    assert made.input(0, RunView(entries={("graph", "all"): whole})) == whole


def test_an_entry_that_is_not_there_fails_the_task_unless_it_is_asked_for_with_has() -> None:
    asking = "has(context.namespace.limits) && context.namespace.limits.most > 2"
    made = evaluator(
        graph(
            task("a", input='"${context.namespace.limits}"'),
            task("b", when=asking),
            task("c", input='"${has(context.namespace.limits) ? context.namespace.limits.most : 7}"'),
            task("d", input='"${context.namespace.limits.most + 1}"'),
            task("e", for_each="context.namespace.limits"),
        )
    )
    with pytest.raises(EvaluationFailed, match=r"context\.namespace\.limits is not in shared context"):
        made.input(0, RunView())
    assert made.when(1, RunView()) is False
    assert value_of(made.input(2, RunView())) == 7
    with pytest.raises(EvaluationFailed, match="limits"):
        made.input(3, RunView())
    with pytest.raises(EvaluationFailed, match=r"context\.namespace\.limits is not in shared context"):
        made.members(4, RunView(), 1, 10)
    there = RunView(entries={("namespace", "limits"): payload({"most": 3})})
    assert (made.when(1, there), value_of(made.input(2, there)), value_of(made.input(3, there))) == (True, 3, 4)


def test_the_plan_says_which_entries_a_task_and_the_output_read() -> None:
    plan = compile_graph(
        graph(
            task("a"),
            task(
                "b",
                when="context.run.go",
                for_each="context.graph.items",
                input='{"x": "${item}", "y": "${context.run.go}", "z": "${tasks.a.output}"}',
            ),
            output='"${context.namespace.report}"',
        )
    ).plan
    assert [task.reads for task in plan.tasks] == [(), (("graph", "items"), ("run", "go"))]
    assert plan.readers == (1,)
    assert plan.output_reads == (("namespace", "report"),)
