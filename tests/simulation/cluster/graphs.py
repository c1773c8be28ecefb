"""What is run: small graphs of every shape and every word that graphs know.

What a capability does is in `agents.py`, what has to hold of each word in `semantics.py`.
"""

from __future__ import annotations

from antiphon.v1 import failure_pb2, graph_pb2
from antiphon_orchestrator.admission import Values, compile_graph
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.plan import Plan

_AGAIN = (failure_pb2.FAILURE_KIND_TRANSIENT, failure_pb2.FAILURE_KIND_LOST, failure_pb2.FAILURE_KIND_TIMEOUT)

INNER = "inner"
"""The graph that is registered, for tasks that run it."""

LAPS = 3
"""Iterations after which the condition of a loop holds."""

KEPT_FOR = 4
"""Seconds for which results are used again."""


def _task(
    graph: graph_pb2.Graph,
    name: str,
    *needs: str,
    capability: str = "text.work@1",
    retry: bool = True,
    timeout: int = 30,
    priority: int = 0,
) -> graph_pb2.GraphTask:
    task = graph.tasks.add(id=name, capability=capability, needs=needs, priority=priority)
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


def _loop() -> graph_pb2.Graph:
    graph = _graph("loop")
    lap = _task(graph, "lap")
    lap.input = '{"before": "${previous}"}'
    lap.until.condition, lap.until.max_iterations = f"iteration >= {LAPS}", 5
    _task(graph, "last", "lap").input = '"${tasks.lap.output}"'
    return graph


def _undo() -> graph_pb2.Graph:
    graph = _graph("undo")
    for name, needs in (("a", ()), ("b", ("a",)), ("c", ())):
        undo = _task(graph, name, *needs).compensate
        undo.capability = "text.undo@1"
        rule = undo.retry.add(kinds=_AGAIN, max_attempts=5, multiplier=1.5)
        rule.initial_backoff.nanos, rule.max_backoff.seconds = 200_000_000, 2
    _task(graph, "last", "b", "c", capability="text.doubt@1", retry=False)
    return graph


def _wait() -> graph_pb2.Graph:
    graph = _graph("wait")
    graph.tasks.add(id="pause").wait.time.nanos = 700_000_000
    graph.tasks.add(id="go", needs=["pause"]).wait.signal = "go"
    never = graph.tasks.add(id="never", on_failure=graph_pb2.ON_FAILURE_CONTINUE)
    never.wait.signal, never.deadline.seconds = "never", 3
    _task(graph, "last", "never").input = '"${tasks.go.output}"'
    return graph


def _once() -> graph_pb2.Graph:
    graph = _graph("once")
    once = _task(graph, "once", retry=False, timeout=4)
    once.at_most_once = True
    rule = once.retry.add(kinds=(failure_pb2.FAILURE_KIND_TRANSIENT,), max_attempts=8)
    rule.initial_backoff.nanos = 200_000_000
    _task(graph, "last", "once")
    return graph


def _quorum() -> graph_pb2.Graph:
    graph = _graph("quorum")
    vote = _task(graph, "vote", capability="text.vote@1")
    vote.quorum.of, vote.quorum.agree, vote.quorum.distinct = 3, 2, graph_pb2.DISTINCT_INSTANCE
    vote.schedule_timeout.seconds = 20
    vote.on_failure = graph_pb2.ON_FAILURE_CONTINUE
    _task(graph, "last", "vote").input = '{"voted": "${tasks.vote.output}"}'
    return graph


def _hedge() -> graph_pb2.Graph:
    graph = _graph("hedge")
    same = _task(graph, "same", capability="text.same@1")
    same.hedge.delay.nanos, same.hedge.share = 100_000_000, 0.5
    _task(graph, "last", "same").input = '{"first": "${tasks.same.output}"}'
    return graph


def _reuse() -> graph_pb2.Graph:
    graph = _graph("reuse")
    for name, items, needs in (("many", "[1, 2, 1]", ()), ("again", "[2, 1, 3]", ("many",))):
        task = _task(graph, name, *needs, capability="text.same@1")
        task.for_each = items
        task.cache.ttl.seconds = KEPT_FOR
    _task(graph, "last", "again").input = '"${tasks.again.output}"'
    return graph


def _beneath() -> graph_pb2.Graph:
    graph = _graph("beneath")
    one = graph.tasks.add(id="one", graph=f"{INNER}@1", input='"${input}"')
    each = graph.tasks.add(id="each", graph=INNER, for_each="[7, 8]", input='"${item}"')
    one.on_failure = each.on_failure = graph_pb2.ON_FAILURE_CONTINUE
    _task(graph, "last").input = '{"one": "${tasks.one.output}", "each": "${tasks.each.output}"}'
    return graph


def _inner() -> graph_pb2.Graph:
    graph = _graph(INNER)
    graph.version = "1"
    _task(graph, "a").input = '"${input}"'
    _task(graph, "b", "a", capability="text.plan@1", retry=False).input = '{"planned": "${tasks.a.output}"}'
    return graph


def answered() -> graph_pb2.Graph:
    """What an agent answers with in place of an output."""
    graph = _graph("answered")
    _task(graph, "x").input = '{"x": "${input}"}'
    _task(graph, "y", "x", retry=False)
    return graph


def _answer() -> graph_pb2.Graph:
    graph = _graph("answer")
    _task(graph, "plan", capability="text.plan@1").input = '"${input}"'
    _task(graph, "last", "plan").input = '{"x": "${tasks.plan.output}"}'
    return graph


def _ask() -> graph_pb2.Graph:
    graph = _graph("ask")
    ask = _task(graph, "ask", capability="text.ask@1")
    ask.for_each = "[1, 2]"
    _task(graph, "last", "ask")
    return graph


def _poison() -> graph_pb2.Graph:
    graph = _graph("poison")
    _task(graph, "deadly", capability="text.deadly@1")
    _task(graph, "beside")
    without = _task(graph, "without", capability="text.deadly@1", priority=1)
    without.on_failure = graph_pb2.ON_FAILURE_CONTINUE
    _task(graph, "last", "deadly", "beside", "without")
    return graph


def _scarce() -> graph_pb2.Graph:
    graph = _graph("scarce")
    _task(graph, "many", capability="text.scarce@1").for_each = "[1, 2, 3, 4, 5]"
    return graph


GRAPHS = tuple(
    make()
    for make in (
        _single,
        _chain,
        _diamond,
        _fan,
        _wide,
        _loop,
        _undo,
        _wait,
        _once,
        _quorum,
        _hedge,
        _reuse,
        _beneath,
        _answer,
        _ask,
        _poison,
        _scarce,
    )
)
REGISTERED = _inner()
_PLANS: dict[bytes, Plan] = {}


def graph_of(name: str) -> graph_pb2.Graph:
    """The graph of that name."""
    return next(graph for graph in GRAPHS if graph.name == name)


def plan_of(submitted: RunSubmitted) -> Plan:
    """The compiled graph of a run; what its expressions give carries no labels."""
    graph = REGISTERED if submitted.graph is None else submitted.graph
    key = graph.SerializeToString(deterministic=True)
    if key not in _PLANS:
        _PLANS[key] = compile_graph(graph, values=Values()).plan
    return _PLANS[key]
