"""Graphs written in Python, and as YAML or JSON files.

    graph = Graph("review", version="1")
    found = graph.task("list", "inventory.list@1", input={"folder": ref("input.folder")})
    graph.task("classify", "license.classify@1", for_each=found.output, input={"package": item})
    graph.task("report", "report.write@1", input={"verdicts": ref("tasks.classify.output")}, on_failure="continue")

What makes sense (CEL, references, cycles, joins) is for the orchestrator's admission to judge, with every mistake at
once; `load_graph` judges only how a file is spelled (`_graph_file`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration

from antiphon.v1 import failure_pb2, graph_pb2

from . import _json

OnFailure = Literal["fail", "skip", "continue", "escalate"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A CEL expression to put into an input: alone it keeps the type of its result, within a text it becomes text."""

    expression: str

    def __str__(self) -> str:
        return f"${{{self.expression}}}"


def ref(expression: str) -> Ref:
    """What a CEL expression gives when the task is ready; it may name `input`, `tasks.ID.output`, in a for_each `item`
    and `index`, and in a loop `iteration` and `previous`.

    In an input: `{"text": ref("tasks.fetch.output.text")}`, or within a text: `f"Dear {ref('input.name')}"`.
    """
    return Ref(expression)


item = Ref("item")
"""The item a member of a for_each works on."""
index = Ref("index")
"""Its place in the list, counted from 0."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon failures of some kinds are tried again; the first rule that names the kind applies.

    `on`: kinds such as "TRANSIENT". `max_attempts`: in all, the first included. The wait before attempt n+1 is half to
    all of min(max_backoff, backoff * multiplier^(n-1)), at random.
    """

    on: Sequence[str]
    max_attempts: int = 3
    backoff: timedelta | None = None
    max_backoff: timedelta | None = None
    multiplier: float = 0.0

    def to_proto(self) -> graph_pb2.RetryRule:
        """The rule as a message. Raises `ValueError` for an unknown kind."""
        return graph_pb2.RetryRule(
            kinds=[failure_pb2.FailureKind.Value(f"FAILURE_KIND_{kind.upper()}") for kind in self.on],
            max_attempts=self.max_attempts,
            initial_backoff=_duration(self.backoff),
            max_backoff=_duration(self.max_backoff),
            multiplier=self.multiplier,
        )


@dataclass(frozen=True, slots=True)
class Until:
    """Makes a task a loop: it is done again until `condition` is true, and fails when it is not after `max_iterations`.

    The condition is CEL over `output` (of the iteration that has ended) and `iteration` (its number, from 1); the input
    of the task may use `iteration` and `previous`, the output of the iteration before, null in the first.
    """

    condition: str
    max_iterations: int

    def to_proto(self) -> graph_pb2.Until:
        """The loop as a message."""
        return graph_pb2.Until(condition=bare(self.condition), max_iterations=self.max_iterations)


@dataclass(frozen=True, slots=True)
class Compensate:
    """How what a task did is undone, when it has succeeded and its run fails or is cancelled.

    `input` is JSON with `ref(…)` in it, by default the output of the task.
    """

    capability: str
    input: Any = None
    retry: Sequence[Retry] = ()
    timeout: timedelta | None = None

    def to_proto(self) -> graph_pb2.Compensate:
        """The message. Raises as `Graph.task`."""
        return graph_pb2.Compensate(
            capability=self.capability,
            input=template(self.input),
            retry=[rule.to_proto() for rule in self.retry],
            timeout=_duration(self.timeout),
        )


@dataclass(frozen=True, slots=True)
class Quorum:
    """Has a task done by `of` agents, of which `agree` must answer the same; the first of these answers is the task's.

    `condition`: CEL over `output` (an answer) and `other` (an earlier one), for answers that agree without being equal.
    `distinct`: whether each is another "agent", or may be another "instance" of the same.
    """

    agree: int
    of: int
    condition: str = ""
    distinct: Literal["agent", "instance"] = "agent"

    def to_proto(self) -> graph_pb2.Quorum:
        """The message."""
        distinct = graph_pb2.Distinct.Value(f"DISTINCT_{self.distinct.upper()}")
        return graph_pb2.Quorum(agree=self.agree, of=self.of, condition=bare(self.condition), distinct=distinct)


