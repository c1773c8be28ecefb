"""Broken graphs, each with all its mistakes and nothing else; and what a sound graph becomes."""

from typing import Any

import pytest
from admission_views import graph, task
from antiphon.v1.failure_pb2 import FAILURE_KIND_LOST, FAILURE_KIND_TIMEOUT, FAILURE_KIND_TRANSIENT
from antiphon.v1.graph_pb2 import (
    ON_FAILURE_SKIP,
    AllOf,
    AnyOf,
    Cache,
    Compensate,
    Constraints,
    Graph,
    GraphTask,
    Hedge,
    Join,
    Quorum,
    RetryRule,
    Until,
    Wait,
)
from antiphon_orchestrator.admission import Compiled, GraphInvalid, Requirement, compile_graph
from antiphon_orchestrator.engine.failure import FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from google.protobuf.duration_pb2 import Duration

CLOSED = '{"type": "object", "additionalProperties": false, "properties": {"text": {}, "at": {"$ref": "#/$defs/t"}}}'
CLOSED = CLOSED[:-1] + ', "$defs": {"t": {"additionalProperties": false}}}'
QUORUM, HEDGE, CACHE = Quorum(agree=2, of=3), Hedge(delay=Duration(seconds=1)), Cache(ttl=Duration(seconds=60))
Found = list[tuple[str, str, str]]


def retry(*kinds: Any, **fields: Any) -> RetryRule:
    return RetryRule(kinds=kinds, max_attempts=2, **fields)


NAMED = "an entry of shared context is named, not looked up: context.namespace.KEY, or ['KEY'] in quotes"

