"""Plans without a graph: tasks by a few words, and an evaluator whose answers are data.

Payloads are real serialised Payload messages, so that the parts that look into them can be driven as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from antiphon.v1 import payload_pb2
from antiphon_orchestrator.engine.events import RunSubmitted
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import (
    EvaluationFailed,
    GraphPlan,
    HedgePlan,
    OnFailure,
    Plan,
    Read,
    RetryRule,
    TaskPlan,
    View,
    WaitPlan,
)

SECOND = 1_000_000
CLIENT = "spiffe://antiphon.internal/ns/demo/client/tester"
CAPABILITY = "text.work@1"


def payload(text: str, *labels: str) -> bytes:
    """A serialised Payload of a JSON string."""
    message = payload_pb2.Payload(inline=f'"{text}"'.encode())
    for key in labels:
        message.labels.add(key=key)
    return message.SerializeToString()


@dataclass(frozen=True)
class Node:
    """A task in a few words. `members`: None for no fan-out. `broken`: the field whose expression fails. `reads`: keys
    of the namespace's shared context; the input is then what was found under the first. `wait`: microseconds, negative
    for a moment that the evaluator gives, or the name of a signal. A loop is done after `iterations`.
    Answers of a quorum agree when they are equal, or all of them with `alike`. `undone`: something undoes it; it is
    `broken` at "undo" when that has no input. `graph`: NAME@VERSION it runs."""

    needs: tuple[int, ...] = ()
    join: int | None = None
    when: bool | None = None
    members: int | None = None
    broken: str = ""
    on_failure: OnFailure = OnFailure.FAIL
    retry: tuple[RetryRule, ...] = ()
    deadline: int | None = None
    schedule_timeout: int = 300 * SECOND
    priority: int = 0
    capability: str = CAPABILITY
    input: bytes | None = None
    reads: tuple[str, ...] = ()
    wait: int | str | None = None
    iterations: int = 0
    most_iterations: int = 0
    undone: bool = False
    at_most_once: bool = False
    graph: str = ""
    agree: int = 0
    of: int = 0
    apart: str = "agent"
    alike: bool = False
    hedge: HedgePlan | None = None
    cache_ttl: int = 0


@dataclass
class FakeEvaluator:
    """Answers from the nodes. A fan-out that is `broken` at "members" fails from its second chunk on."""

    nodes: Sequence[Node]
    broken_output: bool = False
    output_reads: str = ""
    calls: list[tuple[str, int]] = field(default_factory=list)

    def when(self, task: int, view: View) -> bool:
        self._check(task, "when")
        condition = self.nodes[task].when
        assert condition is not None
        return condition

    def input(self, task: int, view: View) -> bytes:
        if task >= len(self.nodes):
            undone = [index for index, node in enumerate(self.nodes) if node.undone][task - len(self.nodes)]
            self._check(undone, "undo")
            return payload(f"undo {undone}")
        self._check(task, "input")
        given = self.nodes[task].input
        if self.nodes[task].reads:
            return view.entry("namespace", self.nodes[task].reads[0]) or b""
        return payload(f"input of {task}") if given is None else given

    def members(self, task: int, view: View, first: int, limit: int) -> tuple[int, list[bytes]]:
        self._check(task, "for_each")
        if first > 1:
            self._check(task, "members")
        node = self.nodes[task]
        count = node.members
        assert count is not None
        inputs = [
            payload(f"member {n} of {task}") if node.input is None else node.input
            for n in range(first, min(count, first + limit - 1) + 1)
        ]
        return count, inputs

    def moment(self, task: int, view: View, now: int) -> int:
        self._check(task, "wait")
        wait = self.nodes[task].wait
        assert isinstance(wait, int)
        return now - wait

    def iteration(self, task: int, view: View, number: int, previous: bytes) -> bytes:
        self._check(task, "input")
        return payload(f"iteration {number} of {task}") if number == 1 else previous

    def done(self, task: int, view: View, number: int, output: bytes) -> bool:
        self._check(task, "until")
        return number >= self.nodes[task].iterations

    def agrees(self, task: int, view: View, output: bytes, other: bytes) -> bool:
        self._check(task, "quorum")
        return self.nodes[task].alike or output == other

    def output(self, view: View) -> tuple[bytes, str]:
        if self.broken_output:
            raise EvaluationFailed("output", "is broken")
        return (view.entry("namespace", self.output_reads) if self.output_reads else None) or payload("output"), ""

    def _check(self, task: int, name: str) -> None:
        self.calls.append((name, task))
        if self.nodes[task].broken == name:
            raise EvaluationFailed(name, "is broken")


def plan(*nodes: Node, broken_output: bool = False, output_reads: str = "") -> Plan:
    """The plan of these nodes; a node's index is its place."""
    dependents: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for need in node.needs:
            dependents[need].append(index)
    tasks = tuple(
        TaskPlan(
            index=index,
            id=f"t{index}",
            capability=node.capability,
            needs=node.needs,
            dependents=tuple(dependents[index]),
            join=len(node.needs) if node.join is None else node.join,
            conditional=node.when is not None,
            fan_out=node.members is not None or node.most_iterations > 0 or node.agree > 0,
            retry=node.retry,
            timeout=60 * SECOND,
            deadline=node.deadline,
            schedule_timeout=node.schedule_timeout,
            priority=node.priority,
            on_failure=node.on_failure,
            agent_labels=(),
            max_cost=0.0,
            references=(),
            depth=0,
            reads=tuple(Read("namespace", key) for key in node.reads),
            wait=_wait(node.wait),
            most_iterations=node.most_iterations,
            at_most_once=node.at_most_once,
            graph=GraphPlan(*node.graph.partition("@")[::2]) if node.graph else None,
            agree=node.agree,
            of=node.of,
            apart=node.apart if node.agree else "",
            hedge=node.hedge,
            cache_ttl=node.cache_ttl,
        )
        for index, node in enumerate(nodes)
    )
    undone = [index for index, node in enumerate(nodes) if node.undone]
    undoing = [
        replace(
            tasks[index],
            index=len(nodes) + place,
            id=f"t{index}.compensate",
            needs=(),
            dependents=(),
            join=0,
            conditional=False,
            fan_out=False,
            deadline=None,
            on_failure=OnFailure.ESCALATE,
            reads=(),
            most_iterations=0,
            at_most_once=False,
            graph=None,
            compensates=index,
            agree=0,
            of=0,
            hedge=None,
            cache_ttl=0,
        )
        for place, index in enumerate(undone)
    ]
    roots = tuple(task.index for task in tasks if not task.needs)
    tasks = (
        *(
            replace(task, compensation=len(nodes) + undone.index(task.index)) if nodes[task.index].undone else task
            for task in tasks
        ),
        *undoing,
    )
    evaluator = FakeEvaluator(nodes, broken_output, output_reads)
    return Plan(
        "fake",
        "1",
        tasks,
        roots,
        3600 * SECOND,
        evaluator,
        {task.id: task.index for task in tasks},
        tuple(task.index for task in tasks if task.reads),
        (Read("namespace", output_reads),) if output_reads else (),
        frozenset(node.wait for node in nodes if isinstance(node.wait, str)),
        len(undone),
    )


def _wait(wait: int | str | None) -> WaitPlan | None:
    if wait is None or isinstance(wait, str):
        return None if wait is None else WaitPlan(None, wait)
    return WaitPlan(wait if wait >= 0 else None, "")


def retry(attempts: int, *kinds: FailureKind, first: int = SECOND, longest: int = 60 * SECOND) -> RetryRule:
    return RetryRule(frozenset(kinds or FailureKind), attempts, first, longest, 2.0)


def submitted(
    request_id: str = "request",
    *,
    deadline_time: int = 3600 * SECOND,
    priority: int = 0,
    principal: str = CLIENT,
    input: bytes | None = None,
    parent_attempt_id: str = "",
) -> RunSubmitted:
    """A submission in its principal's namespace; its digest follows from the request id."""
    return RunSubmitted(
        namespace=principal.split("/")[4],
        principal=principal,
        request_id=request_id,
        request_digest=request_id.encode(),
        graph_name="fake",
        graph_version="1",
        graph=None,
        input=payload("run input") if input is None else input,
        labels={"team": "a"},
        deadline_time=deadline_time,
        priority=priority,
        traceparent="",
        policy=None,
        parent_attempt_id=parent_attempt_id,
    )
