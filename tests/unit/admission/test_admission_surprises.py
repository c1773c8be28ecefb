"""What no rule foresees fails the task that asks for it: an exception of another kind would end the shard's loop, and
again after each restart, since the run is still there."""

import time

import pytest
from admission_views import RunView, graph, task
from antiphon.v1.graph_service_pb2 import GraphMistake
from antiphon.v1.payload_pb2 import Payload
from antiphon_orchestrator.admission import GraphInvalid, compile_graph
from antiphon_orchestrator.admission.compile import MOST_MISTAKES
from antiphon_orchestrator.admission.expression import Expression
from antiphon_orchestrator.engine.plan import EvaluationFailed

DEEP = Payload(inline=b"[" * 900 + b"]" * 900).SerializeToString()


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ('"${[input]}"', DEEP),
        ('{"a": "${input == 1 ? 1 : input}"}', DEEP),
        ('"${{input: 2}}"', Payload(inline=b"1.5").SerializeToString()),
    ],
)
def test_a_value_that_cannot_come_back_from_cel_fails_the_task(text: str, given: bytes) -> None:
    made = compile_graph(graph(task("a", input=text), output=text)).plan.evaluator
    with pytest.raises(EvaluationFailed):
        made.input(0, RunView(given))
    with pytest.raises(EvaluationFailed):
        made.output(RunView(given))


def test_a_map_with_a_key_that_cel_has_no_type_for_is_a_mistake_of_the_graph() -> None:
    with pytest.raises(GraphInvalid, match="map key"):
        compile_graph(graph(task("a", input='"${{1.5: 2}}"')))


def test_macros_nested_deeper_than_their_tree_can_be_read_are_a_mistake_of_the_graph() -> None:
    def nested(depth: int) -> str:
        return f"[1].map(x, {nested(depth - 1)})" if depth else "input"

    compile_graph(graph(task("a", when=f"{nested(15)} == []")))
    with pytest.raises(GraphInvalid, match=r"tasks\[0\]\.when: is nested too deeply"):
        compile_graph(graph(task("a", when=f"{nested(20)} == []")))


@pytest.mark.parametrize(
    "text",
    [
        r'''"${'\ud800'}"''',
        r"""{"\ud800": "${"}""",
        r"""{"a": "${ \udfff }"}""",
        r'''"${input['\ud800']}"''',
        r"""{"\ud800": 1, "\ud800": 2}""",
        r"""{"${\ud800": 1}""",
    ],
)
def test_a_mistake_about_half_a_surrogate_pair_can_be_told(text: str) -> None:
    with pytest.raises(GraphInvalid) as refused:
        compile_graph(graph(task("a", input=text)))
    for mistake in refused.value.mistakes:
        assert "ud800" in mistake.message or "udfff" in mistake.message
        GraphMistake(field=mistake.field, message=mistake.message)


@pytest.mark.parametrize(
    "schema",
    [
        r"""{"$ref": "\ud800"}""",
        r"""{"properties": {"\ud800": {"x-antiphon-labels": 4}}}""",
        r"""{"properties": {"\ud800": {"type": "none"}}}""",
    ],
)
def test_so_can_one_of_a_schema(schema: str) -> None:
    with pytest.raises(GraphInvalid) as refused:
        compile_graph(graph(task("a"), input_schema=schema))
    GraphMistake(field="input_schema", message=refused.value.mistakes[0].message)


def test_an_exception_of_any_kind_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise OverflowError("a library's own idea")

    monkeypatch.setattr(Expression, "evaluate", broken)
    made = compile_graph(
        graph(task("a", when="input == 1", for_each="[1]", input='{"x": "${input + 1}"}'))
    ).plan.evaluator
    for ask in (
        lambda: made.when(0, RunView()),
        lambda: made.input(0, RunView()),
        lambda: made.members(0, RunView(), 1, 10),
    ):
        with pytest.raises(EvaluationFailed, match="OverflowError"):
            ask()


def test_a_graph_full_of_mistakes_is_given_up_in_time() -> None:
    tasks = [task(f"t{n}", needs=[f"unknown{k}" for k in range(50)]) for n in range(1000)]
    begun = time.process_time()
    with pytest.raises(GraphInvalid) as refused:
        compile_graph(graph(*tasks))
    assert len(refused.value.mistakes) == MOST_MISTAKES
    assert time.process_time() - begun < 5  # all 50,000, each with a hint, take a quarter of an hour
