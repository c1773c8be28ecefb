"""Whatever a graph or a payload holds, admission answers with a plan or mistakes, and evaluation in kind."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from admission_views import RunView, graph, members_of, payload, task
from antiphon.v1.graph_pb2 import AnyOf, Graph, Join
from antiphon.v1.payload_pb2 import Payload
from antiphon_orchestrator.admission import GraphInvalid, compile_graph
from antiphon_orchestrator.engine.plan import EvaluationFailed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PIECES = [
    "input", "item", "index", "tasks", "tasks.a", "tasks.b.output", "tasks.c.output.x", "tasks.d.state",
    "tasks['e'].failure", "tasks[input]", ".x", "[0]", " + ", " == ", "(", ")", "'", '"', "{", "}", "$", "${", "1", "x",
    ".map(x, ", ".filter(item, ", "has(", "size(", "null", "true", " ? 1 : 2", "//", "\n", "\\", "é",
]  # fmt: skip
EXPRESSIONS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.sampled_from(
    ["input.ok", "input.xs", "tasks.a.output.x > 1", "tasks.b.output", "tasks.c.output.map(x, x.y)", "true", "[1, 2]"]
)
MAPPINGS = st.builds(lambda text: json.dumps({"v": "${" + text + "}"}), EXPRESSIONS) | EXPRESSIONS
TASKS = st.builds(
    task,
    st.sampled_from("abcdef"),
    capability=st.sampled_from(["x.y@1", "x.y@>=1,<2", "x.y", "@", "x@1.2.3.4"]),
    needs=st.lists(st.sampled_from("abcdefg"), max_size=2, unique=True),
    when=st.just("") | EXPRESSIONS,
    for_each=st.just("") | EXPRESSIONS,
    input=st.just("") | MAPPINGS,
    join=st.none() | st.just(Join(any=AnyOf())) | st.builds(Join, at_least=st.integers(1, 4)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "ok", "xs"]), inner),
    max_leaves=10,
)
PAYLOADS = JSON.map(payload) | st.binary(max_size=20).map(lambda data: Payload(inline=data).SerializeToString())


@given(st.lists(TASKS, min_size=1, max_size=6), MAPPINGS | st.just(""), st.text(max_size=10) | st.just("{}"))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_is_compiled_or_refused_with_reasons(tasks: list[Any], output: str, schema: str) -> None:
    try:
        plan = compile_graph(graph(*tasks, output=output, input_schema=schema)).plan
    except GraphInvalid as refused:
        assert refused.mistakes
        assert all(mistake.field and mistake.message for mistake in refused.mistakes)
        return
    for each in plan.tasks:
        assert all(plan.tasks[need].depth < each.depth for need in each.needs)
        assert all(each.index in plan.tasks[need].dependents for need in each.needs)
        assert each.join <= len(each.needs)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25))
@settings(max_examples=200, deadline=None)
def test_a_graph_is_accepted_exactly_when_its_tasks_can_be_ordered(edges: list[tuple[int, int]]) -> None:
    needs: dict[int, set[int]] = {index: set() for index in range(10)}
    for index, need in edges:
        needs[index].add(need)
    left = {index: set(before) for index, before in needs.items()}
    while ready := [index for index, before in left.items() if not before & left.keys()]:
        for index in ready:
            del left[index]
    definition = graph(*(task(f"t{index}", needs=[f"t{need}" for need in sorted(needs[index])]) for index in needs))
    try:
        compile_graph(definition)
    except GraphInvalid as refused:
        assert left
        assert {str(mistake.code) for mistake in refused.mistakes} == {"cycle"}
    else:
        assert not left


SOUND: Graph = graph(
    task("a", when="input.ok && input.x > 1", input='{"v": "${input.x + 1}", "w": "${input.xs[0]} and ${input}"}'),
    task("b", for_each="input.xs", input='["${item.x}", "${index}", "${tasks.a.output.xs.map(x, x.y + item)}"]'),
    task("c", for_each="tasks.b.output", input='{"i": "${item}", "u": "${timestamp(item.x)}"}'),
    task("d", when="has(input.x.y) || tasks.b.output.exists(b, b == input)", for_each="tasks.a.output"),
    output='{"all": "${tasks.b.output}", "s": "${tasks.a.output.x == 1 ? tasks.c.output : [input.x]}"}',
)


@given(PAYLOADS, PAYLOADS | st.none(), st.lists(PAYLOADS, max_size=3) | st.none())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_evaluation_answers_or_fails_in_kind(input: bytes, output: bytes | None, members: list[bytes] | None) -> None:
    evaluator = compile_graph(SOUND).plan.evaluator
    outputs: dict[int, bytes | list[bytes]] = {}
    if output is not None:
        outputs[0] = output
    if members is not None:
        outputs |= {1: members, 2: members}
    view = RunView(input, outputs)
    asked: list[Callable[[], object]] = [
        partial(evaluator.when, 0, view),
        partial(evaluator.when, 3, view),
        partial(evaluator.input, 0, view),
        lambda: evaluator.output(view)[0],
        *(partial(members_of, evaluator, view, index, most=10) for index in (1, 2, 3)),
    ]
    for ask in asked:
        try:
            answer = ask()
        except EvaluationFailed as failed:
            assert failed.field in ("when", "for_each", "input", "output")
            continue
        if isinstance(answer, tuple):
            count, inputs = answer
            assert len(inputs) == min(count, 10)
        elif isinstance(answer, bytes):
            json.loads(Payload.FromString(answer).inline)
        else:
            assert isinstance(answer, bool)
