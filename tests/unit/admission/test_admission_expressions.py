"""Expressions: what they refer to, what they give, and where they stop."""

import json

import pytest
from antiphon_orchestrator.admission.expression import (
    MAX_BOUND_BYTES,
    MAX_LOOP_ITEMS,
    Expression,
    ExpressionInvalid,
)
from antiphon_orchestrator.admission.mistakes import Code
from antiphon_orchestrator.admission.paths import path_text
from antiphon_orchestrator.admission.syntax import Path
from antiphon_orchestrator.admission.values import Unusable
from hypothesis import given, settings
from hypothesis import strategies as st


def evaluate(text: str, **sources: object) -> object:
    """The value of an expression; a source of a task is given as a_output, a_state or a_failure."""

    def lookup(source: Path) -> tuple[object, int]:
        value = sources["_".join(source[1:]) if source[0] == "tasks" else source[0]]
        return value, len(json.dumps(value))

    return Expression(text).evaluate(lookup)


@pytest.mark.parametrize(
    ("text", "references"),
    [
        ("input", ["input"]),
        ("tasks.a.output.x", ["tasks.a.output.x"]),
        ('tasks["a"].output["x"].y', ["tasks.a.output.x.y"]),
        ("tasks.a.output.xs[0].y", ["tasks.a.output.xs"]),
        ("tasks.a.output[input.key]", ["input.key", "tasks.a.output"]),
        ("has(input.a.b)", ["input.a.b"]),
        ('"tasks.a.output" + input.x', ["input.x"]),
        ("// tasks.b.output\ninput.x", ["input.x"]),
        ("input.xs.map(x, x.y + item)", ["input.xs", "item"]),
        ("input.xs.map(item, item.y)", ["input.xs"]),
        ("[1].map(input, .input.x + tasks.a.output)", ["input.x", "tasks.a.output"]),
        ("[1].map(input, [2].map(tasks, input + tasks))", []),
        ("[input].map(input, input.x)", ["input"]),
        ("input.xs.exists_one(x, x == index)", ["index", "input.xs"]),
        ("{'a': input.x, input.k: 1}[item]", ["input.k", "input.x", "item"]),
        ("type(input.x) == int", ["input.x"]),
        ("input.b ? tasks.a.state : tasks['a'].failure.kind", ["input.b", "tasks.a.failure.kind", "tasks.a.state"]),
        ("tasks[input.x].output", ["input.x", "tasks"]),
        ("input.text.matches('^a') || input.text.size() > 3", ["input.text"]),
        ('input["a b"].c', ["input['a b'].c"]),
    ],
)
def test_references_are_the_longest_static_paths(text: str, references: list[str]) -> None:
    assert [path_text(path) for path in Expression(text).references] == references


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("1 +", Code.EXPRESSION, "column 4: syntax error: mismatched input its end"),
        ("", Code.EXPRESSION, "syntax error"),
        ('"a" + 1', Code.TYPE, "column 5: found no matching overload for '_+_' applied to '(string, int)'"),
        ("input.x +\n tasks.y + size(1)", Code.TYPE, "line 2, column 16: found no matching overload"),
        ("inputs.x", Code.UNKNOWN_REFERENCE, "column 1: unknown name 'inputs'; did you mean 'input'?"),
        ("a.output", Code.UNKNOWN_REFERENCE, "column 1: unknown name 'a'; an expression knows input, tasks"),
        ("(" * 60 + "1" + ")" * 60, Code.EXPRESSION, "recursion limit"),
        ("1" + " " * 5000, Code.EXPRESSION, "longer than 4096"),
        ("[1].all(x, x.y)", Code.TYPE, "column 13"),
        ("input.ok\0 && false", Code.EXPRESSION, "NUL"),
    ],
)
def test_what_does_not_compile_says_where(text: str, code: Code, says: str) -> None:
    with pytest.raises(ExpressionInvalid) as refused:
        Expression(text)
    assert refused.value.problems[0].code == code
    assert says in refused.value.problems[0].message