@dataclass(frozen=True, slots=True)
class Hedge:
    """Asks a second agent when the first takes longer than `delay`; the first outcome is used, the other cancelled.

    `quantile`: instead of the delay, once enough is known, this quantile of what the capability took, such as 0.95.
    `share`: most second attempts, as a share of the tasks; 0 means 0.1. The capability has to be idempotent or pure.
    """

    delay: timedelta
    quantile: float = 0.0
    share: float = 0.0

    def to_proto(self) -> graph_pb2.Hedge:
        """The message."""
        return graph_pb2.Hedge(delay=_duration(self.delay), quantile=self.quantile, share=self.share)


def any_of() -> graph_pb2.Join:
    """A task may start when the first of its needs is done."""
    return graph_pb2.Join(any=graph_pb2.AnyOf())


def at_least(count: int) -> graph_pb2.Join:
    """A task may start when so many of its needs are done."""
    return graph_pb2.Join(at_least=count)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task of a graph, to refer to."""

    id: str

    @property
    def output(self) -> Ref:
        """Its output."""
        return Ref(f"tasks.{self.id}.output")


class Graph:
    """A graph under construction."""

    def __init__(
        self,
        name: str,
        *,
        version: str = "",
        description: str = "",
        input_schema: Mapping[str, Any] | None = None,
        output: Any = None,
        deadline: timedelta | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`version` is needed to register it. `output` is what a run answers; by default an object with the output of
        each task that nothing depends on, by task id, null where it does not fit (the run's `warnings` say so).
        `deadline` is the longest duration of a run.
        """
        self._graph = graph_pb2.Graph(
            name=name,
            version=version,
            description=description,
            input_schema=json.dumps(input_schema, separators=(",", ":")) if input_schema is not None else "",
            output=template(output),
            deadline=_duration(deadline),
            labels=labels,
        )

    def task(
        self,
        id: str,
        capability: str,
        *,
        input: Any = None,
        needs: Iterable[str | TaskRef] = (),
        when: str | Ref = "",
        for_each: str | Ref = "",
        until: Until | None = None,
        join: graph_pb2.Join | None = None,
        retry: Iterable[Retry] = (),
        timeout: timedelta | None = None,
        deadline: timedelta | None = None,
        schedule_timeout: timedelta | None = None,
        priority: int = 0,
        on_failure: OnFailure | None = None,
        agent_labels: Mapping[str, str] | None = None,
        max_cost: float = 0.0,
        compensate: Compensate | None = None,
        at_most_once: bool = False,
        quorum: Quorum | None = None,
        hedge: Hedge | None = None,
        cache: timedelta | None = None,
        description: str = "",
    ) -> TaskRef:
        """Add a task, and return what other tasks refer to it by.

        `input` is JSON with `ref(…)` in it. `needs` are tasks that come before, besides those that expressions refer
        to. `when` is a condition, `for_each` a list whose items are worked on each by a member, `until` makes a loop.
        Times: `timeout` of one attempt, `deadline` from ready to the end, `schedule_timeout` of waiting for an agent.
        `compensate` says how it is undone if the run fails; with `at_most_once` a doubt whether it was done escalates.
        `quorum` has several agents do it and compares, `hedge` asks a second one when the first is slow, and `cache`
        uses a result for the same input again for so long; the capability has to be pure for that.
        Raises `TypeError` or `ValueError` for an input that is not JSON.
        """
        task = self._graph.tasks.add(
            id=id,
            description=description,
            capability=capability,
            needs=[need.id if isinstance(need, TaskRef) else need for need in needs],
            when=_expression(when),
            for_each=_expression(for_each),
            until=until.to_proto() if until else None,
            compensate=compensate.to_proto() if compensate else None,
            at_most_once=at_most_once,
            quorum=quorum.to_proto() if quorum else None,
            hedge=hedge.to_proto() if hedge else None,
            cache=graph_pb2.Cache(ttl=_duration(cache)) if cache is not None else None,
            input=template(input),
            join=join,
            retry=[rule.to_proto() for rule in retry],
            timeout=_duration(timeout),
            deadline=_duration(deadline),
            schedule_timeout=_duration(schedule_timeout),
            priority=priority,
            on_failure=_on_failure(on_failure),
        )
        if agent_labels or max_cost:
            task.constraints.CopyFrom(graph_pb2.Constraints(agent_labels=agent_labels, max_cost=max_cost))
        return TaskRef(id)

    def sub_run(
        self,
        id: str,
        graph: str,
        *,
        input: Any = None,
        needs: Iterable[str | TaskRef] = (),
        when: str | Ref = "",
        for_each: str | Ref = "",
        until: Until | None = None,
        join: graph_pb2.Join | None = None,
        deadline: timedelta | None = None,
        priority: int = 0,
        on_failure: OnFailure | None = None,
        compensate: Compensate | None = None,
        description: str = "",
    ) -> TaskRef:
        """Add a task that runs a registered graph, "review@1.2", or "review" for its newest version when the task
        begins; the rest as in `task`. The output of that run is the task's, and its failure the task's.
        """
        self._graph.tasks.add(
            id=id,
            description=description,
            graph=graph,
            needs=[need.id if isinstance(need, TaskRef) else need for need in needs],
            when=_expression(when),
            for_each=_expression(for_each),
            until=until.to_proto() if until else None,
            compensate=compensate.to_proto() if compensate else None,
            input=template(input),
            join=join,
            deadline=_duration(deadline),
            priority=priority,
            on_failure=_on_failure(on_failure),
        )
        return TaskRef(id)

    def wait(
        self,
        id: str,
        *,
        time: timedelta | None = None,
        moment: str | Ref = "",
        signal: str = "",
        needs: Iterable[str | TaskRef] = (),
        when: str | Ref = "",
        join: graph_pb2.Join | None = None,
        deadline: timedelta | None = None,
        on_failure: OnFailure | None = None,
        description: str = "",
    ) -> TaskRef:
        """Add a task that only waits, for one of these: so much `time`; a `moment` in CEL, a timestamp or a duration;
        a `signal` of that name, whose payload is the task's output. When the `deadline` passes before, the task fails
        with TIMEOUT, and `on_failure` says what that means.
        """
        wait = graph_pb2.Wait(time=_duration(time))
        if moment:
            wait.moment = _expression(moment)
        if signal:
            wait.signal = signal
        self._graph.tasks.add(
            id=id,
            description=description,
            needs=[need.id if isinstance(need, TaskRef) else need for need in needs],
            when=_expression(when),
            join=join,
            deadline=_duration(deadline),
            on_failure=_on_failure(on_failure),
            wait=wait,
        )
        return TaskRef(id)

    def to_proto(self) -> graph_pb2.Graph:
        """The graph as a message of its own."""
        copy = graph_pb2.Graph()
        copy.CopyFrom(self._graph)
        return copy


def template(value: Any) -> str:
    """JSON text whose strings may hold `${CEL}`; empty for None. Raises `TypeError`, `ValueError`."""
    return _json.dumps(_spelled(value)).decode() if value is not None else ""


def _spelled(value: Any) -> Any:
    if isinstance(value, Ref):
        return str(value)
    if isinstance(value, TaskRef):
        return str(value.output)
    if isinstance(value, Mapping):
        return {key: _spelled(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(part) for part in value]
    return value


def _on_failure(name: OnFailure | None) -> graph_pb2.OnFailure.ValueType | None:
    return graph_pb2.OnFailure.Value(f"ON_FAILURE_{name.upper()}") if name else None


def _expression(value: str | Ref) -> str:
    return value.expression if isinstance(value, Ref) else bare(value)


def bare(text: str) -> str:
    """The CEL in a text that is CEL or one whole `${CEL}`."""
    stripped = text.strip()
    if stripped.startswith("${") and stripped.endswith("}") and "${" not in stripped[2:]:
        return stripped[2:-1].strip()
    return text


def _duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    duration = Duration()
    duration.FromTimedelta(value)
    return duration