BROKEN: dict[str, tuple[Graph, Found]] = {
    "duplicate id": (
        graph(task("a"), task("b"), task("a")),
        [("tasks[2].id", "duplicate", "the id 'a' is taken by tasks[0]")],
    ),
    "unknown need": (
        graph(task("fetch"), task("b", needs=["fetsh", "zzz"])),
        [
            ("tasks[1].needs[0]", "unknown_reference", "unknown task 'fetsh'; did you mean 'fetch'?"),
            ("tasks[1].needs[1]", "unknown_reference", "unknown task 'zzz'"),
        ],
    ),
    "unknown task in expressions": (
        graph(task("fetch"), task("b", when="tasks.fetsh.output.ok", input='["${tasks.zzz.output}"]')),
        [
            ("tasks[1].when", "unknown_reference", "unknown task 'fetsh'; did you mean 'fetch'?"),
            ("tasks[1].input", "unknown_reference", "unknown task 'zzz'"),
        ],
    ),
    "neither a capability nor a wait": (
        graph(GraphTask(id="a")),
        [("tasks[0].capability", "value", "is missing; a task asks for a capability, runs a graph, or waits")],
    ),
    "a graph and a capability, with what only agents have": (
        graph(task("a", graph="b@1", retry=[retry(FAILURE_KIND_LOST)], constraints=Constraints(max_cost=1))),
        [
            ("tasks[0].graph", "value", "a task asks for a capability or runs a graph; make two of it"),
            ("tasks[0].retry", "value", "a task that runs a graph has no retry; the tasks of that graph have"),
            (
                "tasks[0].constraints",
                "value",
                "a task that runs a graph has no constraints; the tasks of that graph have",
            ),
        ],
    ),
    "a wait that runs a graph": (
        graph(GraphTask(id="a", wait=Wait(signal="go"), graph="b")),
        [("tasks[0].graph", "value", "a task that waits has no graph")],
    ),
    "a wait with what only calls have": (
        graph(task("a", wait=Wait(signal="go"), for_each="[1]", input="1", priority=2)),
        [
            ("tasks[0].capability", "value", "a task that waits has no capability"),
            ("tasks[0].for_each", "value", "a task that waits has no for_each"),
            ("tasks[0].input", "value", "a task that waits has no input"),
            ("tasks[0].priority", "value", "a task that waits has no priority"),
        ],
    ),
    "a moment that is none": (
        graph(GraphTask(id="a", wait=Wait(moment="1 + 1")), GraphTask(id="b", wait=Wait(moment="tasks.c.output"))),
        [
            (
                "tasks[0].wait.moment",
                "type",
                "gives int; a moment is a timestamp, or a duration from when the task begins to wait",
            ),
            ("tasks[1].wait.moment", "unknown_reference", "unknown task 'c'"),
        ],
    ),
    "a loop that is a for_each": (
        graph(task("a", for_each="[1]", until=Until(condition="true", max_iterations=2))),
        [("tasks[0].until", "value", "a task is a loop or a for_each; put the loop into a task of its own")],
    ),
    "names of a loop where they are not": (
        graph(
            task("a", input='"${previous}"', when="output.ok", until=Until(condition="previous > 1", max_iterations=2)),
            task("b", input='"${iteration}"', when="output.ok"),
        ),
        [
            (
                "tasks[0].when",
                "unknown_reference",
                "output exists only in the conditions of a loop (until) and a quorum; elsewhere write tasks.ID.output",
            ),
            ("tasks[0].until.condition", "unknown_reference", "previous exists only in the input of a loop (until)"),
            (
                "tasks[1].when",
                "unknown_reference",
                "output exists only in the conditions of a loop (until) and a quorum; elsewhere write tasks.ID.output",
            ),
            (
                "tasks[1].input",
                "unknown_reference",
                "iteration exists only in the input and in the condition of a loop (until)",
            ),
        ],
    ),
    "a condition that is none": (
        graph(task("a", until=Until(condition="iteration + 1", max_iterations=2))),
        [("tasks[0].until.condition", "type", "gives int; a condition is true or false")],
    ),
    "a quorum with what it rules out": (
        graph(
            task("a", quorum=Quorum(agree=4, of=3), hedge=HEDGE, at_most_once=True),
            task("b", quorum=Quorum(agree=2, of=3, condition="output + other"), for_each="[1]"),
            task("c", quorum=QUORUM, compensate=Compensate(capability="text.undo@1"), cache=CACHE),
            task("d", quorum=QUORUM, until=Until(condition="true", max_iterations=2)),
            task("e", input='"${other}"', quorum=Quorum(agree=2, of=3, condition="item == 1")),
        ),
        [
            ("tasks[0].quorum", "value", "at_most_once gives work to one agent, a quorum to several"),
            ("tasks[0].hedge", "value", "at_most_once gives work to one agent, a hedge to several"),
            ("tasks[0].hedge", "value", "a quorum waits for several answers anyway; leave hedge out"),
            ("tasks[0].quorum.agree", "value", "asks for 4 answers of 3"),
            (
                "tasks[1].quorum",
                "value",
                "a task is a quorum or has for_each; let its members run a graph that has the quorum",
            ),
            (
                "tasks[2].compensate",
                "value",
                "several agents did it, and would all have to be undone; let a task after it undo it",
            ),
            (
                "tasks[2].cache",
                "value",
                "a result that is used again is no second answer; leave cache or quorum out",
            ),
            (
                "tasks[2].cache",
                "value",
                "is for pure capabilities, which leave nothing to undo; leave cache or compensate out",
            ),
            (
                "tasks[3].quorum",
                "value",
                "a task is a quorum or has until; let its members run a graph that has the quorum",
            ),
            ("tasks[4].input", "unknown_reference", "other exists only in the condition of a quorum"),
            (
                "tasks[4].quorum.condition",
                "unknown_reference",
                "item exists only in the input of a task with for_each",
            ),
        ],
    ),
    "a quorum whose condition is none": (
        graph(task("a", quorum=Quorum(agree=2, of=3, condition="size(output)"))),
        [("tasks[0].quorum.condition", "type", "gives int; a condition is true or false")],
    ),
    "a hedge with what it rules out": (
        graph(task("a", hedge=HEDGE, for_each="[1]"), GraphTask(id="b", wait=Wait(signal="go"), hedge=HEDGE)),
        [
            (
                "tasks[0].hedge",
                "value",
                "a task is a hedge or has for_each; let its members run a graph that has the hedge",
            ),
            ("tasks[1].hedge", "value", "a task that waits has no hedge"),
        ],
    ),
    "at most once and tried again": (
        graph(task("a", at_most_once=True, retry=[retry(FAILURE_KIND_LOST, FAILURE_KIND_TRANSIENT)])),
        [
            (
                "tasks[0].retry[0].kinds",
                "value",
                "LOST leaves in doubt whether the work was done, and at_most_once does not try it again",
            )
        ],
    ),
    "what cannot be undone": (
        graph(
            task("a", for_each="[1]", compensate=Compensate(capability="text.undo@1")),
            task("b", compensate=Compensate(capability="no version", input='["${tasks.zzz.output}", "${item}"]')),
            task("c", compensate=Compensate(capability="text.undo@1", input='"${context.run.key}"')),
        ),
        [
            (
                "tasks[0].compensate",
                "value",
                "a for_each cannot be undone; let a task after it, which can be undone, undo all of it",
            ),
            (
                "tasks[1].compensate.capability",
                "value",
                "'no version' is not a capability's name; write lower case with dots, such as text.summarize",
            ),
            ("tasks[1].compensate.input", "unknown_reference", "item exists only in the input of a task with for_each"),
            ("tasks[1].compensate.input", "unknown_reference", "unknown task 'zzz'"),
            (
                "tasks[2].compensate.input",
                "value",
                "what undoes a task cannot read shared context; read it in the task, and hand it on in its output",
            ),
        ],
    ),
    "needs itself": (
        graph(task("a", needs=["a"])),
        [("tasks[0].needs[0]", "cycle", "the task 'a' waits for itself")],
    ),
    "refers to itself": (
        graph(task("a", input='"${tasks.a.output}"')),
        [("tasks[0].input", "cycle", "the task 'a' waits for itself")],
    ),
    "cycle of needs": (
        graph(task("x"), task("a", needs=["c", "x"]), task("b", needs=["a"]), task("c", needs=["b"])),
        [("tasks[1].needs", "cycle", "tasks wait for each other: a → b → c → a")],
    ),
    "two cycles, one through an expression": (
        graph(
            task("a", needs=["b"]),
            task("b", input='"${tasks.a.output}"'),
            task("c", when="tasks.d.output"),
            task("d", needs=["c"]),
        ),
        [
            ("tasks[0].needs", "cycle", "tasks wait for each other: a → b → a"),
            ("tasks[2].needs", "cycle", "tasks wait for each other: c → d → c"),
        ],
    ),
    "syntax of when": (
        graph(task("a", when="input.x >")),
        [("tasks[0].when", "expression", "column 10: syntax error: mismatched input its end")],
    ),
    "when in braces": (
        graph(task("a", when="${input.ok}")),
        [("tasks[0].when", "expression", "is an expression already; write it without ${ and }")],
    ),
    "types inside when": (
        graph(task("a", when="1 + 'a' == 2")),
        [
            (
                "tasks[0].when",
                "type",
                "column 3: found no matching overload for '_+_' applied to '(int, string)'",
            )
        ],
    ),
    "condition that is no bool": (
        graph(task("a", when="size(input)")),
        [("tasks[0].when", "type", "gives int; a condition is true or false")],
    ),
    "fan-out over no list": (
        graph(task("a", for_each="'abc'"), task("b", for_each="{'a': 1}")),
        [
            ("tasks[0].for_each", "type", "gives string; for_each takes a list"),
            ("tasks[1].for_each", "type", "gives map<string, int>; for_each takes a list"),
        ],
    ),
    "item outside a fan-out": (
        graph(task("a", when="index > 1", input='"${item}"'), task("b", for_each="item", when="item")),
        [
            ("tasks[0].when", "unknown_reference", "index exists only in the input of a task with for_each"),
            ("tasks[0].input", "unknown_reference", "item exists only in the input of a task with for_each"),
            ("tasks[1].when", "unknown_reference", "item exists only in the input of a task with for_each"),
            ("tasks[1].for_each", "unknown_reference", "item exists only in the input of a task with for_each"),
        ],
    ),
    "task looked up by a value": (
        graph(task("a"), task("b", input='"${tasks[input.x].output}"')),
        [
            (
                "tasks[1].input",
                "expression",
                "tasks can be used only as tasks.ID.output, .state or .failure: a task is named, not looked up",
            )
        ],
    ),
    "task without a field": (
        graph(task("a"), task("b", input='["${tasks.a}", "${tasks.a.text}", "${tasks.a.outptu}"]')),
        [
            ("tasks[1].input", "expression", "tasks.a is no value; write tasks.a.output, .state or .failure"),
            ("tasks[1].input", "unknown_reference", "a task has no 'outptu'; did you mean 'output'?"),
            ("tasks[1].input", "unknown_reference", "a task has no 'text'; write tasks.a.output.text"),
        ],
    ),
    "field of a list": (
        graph(task("a", for_each="input"), task("b", input='"${tasks.a.output.x}"', when="tasks.a.state.x")),
        [
            ("tasks[1].when", "type", "tasks.a.state is a string; it has no field 'x'"),
            (
                "tasks[1].input",
                "type",
                "tasks.a.output is a list, because a has for_each; it has no field 'x'",
            ),
        ],
    ),
    "name without tasks": (
        graph(task("fetch"), task("b", input='"${fetch.output}"')),
        [
            (
                "tasks[1].input",
                "unknown_reference",
                "${fetch.output} column 1: unknown name 'fetch'; "
                "an expression knows input, tasks, context, inside a for_each item and index, "
                "and inside a loop iteration and previous",
            )
        ],
    ),
    "join without needs": (
        graph(task("a", join=Join(any=AnyOf())), task("b", join=Join(at_least=1))),
        [
            ("tasks[0].join", "impossible_join", "there is nothing to join: the task has no needs"),
            ("tasks[1].join", "impossible_join", "there is nothing to join: the task has no needs"),
        ],
    ),
    "join of more than there are": (
        graph(task("a"), task("b"), task("c", needs=["a"], when="tasks.b.output.ok", join=Join(at_least=3))),
        [("tasks[2].join.at_least", "impossible_join", "asks for 3 needs; the task has 2")],
    ),
    "output of an unknown task": (
        graph(task("a"), output='{"r": "${tasks.b.output}", "i": "${item}"}'),
        [
            ("output", "unknown_reference", "item exists only in the input of a task with for_each"),
            ("output", "unknown_reference", "unknown task 'b'"),
        ],
    ),
    "input that is no JSON": (
        graph(task("a", input="{'x': 1}")),
        [
            (
                "tasks[0].input",
                "value",
                "is not JSON: expecting property name enclosed in double quotes at line 1, column 2",
            )
        ],
    ),
    "output that is no JSON": (
        graph(task("a"), output="${tasks.a.output}"),
        [("output", "value", "is not JSON: expecting value at line 1, column 1")],
    ),
    "brace left open": (
        graph(task("a", input='{"t": "Hello ${input.name"}')),
        [("tasks[0].input", "expression", "/t: the ${ at character 7 has no closing }")],
    ),
    "schema that is no JSON": (
        graph(task("a"), input_schema="{"),
        [
            (
                "input_schema",
                "schema",
                "is not JSON: expecting property name enclosed in double quotes at line 1, column 2",
            )
        ],
    ),
    "schema that is no schema": (
        graph(task("a"), input_schema='"text"'),
        [("input_schema", "schema", "is not a JSON Schema: it is a string, not an object")],
    ),
    "schema from elsewhere": (
        graph(task("a"), input_schema='{"$ref": "https://example.com/s"}'),
        [
            (
                "input_schema",
                "schema",
                "is not a JSON Schema: https://example.com/s is outside the schema; put the definition under $defs",
            )
        ],
    ),
    "input that its schema forbids": (
        graph(task("a", input='["${input.txet}", "${input.text.x}", "${input.at.x}"]'), input_schema=CLOSED),
        [("tasks[0].input", "type", "input has no field 'txet', says input_schema; did you mean 'text'?")],
    ),
    "capability without a version": (
        graph(task("a", capability="text.summarize"), task("b", capability="text@one")),
        [
            ("tasks[0].capability", "value", "'text.summarize' has no version; write text.summarize@1 for any 1.x"),
            ("tasks[1].capability", "value", "'one' is not a version requirement; write 1, 1.2, =1.2.3 or >=1,<3"),
        ],
    ),
    "same kind retried twice": (
        graph(
            task("a", retry=[retry(FAILURE_KIND_LOST, FAILURE_KIND_TIMEOUT), retry(FAILURE_KIND_LOST)]),
        ),
        [("tasks[0].retry[1].kinds", "duplicate", "LOST is already in retry[0], which applies")],
    ),
    "first wait above the longest": (
        graph(
            task(
                "a",
                retry=[
                    retry(FAILURE_KIND_LOST, initial_backoff=Duration(seconds=90)),
                    retry(FAILURE_KIND_TRANSIENT, initial_backoff=Duration(seconds=3), max_backoff=Duration(seconds=2)),
                ],
            ),
        ),
        [
            (
                "tasks[0].retry[0].initial_backoff",
                "value",
                "is longer than max_backoff, which is 60 s when absent",
            ),
            ("tasks[0].retry[1].initial_backoff", "value", "is longer than max_backoff"),
        ],
    ),
    "shared context": (
        graph(
            task("a", input='"${context.team.x}"'),
            task("b", input='"${context.namespaces.x}"'),
            task("c", when="size(context.namespace) > 0"),
            task("d", input='"${context.namespace[input.key]}"'),
            task("e", input="\"${context.namespace[' x']}\""),
            task("f", input="[" + ", ".join(f'"${{context.run.k{n}}}"' for n in range(17)) + "]"),
        ),
        [
            (
                "tasks[0].input",
                "unknown_reference",
                "there is no context.team; write context.namespace, context.graph or context.run",
            ),
            ("tasks[1].input", "unknown_reference", "there is no context.namespaces; did you mean 'namespace'?"),
            ("tasks[2].when", "expression", NAMED),
            ("tasks[3].input", "expression", NAMED),
            ("tasks[4].input", "value", "' x' is no key of shared context: letters, digits and ._/- up to 255"),
            ("tasks[5]", "value", "reads 17 entries of shared context; 16 is the most"),
        ],
    ),
    "many at once": (
        graph(
            task("a", capability="nope", when="1", for_each="2", input="x", join=Join(any=AnyOf())),
            task("a", needs=["q"]),
            input_schema="[]",
            output='"${tasks}"',
        ),
        [
            ("input_schema", "schema", "is not a JSON Schema: it is a list, not an object"),
            ("tasks[1].id", "duplicate", "the id 'a' is taken by tasks[0]"),
            ("tasks[0].capability", "value", "'nope' has no version; write nope@1 for any 1.x"),
            ("tasks[0].when", "type", "gives int; a condition is true or false"),
            ("tasks[0].for_each", "type", "gives int; for_each takes a list"),
            ("tasks[0].input", "value", "is not JSON: expecting value at line 1, column 1"),
            ("tasks[1].needs[0]", "unknown_reference", "unknown task 'q'"),
            (
                "output",
                "expression",
                "tasks can be used only as tasks.ID.output, .state or .failure: a task is named, not looked up",
            ),
            ("tasks[0].join", "impossible_join", "there is nothing to join: the task has no needs"),
        ],
    ),
}


