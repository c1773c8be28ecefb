"""Mappings: JSON text with ${CEL} in its strings."""

import json

import pytest
from antiphon_orchestrator.admission.mapping import MAX_EXPRESSIONS, Mapping, MappingInvalid
from antiphon_orchestrator.admission.mistakes import Code
from antiphon_orchestrator.admission.syntax import Path
from antiphon_orchestrator.admission.values import MAX_INLINE_BYTES, Unusable
from hypothesis import example, given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def render(mapping: object, input: object = None) -> object:
    def lookup(source: Path) -> tuple[object, int]:
        assert source == ("input",)
        return input, 10

    return json.loads(Mapping(json.dumps(mapping)).render(lookup))


def escaped(value: object) -> object:
    """The mapping that gives the value: every ${ in a text written as $${."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, dict):
        return {name: escaped(item) for name, item in value.items()}
    return value


def without_openings(value: object) -> bool:
    if isinstance(value, dict):
        return all("${" not in name and without_openings(item) for name, item in value.items())
    return all(without_openings(item) for item in value) if isinstance(value, list) else True


@pytest.mark.parametrize(
    ("mapping", "input", "result"),
    [
        ("${input}", {"a": [1]}, {"a": [1]}),
        ("${input.n}", {"n": 3}, 3),
        (" ${input.n}", {"n": 3}, " 3"),
        ({"a": ["${input.n + 1}", "x ${input.n}"], "b": None}, {"n": 3}, {"a": [4, "x 3"], "b": None}),
        ("${input.a}${input.b}", {"a": "x", "b": "y"}, "xy"),
        ("<${input.a}|${input.b}|${input.c}|${input.d}>", {"a": None, "b": True, "c": [1, "é"], "d": 1.5},
         '<null|true|[1,"é"]|1.5>'),
        ('say "${input.s}"\n', {"s": 'a"\\b'}, 'say "a"\\b"\n'),
        ("$${input} $ {x} $", None, "${input} $ {x} $"),
        ("$$${input}", 1, "$${input}"),
        ("${'}' + \"}\" + '''}''' + r'\\}'}", None, "}}}\\}"),
        ("${'\\'}' + input}", "x", "'}x"),
        ("${{'a': {'b': input}}.a.b}", 7, 7),
        ("${input // a } in a comment\n + 1}", 1, 2),
        ("${input.size() > 0 ? 'yes' : 'no'}", "", "no"),
        ({"é": "${input}"}, "ü", {"é": "ü"}),
    ],
)  # fmt: skip
def test_a_mapping_gives_its_value(mapping: object, input: object, result: object) -> None:
    assert render(mapping, input) == result


@given(JSON)
@example("$${")
@example("a${b}c")
def test_a_value_written_with_escapes_comes_back(value: object) -> None:
    if without_openings(value) and "$$${" not in json.dumps(escaped(value)):
        assert render(escaped(value)) == value


@given(JSON)
def test_a_whole_expression_keeps_type_and_content(value: object) -> None:
    assert json.dumps(render({"v": ["${input}"]}, value)) == json.dumps({"v": [value]})


@given(st.text(st.characters(codec="utf-8")))
def test_a_text_inside_a_text_is_taken_as_it_is(text: str) -> None:
    assert render("<${input}>", text) == f"<{text}>"


@given(st.text("${}a'\"\\/ \n", max_size=12))
def test_any_text_either_compiles_or_is_refused(text: str) -> None:
    try:
        mapping = Mapping(json.dumps(text))
    except MappingInvalid as refused:
        assert refused.problems
    else:
        mapping.render(lambda source: (None, 0))


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", Code.VALUE, "is not JSON: expecting property name enclosed in double quotes at line 1, column 2"),
        ("", Code.VALUE, "is not JSON"),
        ("NaN", Code.VALUE, "NaN is not JSON"),
        ("1e999", Code.VALUE, "a number is too large"),
        ('{"a": 1, "a": 2}', Code.VALUE, "has the property 'a' 2 times in one object"),
        ("[" * 40_000, Code.VALUE, "nested too deeply"),
        ('{"a": {"b": ["x ${1 +}"]}}', Code.EXPRESSION, "/a/b/0: ${1 +} column 4: syntax error"),
        ('"${input.x"', Code.EXPRESSION, "the ${ at character 1 has no closing }"),
        ('"ab ${\'}\'"', Code.EXPRESSION, "the ${ at character 4 has no closing }"),
        ('"ab ${\'}"', Code.EXPRESSION, "${'} column 1: syntax error"),
        ('"${}"', Code.EXPRESSION, "syntax error"),
        ('{"${input.k}": 1}', Code.EXPRESSION, "the property name '${input.k}' cannot hold an expression"),
        ('{"a/b~": "${foo}"}', Code.UNKNOWN_REFERENCE, "/a~1b~0: ${foo} column 1: unknown name 'foo'"),
        (json.dumps(["${input}"] * (MAX_EXPRESSIONS + 1)), Code.VALUE, "more than 256 expressions"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_says_where_and_why(text: str, code: Code, says: str) -> None:
    with pytest.raises(MappingInvalid) as refused:
        Mapping(text)
    assert refused.value.problems[0].code == code
    assert says in refused.value.problems[0].message


def test_every_wrong_expression_is_reported() -> None:
    with pytest.raises(MappingInvalid) as refused:
        Mapping('["${1 +}", "${foo} and ${input.}"]')
    assert [problem.message.partition(" ")[0] for problem in refused.value.problems] == ["/0:", "/1:", "/1:"]


def test_a_result_may_be_as_large_as_a_payload_and_no_larger() -> None:
    assert len(Mapping('"${input}"').render(lambda source: ("x" * (MAX_INLINE_BYTES - 2), 0))) == MAX_INLINE_BYTES
    for too_large in ("x" * (MAX_INLINE_BYTES - 1), "é" * (MAX_INLINE_BYTES // 2)):
        with pytest.raises(Unusable, match="is larger than 65536 bytes"):
            Mapping('"${input}"').render(lambda source, value=too_large: (value, 0))


def test_half_a_surrogate_pair_never_gets_into_a_payload() -> None:
    with pytest.raises(Unusable, match="surrogate"):
        Mapping('{"a": "${input}"}').render(lambda source: ("\ud800", 0))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ('"${input}"', ("input",)),
        ('"${ tasks.a.output }"', ("tasks", "a", "output")),
        ('"${item}"', ("item",)),
        ('"${tasks.a.output.x}"', None),
        ('" ${input}"', None),
        ('["${input}"]', None),
        ('"${dyn(input)}"', None),
        ("3", None),
    ],
)
def test_a_mapping_knows_when_it_is_one_whole_source(text: str, source: Path | None) -> None:
    assert Mapping(text).source == source
