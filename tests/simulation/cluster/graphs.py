"""What is run: small graphs of every shape the engine knows."""

from __future__ import annotations

from antiphon.v1 import failure_pb2, graph_pb2
from antiphon_orchestrator.admission import Values, compile_graph
from antiphon_orchestrator.engine.plan import Plan

_AGAIN = (failure_pb2.FAILURE_KIND_TRANSIENT, failure_pb2.FAILURE_KIND_LOST, failure_pb2.FAILURE_KIND_TIMEOUT)


def _task(
    graph: graph_pb2.Graph, name: str, *needs: str, retry: bool = True, timeout: int = 30, priority: int = 0
) -> graph_pb2.GraphTask:
    task = graph.tasks.add(id=name, capability="text.work@1", needs=needs, priority=priority)
    task.timeout.seconds = timeout
    if retry:
        rule = task.retry.add(kinds=_AGAIN, max_attempts=8, multiplier=1.5)
        rule.initial_backoff.nanos, rule.max_backoff.seconds = 200_000_000, 2
    return task


def _graph(name: str) -> graph_pb2.Graph:
    graph = graph_pb2.Graph(name=name)
    graph.deadline.seconds = 900
    return graph


def _single() -> graph_pb2.Graph:
    graph = _graph("single")
    _task(graph, "a")
    return graph


def _chain() -> graph_pb2.Graph:
    graph = _graph("chain")
    _task(graph, "a")
    _task(graph, "b", "a").input = '{"x": "${tasks.a.output}"}'
    _task(graph, "c", "b", retry=False)
    graph.output = '{"c": "${tasks.c.output}"}'
    return graph


def _diamond() -> graph_pb2.Graph:
    graph = _graph("diamond")
    _task(graph, "a", timeout=8)
    _task(graph, "b", "a", retry=False).on_failure = graph_pb2.ON_FAILURE_SKIP
    _task(graph, "c", "a")
    _task(graph, "d", "b", "c", priority=3).join.at_least = 1
    return graph


def _fan() -> graph_pb2.Graph:
    graph = _graph("fan")
    many = _task(graph, "many")
    many.for_each = "[1, 2, 3, 4, 5]"
    some = _task(graph, "some", retry=False)
    some.for_each = "[1, 2]"
    some.on_failure = graph_pb2.ON_FAILURE_CONTINUE
    _task(graph, "last", "many", "some")
    return graph


def _wide() -> graph_pb2.Graph:
    graph = _graph("wide")
    for number in range(4):
        _task(graph, f"t{number}", priority=number)
    return graph


GRAPHS = tuple(make() for make in (_single, _chain, _diamond, _fan, _wide))
_PLANS: dict[str, Plan] = {}


def plan_of(name: str) -> Plan:
    """The compiled graph of that name."""
    if name not in _PLANS:
        graph = next(graph for graph in GRAPHS if graph.name == name)
        _PLANS[name] = compile_graph(graph, values=Values()).plan
    return _PLANS[name]