def test_a_hedge_and_a_cache_need_what_no_agent_declares_that_offers_the_capability() -> None:
    asked = graph(task("a", hedge=HEDGE), task("b", cache=CACHE))

    def offered(capability: str, trait: str) -> bool:
        return trait == ""

    with pytest.raises(GraphInvalid) as refused:
        compile_graph(asked, offered=offered)
    assert [(each.field, each.message) for each in refused.value.mistakes] == [
        ("tasks[0].hedge", "no agent that offers x.y@1 now declares it idempotent, and hedge needs that"),
        ("tasks[1].cache", "no agent that offers x.y@1 now declares it pure, and cache needs that"),
    ]
    unspelled = graph(
        task("a", capability="no such thing @", hedge=HEDGE), task("b", wait=Wait(time=CACHE.ttl), cache=CACHE)
    )
    with pytest.raises(GraphInvalid):
        compile_graph(unspelled, offered=lambda capability, trait: bool(Requirement.parse(capability)))
    # Where nobody offers it at all, whoever comes may declare it.
    assert len(compile_graph(asked, offered=lambda capability, trait: False).warnings) == 2


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_graph_is_refused_with_all_its_mistakes(name: str) -> None:
    broken, mistakes = BROKEN[name]
    with pytest.raises(GraphInvalid) as refused:
        compile_graph(broken)
    assert [(each.field, str(each.code), each.message) for each in refused.value.mistakes] == mistakes


