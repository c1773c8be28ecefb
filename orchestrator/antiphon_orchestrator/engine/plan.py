"""The compiled form of a graph: what the engine needs to run it, and nothing else.

A Plan is immutable and shared by all runs of the same graph version. Tasks are referred to by their index, which is
their place in the graph; records in the log use the same index, so the order of `tasks` must be that of the graph.
Durations are integer microseconds: the engine does arithmetic on them for every task and never formats them.

Expressions are not part of the plan's data: an Evaluator, built together with the plan, answers them. The engine
calls it inside `decide` only; results are recorded, so recovery never evaluates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from .failure import FailureKind


class OnFailure(IntEnum):
    """What a task's final failure means for its run; numbers as in antiphon.v1.OnFailure."""

    FAIL = 1
    SKIP = 2
    CONTINUE = 3
    ESCALATE = 4


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How failures of some kinds are tried again; see antiphon.v1.RetryRule. Waits in microseconds."""

    kinds: frozenset[FailureKind]
    max_attempts: int
    initial_backoff: int
    max_backoff: int
    multiplier: float


@dataclass(frozen=True, slots=True)
class WaitPlan:
    """What a task waits for that no agent works on: a fixed time in microseconds, a signal by its name, or, with
    neither, the moment that the evaluator gives."""

    time: int | None
    signal: str


class GraphPlan(NamedTuple):
    """A registered graph that a task runs; with an empty version the newest when the task begins."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class HedgePlan:
    """When a second agent is asked; see antiphon.v1.Hedge. `delay` in microseconds; `quantile` 0: the delay alone."""

    delay: int
    quantile: float
    share: float


class Read(NamedTuple):
    """An entry of shared context that expressions refer to. `scope` is namespace, graph or run: the run's own."""

    scope: str
    key: str


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One node. `join` is how many needs must be done: len(needs) for all, 1 for any, n for n-of.

    `needs` and `dependents` are task indices; `needs` includes tasks that expressions refer to. `depth` is the longest
    path from a root, for display and fair ordering. `reads` is what its expressions refer to in shared context. `wait`
    is set for a task that no agent works on. A loop is a `fan_out` with `most_iterations`, whose members come one after
    the other. `compensation` is the index of what undoes the task, `compensates`, there, that of the task; or else -1.
    `graph` is set for a task that runs another graph.
    A quorum and a hedge are a `fan_out` with `agree` set: so many of at most `of` members, which have the same input,
    must agree, 1 for a hedge; no two of them are with the same agent, or instance, as `apart` says. `cache_ttl`:
    microseconds for which a result is used again, 0 for never.
    """

    index: int
    id: str
    capability: str
    needs: tuple[int, ...]
    dependents: tuple[int, ...]
    join: int
    conditional: bool
    fan_out: bool
    retry: tuple[RetryRule, ...]
    timeout: int
    deadline: int | None
    schedule_timeout: int
    priority: int
    on_failure: OnFailure
    agent_labels: tuple[tuple[str, str], ...]
    max_cost: float
    references: tuple[str, ...]
    depth: int
    reads: tuple[Read, ...] = ()
    wait: WaitPlan | None = None
    most_iterations: int = 0
    at_most_once: bool = False
    compensation: int = -1
    compensates: int = -1
    graph: GraphPlan | None = None
    agree: int = 0
    of: int = 0
    apart: str = ""
    hedge: HedgePlan | None = None
    cache_ttl: int = 0


class EvaluationFailed(Exception):
    """An expression could not be evaluated, or gave a value of the wrong type. Becomes an INVALID_INPUT failure.

    `field` is the field of the task: when, for_each, input; or output for the graph.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class View(Protocol):
    """What expressions may see of a run. Payloads are serialised antiphon.v1.Payload; b"" is null."""

    @property
    def input(self) -> bytes: ...

    @property
    def kept(self) -> dict[int, object]:
        """What expressions are to find again with the next step of a task, by task. Memory only: a new owner of the run
        begins with nothing."""
        ...

    def output(self, task: int) -> bytes | list[bytes] | None:
        """Output of a task; a list, by member, for a fan-out; None when it has none (skipped, failed, not done).

        Members without an output stand in the list as b"".
        """
        ...

    def state(self, task: int) -> str:
        """Name of the task's state, such as SUCCEEDED."""
        ...

    def failure(self, task: int) -> tuple[str, str] | None:
        """Kind name and message of the task's failure."""
        ...

    def entry(self, scope: str, key: str) -> bytes | None:
        """The value of an entry of shared context, as it was read for these expressions; None when it was not there."""
        ...


class Evaluator(Protocol):
    """Answers the expressions of one plan. Pure CPU; every method raises EvaluationFailed."""

    def when(self, task: int, view: View) -> bool:
        """The task's condition; called only for tasks with `conditional`."""
        ...

    def input(self, task: int, view: View) -> bytes:
        """The task's input as a serialised Payload; of fan-outs called only for those whose members share it."""
        ...

    def members(self, task: int, view: View, first: int, limit: int) -> tuple[int, list[bytes]]:
        """Number of members of a fan-out and the inputs of members first … first+limit-1, counted from 1."""
        ...

    def moment(self, task: int, view: View, now: int) -> int:
        """Until when a task waits, in microseconds since 1970, that begins to at `now`."""
        ...

    def iteration(self, task: int, view: View, number: int, previous: bytes) -> bytes:
        """The input of an iteration of a loop, counted from 1; `previous` is the output of the one before."""
        ...

    def done(self, task: int, view: View, number: int, output: bytes) -> bool:
        """Whether a loop is done after an iteration with that output."""
        ...

    def agrees(self, task: int, view: View, output: bytes, other: bytes) -> bool:
        """Whether an answer of a quorum agrees with an earlier one."""
        ...

    def output(self, view: View) -> tuple[bytes, str]:
        """The run's output as a serialised Payload, and what is missing in it; "" when nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled graph. `roots` need nothing; `deadline` is the graph's own, in microseconds.

    `readers` are the tasks with `reads`; `output_reads` is what the expressions of the run's output refer to; `signals`
    are the names of those that its tasks wait for. The last `compensations` tasks are no nodes of the graph: they undo
    some.
    """

    name: str
    version: str
    tasks: tuple[TaskPlan, ...]
    roots: tuple[int, ...]
    deadline: int
    evaluator: Evaluator
    index_of: dict[str, int]
    readers: tuple[int, ...] = ()
    output_reads: tuple[Read, ...] = ()
    signals: frozenset[str] = frozenset()
    compensations: int = 0
