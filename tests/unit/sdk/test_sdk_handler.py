"""What may be decorated, and what is said of what may not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from antiphon import Agent, Graph, InvalidOutput, Payload, SetupError, Subgraph, TaskContext
from antiphon.v1 import agent_service_pb2
from antiphon.v1.payload_pb2 import Label


@dataclass
class Input:
    text: str


def nothing() -> None: ...


def plain(value: Input) -> str:
    """Does it.

    In detail.
    """
    return value.text


async def context_first(task: TaskContext, value: Input) -> None: ...


async def context_only(*, task: TaskContext) -> None: ...


def context_perhaps(value: Input, task: TaskContext | None = None) -> None: ...


async def unannotated(value): ...  # type: ignore[no-untyped-def]


def envelope(value: Payload) -> Payload:
    return value


class Callable_:
    def __call__(self, value: Input) -> str:
        return value.text


def two(a: int, b: int) -> int:
    return a + b


def variadic(*values: int) -> int:
    return 0


def by_keyword(*, value: int) -> int:
    return value


def strange(value: set[int]) -> int:
    return 0


def unresolved(value: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 0


def test_a_function_stays_what_it_was_and_is_described() -> None:
    agent = Agent("a", concurrency=4, labels={"region": "eu"})
    decorated = agent.capability(
        "text.do-it@1.2", effect="write", cost=3, clearance=["pii"], expected_latency=timedelta(seconds=2)
    )(plain)
    assert decorated is plain
    (capability,) = agent.describe().capabilities
    assert (capability.name, capability.version, capability.description) == (
        "text.do-it",
        "1.2",
        "Does it.\n\nIn detail.",
    )
    assert capability.effect == 3 and capability.expected_latency.seconds == 2
    assert agent.describe().prefetch == 0 and Agent("b").prefetch == 32


@pytest.mark.parametrize(
    "function", [nothing, context_first, context_only, context_perhaps, unannotated, envelope, Callable_()]
)
def test_these_may_be_handlers(function: Callable[..., Any]) -> None:
    Agent("a").capability("text.do@1")(function)


@pytest.mark.parametrize("function", [functools.partial(plain), functools.lru_cache(plain)])
def test_wrapped_functions_may_be_handlers(function: Callable[..., Any]) -> None:
    Agent("a").capability("text.do@1")(function)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (two, "two must take one input"),
        (variadic, "must take one input"),
        (by_keyword, "by position"),
        (strange, "the input of strange: set"),
        (unresolved, "Missing; define it at module level"),
    ],
)
def test_these_may_not_and_are_told_why(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Agent("a").capability("text.do@1")(function)


@pytest.mark.parametrize("name", ["text.do", "Text@1", "text@x", "text@1.2.3.4", "", "text do@1"])
def test_a_capability_has_a_dotted_name_and_a_version(name: str) -> None:
    with pytest.raises(ValueError, match="is not a capability"):
        Agent("a").capability(name)(plain)


def test_wrong_settings_are_refused_at_once() -> None:
    agent = Agent("a")
    agent.capability("text.do@1")(plain)
    with pytest.raises(ValueError, match="offered twice"):
        agent.capability("text.do@1")(plain)
    with pytest.raises(ValueError, match="effect"):
        agent.capability("text.other@1", effect="magic")(plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of label keys"):
        agent.capability("text.other@1", clearance="pii")(plain)
    with pytest.raises(ValueError, match="at most 32768"):
        agent.capability("text.other@1", input_schema="x" * 40_000)(plain)
    for wrong in ("", "A", "a_b", "-a", "a" * 64):
        with pytest.raises(ValueError, match="agent name"):
            Agent(wrong)
    for number in (0, 10_001):
        with pytest.raises(ValueError, match="concurrency"):
            Agent("a", concurrency=number)


async def test_an_agent_without_capabilities_or_with_a_long_path_is_not_set_up() -> None:
    agent = Agent("a")
    with pytest.raises(SetupError, match="offers nothing"):
        await agent.serve(socket="/tmp/x.sock")
    agent.capability("text.do@1")(plain)
    with pytest.raises(SetupError, match="longer than 107"):
        await agent.serve(socket="/tmp/" + "x" * 120)


async def takes_apart(value: Input) -> str | Subgraph: ...


async def only_takes_apart(value: Input) -> Subgraph: ...


def test_a_handler_that_may_answer_with_a_graph_promises_what_it_answers_otherwise() -> None:
    agent = Agent("a")
    agent.capability("text.do@1")(takes_apart)
    agent.capability("text.plan@1")(only_takes_apart)
    schemas = [capability.output_schema for capability in agent.describe().capabilities]
    assert schemas == ['{"type":"string"}', ""] or schemas == ['{"type":"string"}', "{}"]


def test_a_graph_becomes_a_message_with_its_input_or_says_what_is_wrong_with_that() -> None:
    agent = Agent("a")
    agent.capability("text.plan@1")(only_takes_apart)
    (handler,) = agent._handlers.values()
    graph = Graph("steps")
    graph.task("a", "text.count@1")
    answer = handler.output(Subgraph(graph, {"text": "x"}), 100)
    assert isinstance(answer, agent_service_pb2.Subgraph)
    assert answer.graph == graph.to_proto() and answer.input.inline == b'{"text":"x"}'
    plain = handler.output(Subgraph(graph.to_proto()), 100)
    assert isinstance(plain, agent_service_pb2.Subgraph) and not plain.HasField("input")
    labelled = handler.output(Subgraph(graph, Payload(inline=b"{}", labels=[Label(key="pii")])), 100)
    assert isinstance(labelled, agent_service_pb2.Subgraph) and labelled.input.labels[0].key == "pii"
    heavy = Payload(inline=b"1", labels=[Label(key="pii", value="x" * 256)] * 1_024)
    for what in (heavy, Subgraph(graph, heavy)):
        with pytest.raises(InvalidOutput, match="bytes of labels and other texts, larger than 262144 bytes"):
            handler.output(what, 65_536)
    for large in ("x" * 200, Payload(inline=b"x" * 200)):
        with pytest.raises(InvalidOutput, match="larger than 100 bytes"):
            handler.output(Subgraph(graph, large), 100)
    with pytest.raises(InvalidOutput, match="the input of the graph"):
        handler.output(Subgraph(graph, object()), 100)
    handler.output(Subgraph(Graph("steps", description="x" * 262_100)), 100)
    with pytest.raises(InvalidOutput, match="larger than 262144 bytes"):
        handler.output(Subgraph(Graph("steps", description="x" * 262_144)), 100)