def compiled(*tasks: Any, **fields: Any) -> Compiled:
    return compile_graph(graph(*tasks, **fields))


def test_needs_are_those_written_and_those_referred_to() -> None:
    plan = compiled(
        task("d", needs=["a"], when="tasks.b.state == 'FAILED'", for_each="tasks.c.output", input='"${item}"'),
        task("a"),
        task("b", input='"${tasks.a.output}"'),
        task("c", input="\"${tasks.a.output} ${tasks.a.output.x} ${tasks['b'].output}\""),
    ).plan
    assert [each.needs for each in plan.tasks] == [(1, 2, 3), (), (1,), (1, 2)]
    assert [each.dependents for each in plan.tasks] == [(), (0, 2, 3), (0, 3), (0,)]
    assert [each.depth for each in plan.tasks] == [3, 0, 1, 2]
    assert plan.roots == (1,)
    assert plan.index_of == {"d": 0, "a": 1, "b": 2, "c": 3}
    assert (plan.tasks[0].conditional, plan.tasks[0].fan_out) == (True, True)
    assert (plan.tasks[1].conditional, plan.tasks[1].fan_out) == (False, False)


def test_references_say_which_field_they_stand_in() -> None:
    tasks = (task("a"), task("b", when="tasks.a.output.ok", for_each="input.xs", input='"${item.y} ${tasks.a.state}"'))
    assert compiled(*tasks).plan.tasks[1].references == (
        "when tasks.a.output.ok",
        "for_each input.xs",
        "input item.y",
        "input tasks.a.state",
    )


