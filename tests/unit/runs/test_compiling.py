"""Large graphs are compiled beside the event loop, with the same answer."""

from __future__ import annotations

import asyncio
import threading

import pytest
from antiphon.v1 import graph_pb2
from antiphon_orchestrator.admission import GraphInvalid, compile_graph
from antiphon_orchestrator.runs import compiling
from antiphon_orchestrator.runs.compiling import compile_aside


def graph(count: int, text: str = "") -> graph_pb2.Graph:
    made = graph_pb2.Graph(name="g", version="1")
    for number in range(count):
        made.tasks.add(id=f"t{number}", capability=f"text.work{number % 7}@1", input='{"a": "${input.a}"}')
    made.tasks[0].description = text
    return made


@pytest.mark.parametrize(("large", "aside"), [(False, False), (True, True)])
async def test_only_a_large_graph_is_compiled_in_the_thread_and_whatever_it_asks_of_the_loop_is_asked_there(
    monkeypatch: pytest.MonkeyPatch, large: bool, aside: bool
) -> None:
    asked: list[threading.Thread] = []
    compiled: list[threading.Thread] = []

    def offered(capability: str, trait: str) -> bool:
        asked.append(threading.current_thread())
        return capability == "text.work0@1"

    def here(*given: object, **named: object) -> object:
        compiled.append(threading.current_thread())
        return compile_graph(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(compiling, "compile_graph", here)
    wanted = graph(20, "x" * 4_000)
    monkeypatch.setattr(compiling, "LARGE", wanted.ByteSize() + (0 if large else 1))
    result = await compile_aside(wanted, offered=offered)
    assert [thread is not threading.main_thread() for thread in compiled] == [aside]
    assert set(asked) == {threading.main_thread()}
    expected = compile_graph(wanted, offered=lambda capability, trait: capability == "text.work0@1")
    assert result.warnings == expected.warnings and len(result.plan.tasks) == 20


async def test_the_loop_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LARGE", 0)
    begun, release = threading.Event(), threading.Event()

    def slow(*given: object, **named: object) -> object:
        begun.set()
        assert release.wait(60)
        return compile_graph(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(compiling, "compile_graph", slow)
    waiting = asyncio.create_task(compile_aside(graph(1)))
    assert await asyncio.to_thread(begun.wait, 60)
    release.set()  # by the loop itself, which could not if it waited
    assert len((await waiting).plan.tasks) == 1


async def test_the_mistakes_of_a_large_graph_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LARGE", 0)
    wrong = graph(3)
    wrong.tasks[1].capability = "no such thing @"
    wrong.tasks[2].input = '"${tasks.nobody.output}"'
    wrong.tasks[1].cache.ttl.seconds = 1
    with pytest.raises(GraphInvalid) as found:
        await compile_aside(wrong, offered=lambda capability, trait: bool(capability.index("@")))
    with pytest.raises(GraphInvalid) as expected:
        compile_graph(wrong, offered=lambda capability, trait: False)
    assert found.value.mistakes == expected.value.mistakes
