"""Admission: turns a graph into the engine's plan, or into the list of all its mistakes.

Rules of single fields (lengths, patterns, ranges) were checked with the request; here is what a field rule cannot say:
references, types, order, joins, schemas, and values that do not go together. Defaults are those of graph.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from antiphon.v1.graph_pb2 import Distinct, Graph, GraphTask
from antiphon.v1.graph_pb2 import RetryRule as RetryRuleMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from ..engine.escalation import DOUBTFUL
from ..engine.failure import FailureKind
from ..engine.plan import GraphPlan, HedgePlan, OnFailure, Plan, Read, RetryRule, TaskPlan, WaitPlan
from .evaluator import GraphEvaluator, TaskExpressions
from .expression import Expression, ExpressionInvalid, Problem
from .mapping import Mapping, MappingInvalid
from .mistakes import Code, GraphInvalid, Mistake
from .order import cycles, depths
from .references import ANSWERS, CONDITION, ITERATION, MEMBER, NOWHERE, Names, unknown_task
from .schemas import SchemaInvalid, compile_schema
from .syntax import Path
from .values import Values, decode_json
from .versions import Requirement

_Default = TypeVar("_Default", int, None)

_SECOND = 1_000_000
RUN_DEADLINE = 24 * 3600 * _SECOND
TIMEOUT = SCHEDULE_TIMEOUT = 5 * 60 * _SECOND
INITIAL_BACKOFF, MAX_BACKOFF, MULTIPLIER = _SECOND, 60 * _SECOND, 2.0
DEFAULT_RETRY = (
    RetryRule(frozenset({FailureKind.TRANSIENT, FailureKind.LOST}), 3, INITIAL_BACKOFF, MAX_BACKOFF, MULTIPLIER),
)


TRAITS = ("idempotent", "pure")
"""What admission may ask for that a capability is declared to be."""

HEDGED_SHARE = 0.1
"""Second attempts, of a hundred tasks ten, that a hedge may make where it says nothing else."""

MOST_MISTAKES = 200
"""Mistakes after which a graph is looked at no further: more help nobody, and others wait while they are found."""


MOST_READS = 16
"""Entries of shared context that the expressions of one task, or of the output, may refer to."""


_OF_CALLS = frozenset(
    {
        "capability",
        "for_each",
        "input",
        "until",
        "retry",
        "timeout",
        "schedule_timeout",
        "priority",
        "constraints",
        "compensate",
        "at_most_once",
        "graph",
        "quorum",
        "hedge",
        "cache",
    }
)
"""Fields of a task that mean nothing where no agent works on it."""
_OF_AGENTS = frozenset({"retry", "timeout", "constraints", "at_most_once", "quorum", "hedge", "cache"})
"""Those that mean nothing where a graph runs, whose own tasks have them."""
_MOMENTS = "TIMESTAMP DURATION STRING"
_MOMENT = "a moment is a timestamp, or a duration from when the task begins to wait"


class _Enough(Exception):
    """So many mistakes were found."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """An admitted graph. Warnings are things that will work but deserve a look."""

    plan: Plan
    warnings: tuple[Mistake, ...]


def compile_graph(
    graph: Graph, *, offered: Callable[[str, str], bool] | None = None, values: Values | None = None
) -> Compiled:
    """Compiles a graph whose fields passed validation; raises GraphInvalid with every mistake.

    `offered` says whether some agent offers a task's capability now and, with a trait that is not empty, declares it
    so, pure or idempotent; without it nothing is said about that. `values` is the memory of parsed payloads to share;
    without it the plan gets its own.
    """
    return _Compiler(graph, offered, values or Values()).compile()


@dataclass(slots=True)
class _Draft:
    """What is known about one task while the graph is compiled."""

    when: Expression | None = None
    for_each: Expression | None = None
    input: Mapping | None = None
    moment: Expression | None = None
    until: Expression | None = None
    quorum: Expression | None = None
    undo: Mapping | None = None
    undo_retry: tuple[RetryRule, ...] = DEFAULT_RETRY
    needs: set[int] = field(default_factory=set)
    reads: tuple[Read, ...] = ()
    retry: tuple[RetryRule, ...] = DEFAULT_RETRY


class _Compiler:
    def __init__(self, graph: Graph, offered: Callable[[str, str], bool] | None, values: Values) -> None:
        self._graph = graph
        self._offered = offered
        self._values = values
        self._mistakes: list[Mistake] = []
        self._warnings: list[Mistake] = []
        self._index_of: dict[str, int] = {}
        self._names = Names({}, True)
        self._drafts = [_Draft() for _ in graph.tasks]
        self._output_reads: tuple[Read, ...] = ()

    def compile(self) -> Compiled:
        try:
            return self._compile()
        except _Enough:
            raise GraphInvalid(self._mistakes) from None

    def _compile(self) -> Compiled:
        schema = self._check_schema()
        self._check_ids()
        self._names = Names({task.id: bool(task.for_each) for task in self._graph.tasks}, schema)
        for index, task in enumerate(self._graph.tasks):
            self._check_task(index, task)
        output = self._compile_output()
        self._check_order()
        for index, task in enumerate(self._graph.tasks):
            self._check_join(index, task)
        if self._mistakes:
            raise GraphInvalid(self._mistakes)
        return Compiled(self._plan(output), tuple(self._warnings))

    def _mistake(self, field: str, code: Code, message: str) -> None:
        mistake = Mistake(field, message, code)
        if mistake not in self._mistakes:
            self._mistakes.append(mistake)
        if len(self._mistakes) >= MOST_MISTAKES:
            raise _Enough

    # -- the graph itself --------------------------------------------------------------------------------------------

    def _check_schema(self) -> object:
        text = self._graph.input_schema
        if not text:
            return True
        try:
            compile_schema(text)
        except SchemaInvalid as error:
            self._mistake("input_schema", Code.SCHEMA, str(error))
            return True
        return decode_json(text)

    def _check_ids(self) -> None:
        for index, task in enumerate(self._graph.tasks):
            first = self._index_of.setdefault(task.id, index)
            if first != index:
                self._mistake(f"tasks[{index}].id", Code.DUPLICATE, f"the id {task.id!r} is taken by tasks[{first}]")

    def _compile_output(self) -> Mapping | None:
        if not self._graph.output:
            return None
        mapping = self._mapping("output", self._graph.output)
        if mapping is not None:
            named = self._references("output", mapping.references, NOWHERE)
            self._output_reads = self._reads("output", mapping.references)
            if not named and not any(path[0] == "tasks" for path in mapping.references):
                message = "refers to no task; every run answers without its tasks' results"
                self._warnings.append(Mistake("output", message, Code.VALUE))
        return mapping

    def _check_order(self) -> None:
        tasks = self._graph.tasks
        for ring in cycles({index: sorted(draft.needs) for index, draft in enumerate(self._drafts)}):
            names = " → ".join(tasks[index].id for index in [*ring, ring[0]])
            self._mistake(f"tasks[{ring[0]}].needs", Code.CYCLE, f"tasks wait for each other: {names}")

    # -- one task ----------------------------------------------------------------------------------------------------

    def _check_task(self, index: int, task: GraphTask) -> None:
        path, draft = f"tasks[{index}]", self._drafts[index]
        self._check_kind(path, task)
        for place, need in enumerate(task.needs):
            self._check_need(f"{path}.needs[{place}]", index, task, need)
        draft.when = self._expression(f"{path}.when", task.when, "BOOL", "a condition is true or false")
        draft.for_each = self._expression(f"{path}.for_each", task.for_each, "LIST", "for_each takes a list")
        draft.input = self._mapping(f"{path}.input", task.input) if task.input else None
        draft.moment = self._expression(f"{path}.wait.moment", task.wait.moment, _MOMENTS, _MOMENT)
        draft.until = self._expression(
            f"{path}.until.condition", task.until.condition, "BOOL", "a condition is true or false"
        )
        draft.quorum = self._expression(
            f"{path}.quorum.condition", task.quorum.condition, "BOOL", "a condition is true or false"
        )
        local = MEMBER if task.for_each else ITERATION if task.HasField("until") else NOWHERE
        parts: list[tuple[str, Expression | Mapping | None, frozenset[str]]] = [
            ("when", draft.when, NOWHERE),
            ("for_each", draft.for_each, NOWHERE),
            ("input", draft.input, local),
            ("wait.moment", draft.moment, NOWHERE),
            ("until.condition", draft.until, CONDITION),
            ("quorum.condition", draft.quorum, ANSWERS),
        ]
        references: list[Path] = []
        for name, part, known in parts:
            if part is not None:
                references += part.references
                for need in self._references(f"{path}.{name}", part.references, known):
                    self._check_need(f"{path}.{name}", index, task, need)
        draft.reads = self._reads(path, references)
        draft.retry = self._retry(path, task.retry)
        if task.at_most_once:
            self._check_at_most_once(path, task)
        if task.HasField("compensate"):
            self._check_compensate(f"{path}.compensate", task, draft)
        self._check_several(path, task)

    def _check_kind(self, path: str, task: GraphTask) -> None:
        """What the task does, and that it says nothing that does not go with that."""
        if task.HasField("wait"):
            for name in (field.name for field, _ in task.ListFields() if field.name in _OF_CALLS):
                self._mistake(f"{path}.{name}", Code.VALUE, f"a task that waits has no {name}")
        elif task.graph:
            if task.capability:
                self._mistake(
                    f"{path}.graph", Code.VALUE, "a task asks for a capability or runs a graph; make two of it"
                )
            for name in (field.name for field, _ in task.ListFields() if field.name in _OF_AGENTS):
                message = f"a task that runs a graph has no {name}; the tasks of that graph have"
                self._mistake(f"{path}.{name}", Code.VALUE, message)
        elif not task.capability:
            message = "is missing; a task asks for a capability, runs a graph, or waits"
            self._mistake(f"{path}.capability", Code.VALUE, message)
        else:
            self._check_capability(f"{path}.capability", task.capability)
        if task.HasField("until") and task.for_each:
            message = "a task is a loop or a for_each; put the loop into a task of its own"
            self._mistake(f"{path}.until", Code.VALUE, message)

    def _check_capability(self, path: str, capability: str) -> None:
        try:
            Requirement.parse(capability)
        except ValueError as error:
            self._mistake(path, Code.VALUE, str(error))
            return
        if self._offered is not None and not self._offered(capability, ""):
            message = f"nobody offers {capability} now; the task will wait for an agent up to its schedule_timeout"
            self._warnings.append(Mistake(path, message, Code.VALUE))

    def _check_need(self, path: str, index: int, task: GraphTask, need: str) -> None:
        if need not in self._index_of:
            self._mistake(path, Code.UNKNOWN_REFERENCE, unknown_task(need, self._index_of))
        elif need == task.id:
            self._mistake(path, Code.CYCLE, f"the task {need!r} waits for itself")
        else:
            self._drafts[index].needs.add(self._index_of[need])

    def _check_at_most_once(self, path: str, task: GraphTask) -> None:
        for place, rule in enumerate(task.retry):
            for kind in sorted(DOUBTFUL & {FailureKind(kind) for kind in rule.kinds if rule.max_attempts > 1}):
                message = (
                    f"{kind.name} leaves in doubt whether the work was done, and at_most_once does not try it again"
                )
                self._mistake(f"{path}.retry[{place}].kinds", Code.VALUE, message)

    def _check_several(self, path: str, task: GraphTask) -> None:
        """Quorum, hedge and cache: what each of them rules out."""
        hedged, cached = task.HasField("hedge"), task.HasField("cache")
        several = ["quorum"] * task.HasField("quorum") + ["hedge"] * hedged
        shape = "for_each" if task.for_each else "until" if task.HasField("until") else ""
        for name in several:
            if shape:
                message = f"a task is a {name} or has {shape}; let its members run a graph that has the {name}"
                self._mistake(f"{path}.{name}", Code.VALUE, message)
            if task.at_most_once:
                message = f"at_most_once gives work to one agent, a {name} to several"
                self._mistake(f"{path}.{name}", Code.VALUE, message)
        if len(several) == 2:
            self._mistake(f"{path}.hedge", Code.VALUE, "a quorum waits for several answers anyway; leave hedge out")
        if task.HasField("quorum"):
            if task.quorum.agree > task.quorum.of:
                message = f"asks for {task.quorum.agree} answers of {task.quorum.of}"
                self._mistake(f"{path}.quorum.agree", Code.VALUE, message)
            if task.HasField("compensate"):
                message = "several agents did it, and would all have to be undone; let a task after it undo it"
                self._mistake(f"{path}.compensate", Code.VALUE, message)
            if cached:
                message = "a result that is used again is no second answer; leave cache or quorum out"
                self._mistake(f"{path}.cache", Code.VALUE, message)
        if hedged:
            self._check_trait(f"{path}.hedge", task.capability, "hedge", "idempotent")
        if cached:
            self._check_trait(f"{path}.cache", task.capability, "cache", "pure")
        if cached and task.HasField("compensate"):
            message = "is for pure capabilities, which leave nothing to undo; leave cache or compensate out"
            self._mistake(f"{path}.cache", Code.VALUE, message)

    def _check_trait(self, path: str, capability: str, name: str, trait: str) -> None:
        offered = self._offered
        try:
            Requirement.parse(capability)
        except ValueError:
            return  # a mistake of its own
        if offered is not None and offered(capability, "") and not offered(capability, trait):
            message = f"no agent that offers {capability} now declares it {trait}, and {name} needs that"
            self._mistake(path, Code.VALUE, message)

    def _check_compensate(self, path: str, task: GraphTask, draft: _Draft) -> None:
        compensate = task.compensate
        if task.for_each:
            message = "a for_each cannot be undone; let a task after it, which can be undone, undo all of it"
            self._mistake(path, Code.VALUE, message)
        self._check_capability(f"{path}.capability", compensate.capability)
        draft.undo = self._mapping(f"{path}.input", compensate.input or f'"${{tasks.{task.id}.output}}"')
        draft.undo_retry = self._retry(path, compensate.retry)
        if draft.undo is None or not compensate.input:
            return
        self._references(f"{path}.input", draft.undo.references, NOWHERE)
        if any(reference[0] == "context" for reference in draft.undo.references):
            message = "what undoes a task cannot read shared context; read it in the task, and hand it on in its output"
            self._mistake(f"{path}.input", Code.VALUE, message)

    def _retry(self, path: str, given: Iterable[RetryRuleMessage]) -> tuple[RetryRule, ...]:
        rules: list[RetryRule] = []
        seen: dict[int, int] = {}
        for place, rule in enumerate(given):
            for kind in rule.kinds:
                if seen.setdefault(kind, place) != place:
                    message = f"{FailureKind(kind).name} is already in retry[{seen[kind]}], which applies"
                    self._mistake(f"{path}.retry[{place}].kinds", Code.DUPLICATE, message)
            initial = _microseconds(rule, "initial_backoff", INITIAL_BACKOFF)
            longest = _microseconds(rule, "max_backoff", MAX_BACKOFF)
            if initial > longest:
                absent = "" if rule.HasField("max_backoff") else ", which is 60 s when absent"
                message = f"is longer than max_backoff{absent}"
                self._mistake(f"{path}.retry[{place}].initial_backoff", Code.VALUE, message)
            kinds = frozenset(FailureKind(kind) for kind in rule.kinds)
            rules.append(RetryRule(kinds, rule.max_attempts, initial, longest, rule.multiplier or MULTIPLIER))
        return tuple(rules) or DEFAULT_RETRY

    def _check_join(self, index: int, task: GraphTask) -> None:
        rule, needs = task.join.WhichOneof("rule"), len(self._drafts[index].needs)
        path = f"tasks[{index}].join"
        if rule in ("any", "at_least") and needs == 0:
            self._mistake(path, Code.IMPOSSIBLE_JOIN, "there is nothing to join: the task has no needs")
        elif rule == "at_least" and task.join.at_least > needs:
            message = f"asks for {task.join.at_least} needs; the task has {needs}"
            self._mistake(f"{path}.at_least", Code.IMPOSSIBLE_JOIN, message)

    # -- expressions -------------------------------------------------------------------------------------------------

    def _expression(self, path: str, text: str, wanted: str, rule: str) -> Expression | None:
        if not text:
            return None
        if text.lstrip().startswith("${"):
            self._mistake(path, Code.EXPRESSION, "is an expression already; write it without ${ and }")
            return None
        try:
            expression = Expression(text)
        except ExpressionInvalid as invalid:
            self._problems(path, invalid.problems)
            return None
        if expression.result != "DYN" and expression.result.partition("<")[0] not in wanted.split():
            self._mistake(path, Code.TYPE, f"gives {expression.result.lower()}; {rule}")
        return expression

    def _mapping(self, path: str, text: str) -> Mapping | None:
        try:
            return Mapping(text)
        except MappingInvalid as invalid:
            self._problems(path, invalid.problems)
            return None

    def _problems(self, path: str, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self._mistake(path, problem.code, problem.message)

    def _references(self, path: str, references: Iterable[Path], local: frozenset[str]) -> list[str]:
        """Checks the references and returns the ids of the tasks that are rightly named; `local` as Names.check."""
        named: list[str] = []
        for reference in references:
            problem = self._names.check(reference, local)
            if problem is not None:
                self._mistake(path, problem.code, problem.message)
            elif reference[0] == "tasks":
                named.append(reference[1])
        return named

    def _reads(self, path: str, references: Iterable[Path]) -> tuple[Read, ...]:
        """The entries of shared context among references that were checked."""
        reads = sorted({Read(way[1], way[2]) for way in references if way[0] == "context" and len(way) > 2})
        if len(reads) > MOST_READS:
            message = f"reads {len(reads)} entries of shared context; {MOST_READS} is the most"
            self._mistake(path, Code.VALUE, message)
        return tuple(reads)

    # -- the plan ----------------------------------------------------------------------------------------------------

    def _plan(self, output: Mapping | None) -> Plan:
        graph = self._graph
        needs = {index: sorted(draft.needs) for index, draft in enumerate(self._drafts)}
        dependents: dict[int, list[int]] = {index: [] for index in needs}
        for index, before in needs.items():
            for need in before:
                dependents[need].append(index)
        depth = depths(needs)
        expressions = [
            TaskExpressions(draft.when, draft.for_each, draft.input, draft.moment, draft.until, draft.quorum)
            for draft in self._drafts
        ]
        tasks = tuple(
            TaskPlan(
                index=index,
                id=task.id,
                capability=task.capability,
                needs=tuple(needs[index]),
                dependents=tuple(dependents[index]),
                join=_join(task, len(needs[index])),
                conditional=bool(task.when),
                fan_out=_has_members(task),
                retry=self._drafts[index].retry,
                timeout=_microseconds(task, "timeout", TIMEOUT),
                deadline=_microseconds(task, "deadline", None),
                schedule_timeout=_microseconds(task, "schedule_timeout", SCHEDULE_TIMEOUT),
                priority=task.priority,
                on_failure=OnFailure(task.on_failure or OnFailure.FAIL),
                agent_labels=tuple(sorted(task.constraints.agent_labels.items())),
                max_cost=task.constraints.max_cost,
                references=expressions[index].references(),
                depth=depth[index],
                reads=self._drafts[index].reads,
                wait=_wait(task),
                most_iterations=task.until.max_iterations,
                at_most_once=task.at_most_once,
                graph=GraphPlan(*task.graph.partition("@")[::2]) if task.graph else None,
                agree=task.quorum.agree or int(task.HasField("hedge")),
                of=task.quorum.of or 2 * task.HasField("hedge"),
                apart="agent" if _by_agent(task) else "instance",
                hedge=_hedge(task),
                cache_ttl=_microseconds(task.cache, "ttl", 0),
            )
            for index, task in enumerate(graph.tasks)
        )
        sinks = [task.index for task in tasks if not task.dependents]
        undoing = [task for task in graph.tasks if task.HasField("compensate")]
        compensates = [self._index_of[task.id] for task in undoing]
        tasks = tuple(
            replace(task, compensation=len(tasks) + compensates.index(task.index))
            if task.index in compensates
            else task
            for task in tasks
        ) + tuple(
            TaskPlan(
                index=len(tasks) + place,
                id=f"{task.id}.compensate",
                capability=task.compensate.capability,
                needs=(),
                dependents=(),
                join=0,
                conditional=False,
                fan_out=False,
                retry=self._drafts[index].undo_retry,
                timeout=_microseconds(task.compensate, "timeout", TIMEOUT),
                deadline=None,
                schedule_timeout=SCHEDULE_TIMEOUT,
                priority=task.priority,
                on_failure=OnFailure.ESCALATE,
                agent_labels=(),
                max_cost=0.0,
                references=TaskExpressions(None, None, self._drafts[index].undo).references(),
                depth=depth[index],
                compensates=index,
            )
            for place, (task, index) in enumerate(zip(undoing, compensates, strict=True))
        )
        expressions += [TaskExpressions(None, None, self._drafts[index].undo) for index in compensates]
        return Plan(
            name=graph.name,
            version=graph.version,
            tasks=tasks,
            roots=tuple(task.index for task in tasks if not task.needs and task.compensates < 0),
            deadline=_microseconds(graph, "deadline", RUN_DEADLINE),
            evaluator=GraphEvaluator([task.id for task in tasks], expressions, output, sinks, self._values),
            index_of={task.id: task.index for task in tasks},
            readers=tuple(task.index for task in tasks if task.reads),
            output_reads=self._output_reads,
            signals=frozenset(task.wait.signal for task in graph.tasks if task.wait.signal),
            compensations=len(compensates),
        )


def _wait(task: GraphTask) -> WaitPlan | None:
    if not task.HasField("wait"):
        return None
    return WaitPlan(_microseconds(task.wait, "time", None), task.wait.signal)


def _has_members(task: GraphTask) -> bool:
    return bool(task.for_each) or task.HasField("until") or task.HasField("quorum") or task.HasField("hedge")


def _by_agent(task: GraphTask) -> bool:
    return task.HasField("quorum") and task.quorum.distinct != Distinct.DISTINCT_INSTANCE


def _hedge(task: GraphTask) -> HedgePlan | None:
    if not task.HasField("hedge"):
        return None
    hedge = task.hedge
    return HedgePlan(_microseconds(hedge, "delay", TIMEOUT), hedge.quantile, hedge.share or HEDGED_SHARE)


def _join(task: GraphTask, needs: int) -> int:
    match task.join.WhichOneof("rule"):
        case "any":
            return 1
        case "at_least":
            return task.join.at_least
        case _:
            return needs


def _microseconds(message: Message, name: str, default: _Default) -> int | _Default:
    """A duration field in microseconds; the default when it is absent."""
    if not message.HasField(name):
        return default
    duration: Duration = getattr(message, name)
    return duration.seconds * _SECOND + duration.nanos // 1000