def test_what_is_absent_gets_the_documented_default() -> None:
    plan = compiled(task("a")).plan
    only = plan.tasks[0]
    assert plan.deadline == 24 * 3600 * 10**6
    assert (only.timeout, only.deadline, only.schedule_timeout) == (300 * 10**6, None, 300 * 10**6)
    assert (only.priority, only.on_failure, only.join, only.max_cost) == (0, OnFailure.FAIL, 0, 0.0)
    (rule,) = only.retry
    assert rule.kinds == {FailureKind.TRANSIENT, FailureKind.LOST}
    assert (rule.max_attempts, rule.initial_backoff, rule.max_backoff, rule.multiplier) == (3, 10**6, 60 * 10**6, 2.0)


def test_what_is_given_is_kept() -> None:
    plan = compiled(
        task("a"),
        task(
            "b",
            capability="x.y@>=1,<3",
            needs=["a"],
            join=Join(at_least=1),
            retry=[retry(FAILURE_KIND_TIMEOUT, initial_backoff=Duration(nanos=500_000_000), multiplier=1.5)],
            timeout=Duration(seconds=2, nanos=1_000),
            deadline=Duration(seconds=10),
            schedule_timeout=Duration(seconds=1),
            priority=7,
            on_failure=ON_FAILURE_SKIP,
            constraints=Constraints(agent_labels={"region": "eu", "gpu": "1"}, max_cost=2.5),
        ),
        version="1.2",
        deadline=Duration(seconds=60),
    ).plan
    kept = plan.tasks[1]
    assert (plan.name, plan.version, plan.deadline) == ("g", "1.2", 60 * 10**6)
    assert (kept.timeout, kept.deadline, kept.schedule_timeout) == (2_000_001, 10 * 10**6, 10**6)
    assert (kept.capability, kept.join, kept.priority, kept.on_failure) == ("x.y@>=1,<3", 1, 7, OnFailure.SKIP)
    assert (kept.agent_labels, kept.max_cost) == ((("gpu", "1"), ("region", "eu")), 2.5)
    assert [(rule.kinds, rule.initial_backoff, rule.multiplier) for rule in kept.retry] == [
        (frozenset({FailureKind.TIMEOUT}), 500_000, 1.5)
    ]


