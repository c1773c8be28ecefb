"""What no rule foresees fails the task that asks for it: an exception of another kind would end the shard's loop, and
again after each restart, since the run is still there."""

import time

import pytest
from admission_views import RunView, graph, task
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


def test_an_exception_of_any_kind_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise OverflowError("a library's own idea")

    monkeypatch.setattr(Expression, "evaluate", broken)
    made = compile_graph(graph(task("a", when="input == 1", for_each="[1]", input='{"x": "${input}"}'))).plan.evaluator
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