def test_all_errors_of_an_expression_are_reported() -> None:
    with pytest.raises(ExpressionInvalid) as refused:
        Expression("foo + bar")
    assert [problem.message[:25] for problem in refused.value.problems] == [
        "column 1: unknown name 'f",
        "column 7: unknown name 'b",
    ]


@pytest.mark.parametrize(
    ("text", "sources", "value"),
    [
        ("input.x + 1", {"input": {"x": 2}}, 3),
        ("input.x * 1.5", {"input": {"x": 2.0}}, 3.0),
        ("input.xs.filter(x, x.n > 1).map(x, x.n)", {"input": {"xs": [{"n": 1}, {"n": 2}]}}, [2]),
        ("tasks.a.output == null ? 'none' : tasks.a.output.x", {"a_output": None}, "none"),
        ("tasks.a.failure.kind", {"a_failure": {"kind": "LOST", "message": "m"}}, "LOST"),
        ("tasks.a.state == 'SUCCEEDED'", {"a_state": "SUCCEEDED"}, True),
        ("has(input.a.b)", {"input": {"a": {"c": 1}}}, False),
        ("input.a.b == input.a.c && !has(input.d)", {"input": {"a": {"b": [1], "c": [1]}}}, True),
        ("timestamp(input)", {"input": "2026-01-02T03:04:05.5+01:00"}, "2026-01-02T02:04:05.500Z"),
        ("duration('90s')", {}, "90s"),
        ("b'abc'", {}, "YWJj"),
        ("{1: 'a'}", {}, {"1": "a"}),
        ("{true: 'b'}", {}, {"true": "b"}),
        ("[1u, 2.5, null, 'x']", {}, [1, 2.5, None, "x"]),
        ("index + 1", {"index": 4}, 5),
        ("'a\\x00b' + input", {"input": "c"}, "a\0bc"),
        ("input", {"input": "a\0b"}, "a\0b"),
    ],
)
def test_values_come_as_json_holds_them(text: str, sources: dict[str, object], value: object) -> None:
    found = evaluate(text, **sources)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "sources", "says"),
    [
        ("input.x", {"input": {}}, "input has no field 'x'"),
        ("tasks.a.output.x.y", {"a_output": {"x": 1}}, "tasks.a.output.x is a number and has no field 'y'"),
        ("tasks.a.output.x", {"a_output": None}, "is null and has no field"),
        ("input.x + 1", {"input": {}}, 'Key not found in map : "x"'),
        ("input.x + 1", {"input": {"x": "a"}}, "No matching overloads"),
        ("1 / input", {"input": 0}, "divide by zero"),
        ("input[3]", {"input": [1]}, "index"),
        ("input / 0.0", {"input": 1.0}, "JSON has no form for"),
        ("type(input)", {"input": 1}, "JSON has no form for"),
        ("{1: 'a', '1': 'b'}", {}, "two keys that JSON writes alike"),
        ("input + 1", {"input": 2**80}, "out of range"),
        ("input + 'x'", {"input": "\ud800"}, "not valid"),
        ("input == 'root'", {"input": "root\0"}, "with a NUL character"),
        ("input.x.size()", {"input": {"x": {"a\0": 1}}}, "with a NUL character"),
    ],
)
def test_run_time_errors_are_never_values(text: str, sources: dict[str, object], says: str) -> None:
    with pytest.raises(Unusable, match=".*".join(says.split(" ", 1))):
        evaluate(text, **sources)


def test_only_what_is_referred_to_is_bound() -> None:
    asked: list[Path] = []

    def lookup(source: Path) -> tuple[object, int]:
        asked.append(source)
        return {"x": 2, "never bound, CEL would refuse it": 2**80}, 10

    assert Expression("tasks.a.output.x + tasks.a.output.x * tasks.b.output.x").evaluate(lookup) == 6
    assert asked == [("tasks", "a", "output"), ("tasks", "b", "output")]