@pytest.mark.parametrize(("join", "count"), [(Join(all=AllOf()), 2), (Join(any=AnyOf()), 1), (None, 2)])
def test_a_join_counts_needs(join: Join | None, count: int) -> None:
    assert compiled(task("a"), task("b"), task("c", needs=["a", "b"], join=join)).plan.tasks[2].join == count


def test_a_capability_that_nobody_offers_is_a_warning() -> None:
    definition = graph(task("a", capability="text.summarize@1"), task("b", capability="text.redact@1"))
    found = compile_graph(definition, offered=lambda capability, trait: capability.startswith("text.redact"))
    (warning,) = found.warnings
    assert warning.field == "tasks[0].capability"
    assert warning.message.startswith("nobody offers text.summarize@1 now; the task will wait")
    assert compile_graph(definition).warnings == ()


def test_an_output_that_ignores_the_tasks_is_a_warning() -> None:
    (warning,) = compiled(task("a"), output='{"ok": true}').warnings
    assert (warning.field, str(warning.code)) == ("output", "value")


def test_open_and_combined_schemas_forbid_nothing() -> None:
    for schema in (
        '{"properties": {"a": {}}}',
        '{"properties": {}, "additionalProperties": false, "patternProperties": {"x": {}}}',
        '{"properties": {"a": {}}, "additionalProperties": {}}',
        "true",
    ):
        assert compiled(task("a", input='"${input.x}"'), input_schema=schema).plan