def test_an_evaluation_reads_at_most_its_limit() -> None:
    text = "x" * (MAX_BOUND_BYTES // 2)
    assert evaluate("input.size()", input=text) == len(text)
    with pytest.raises(Unusable, match="is the limit of one expression"):
        evaluate("input.size() + item.size()", input=text, item=text)


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("input.map(x, x)", [1] * (MAX_LOOP_ITEMS + 1), "walks over more than 2000 items"),
        ("input.all(x, x == {'a': 1})", {"xs": {str(key): key for key in range(3000)}}, "walks over more than"),
        ("(input + input).map(x, x)", [1] * (MAX_LOOP_ITEMS - 1), "walks over more than"),
        ("input.xs.map(x, input.text)", {"xs": [1] * 2000, "text": "x" * 70_000}, "could give a result far larger"),
        ("input.xs.map(x, input.xs.map(y, input.text + 'a'))", {"xs": [1] * 90, "text": "x" * 20_000}, "far larger"),
        ("[input + input].map(a, a + a).map(a, a + a).map(a, a + a)", "x" * 600_000, "far larger"),
        ("[" + ",".join(["input"] * 400) + "]", "x" * 600_000, "far larger"),
        ("input.all(i, input.all(j, input.all(k, k == i)))", [1] * 30, "Iteration budget exceeded"),
    ],
)
def test_a_result_that_could_grow_too_large_is_refused(text: str, value: object, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        evaluate(text, input=value)


def test_loops_over_ordinary_payloads_are_not_refused() -> None:
    kinds = ", ".join(f"'k{number}'" for number in range(40))
    xs = [{"id": number, "kind": f"k{number % 50}", "text": "x" * 400} for number in range(150)]
    text = f"input.filter(x, [{kinds}].exists(k, k == x.kind) && item.exists(y, y == x.id)).map(x, x.id)"
    assert evaluate(text, input=xs, item=[1, 2, 149]) == [1, 2]
    assert evaluate("input.map(x, x.kind + ' ' + x.text).size()", input=xs) == 150


@pytest.mark.parametrize("text", ["{1: 'one', true: 'yes'}", "[{0u: 1, false: 2}]", "{'a': {1: 1, 1u: 2}}"])
def test_a_map_that_would_lose_an_entry_on_its_way_out_fails_instead(text: str) -> None:
    with pytest.raises(Unusable, match="keys that are alike"):
        Expression(text).evaluate(lambda source: (None, 0))
    assert Expression("{1: 'one', 2u: 'two', 'true': 3}").evaluate(lambda source: (None, 0)) == {
        "1": "one",
        "2": "two",
        "true": 3,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcé"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
STEPS = st.lists(st.sampled_from("abc"), max_size=4)


@given(JSON, STEPS)
@settings(max_examples=300, deadline=None)
def test_a_plain_selection_gives_what_cel_gives(value: object, steps: list[str]) -> None:
    chain = ".".join(["input", *steps])
    plain, whole = Expression(chain), Expression(f"dyn({chain})")
    assert plain.pure is not None
    assert whole.pure is None
    answers = []
    for expression in (plain, whole):
        try:
            answers.append(json.dumps(expression.evaluate(lambda source: (value, 0)), sort_keys=True))
        except Unusable:
            answers.append("unusable")
    assert answers[0] == answers[1]


@given(JSON, STEPS, STEPS)
@settings(max_examples=200, deadline=None)
def test_binding_parts_gives_what_binding_the_whole_gives(value: object, one: list[str], two: list[str]) -> None:
    first, second = (".".join(["input", *steps]) for steps in (one, two))
    bodies = [f"{first} == {second}", f"[{first}, {second}]"] + ([f"has({first})"] if one else [])
    for body in bodies:
        answers = []
        for text in (body, f"[input].map(input, {body})[0]"):
            try:
                answers.append(json.dumps(Expression(text).evaluate(lambda source: (value, 0)), sort_keys=True))
            except Unusable:
                answers.append("unusable")
        assert answers[0] == answers[1], body
