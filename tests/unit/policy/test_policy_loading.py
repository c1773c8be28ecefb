"""What is refused when policies are loaded, and where the message says it is."""

from pathlib import Path

import antiphon_orchestrator.policy as policy
import cedarpy
import pytest
from antiphon_orchestrator.policy import (
    Action,
    CedarPolicies,
    FactInvalid,
    PolicyBundle,
    PolicyError,
    PolicyFile,
    compile_bundle,
    dev_profile,
    facts_of,
    load_folder,
    schema_json,
)
from antiphon_orchestrator.policy.bundle import MAX_FILE_BYTES
from antiphon_orchestrator.policy.rules import MAX_POLICIES
from antiphon_orchestrator.policy.schema import CONTEXT, RESOURCES

GOOD = '@id("base")\npermit (principal, action, resource);\n'


def problems(*texts: str) -> tuple[str, ...]:
    files = [PolicyFile(f"p{number}.cedar", text) for number, text in enumerate(texts)]
    with pytest.raises(PolicyError) as refused:
        compile_bundle(PolicyBundle.of(1, files))
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


def test_a_policy_without_an_id_is_refused_where_it_begins() -> None:
    assert problems(GOOD + "\n// why; because\n\npermit (principal,\n action, resource);\n") == (
        'p0.cedar:6: the policy has no @id; begin it with @id("some.name")',
    )
    assert "has no @id" in problems("@id permit(principal, action, resource);")[0]


def test_an_id_is_taken_once_over_all_files() -> None:
    assert problems(GOOD, "// here too\n" + GOOD) == ("p1.cedar:2: @id 'base' is taken by the policy at p0.cedar:1",)


def test_an_id_that_would_not_read_well_in_a_sentence_is_refused() -> None:
    (problem,) = problems('@id("a `b`") permit(principal, action, resource);')
    assert problem.startswith("p0.cedar:1: @id 'a `b`' must be")


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("context.labells.contains(1)", '`labells` in context for Action::"submit" not found'),
        ('context.priority == "high"', "Long and String are not compatible"),
        ("principal.role == 1", "`role` on entity type `Identity` not found"),
    ],
)
def test_a_policy_that_does_not_fit_the_schema_is_refused_with_file_and_line(condition: str, said: str) -> None:
    text = f'@id("x") permit (principal, action == Action::"submit", resource)\n when {{ {condition} }};'
    found = problems(GOOD + "\n" + text)
    assert any(problem.startswith("p0.cedar:4: ") and said in problem for problem in found)


def test_an_action_nobody_asks_about_is_refused() -> None:
    assert (
        'unrecognized action `Action::"launch"`'
        in problems('@id("x") permit (principal, action == Action::"launch", resource);')[0]
    )


def test_a_text_cedar_cannot_read_is_refused_where_the_policy_begins() -> None:
    (problem,) = problems(
        GOOD + GOOD.replace("base", "b;c") + '\n@id("x")\npermit (principal action, resource);\n' + GOOD
    )
    assert problem.startswith("p0.cedar:6: the policy that begins here cannot be read: unexpected token")
    (problem,) = problems(GOOD + '@id("x") permit (principal, action, resource)')
    assert problem == "p0.cedar:3: the policy that begins here cannot be read: unexpected end of input"


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (
            '@obligaton("redact")',
            "unknown annotation @obligaton; known are @burst, @concurrent, @fields, @id, @labels, @obligation, @per, "
            "@rate, @reason",
        ),
        ('@obligation("redact")', '@obligation("redact") and @fields("a,b.c") or @labels("pii") need each other'),
        ('@fields("email")', '@obligation("redact") and @fields("a,b.c") or @labels("pii") need each other'),
        ('@labels("pii")', '@obligation("redact") and @fields("a,b.c") or @labels("pii") need each other'),
        ("@obligation", "@obligation names nothing"),
        ('@obligation("redct")', "there is no @obligation('redct'); there are limit, log, redact"),
        ('@obligation("redact") @fields("a..b")', "@fields: 'a..b' is no path; write a.b or /a/b"),
        ('@obligation("redact") @labels("PII")', "@labels: 'PII' is no label; write its key, such as pii"),
        (
            '@obligation("require_approval")',
            '@obligation("require_approval") comes in a later version; until then forbid what needs it',
        ),
    ],
)
def test_an_annotation_that_would_be_no_obligation_is_refused(annotations: str, said: str) -> None:
    text = f'@id("x") {annotations} permit(principal, action == Action::"release", resource);'
    assert problems(text) == (f"p0.cedar:1: {said}",)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ('@obligation("limit")', '@obligation("limit") and @rate("100/s"), @concurrent("10") or both need each other'),
        ('@rate("9/s")', '@obligation("limit") and @rate("100/s"), @concurrent("10") or both need each other'),
        ('@obligation("limit") @rate("fast")', "@rate: 'fast' is no rate; write 100/s, 100/m or 100/h"),
        ('@obligation("limit") @rate("0/s")', "@rate: '0/s' is no rate; write 100/s, 100/m or 100/h"),
        ('@obligation("limit") @concurrent("0")', "@concurrent: '0' is no number from 1 to 999999"),
        ('@obligation("limit") @concurrent("3") @burst("4")', "@burst belongs to a @rate"),
        (
            '@obligation("limit") @concurrent("3") @per("team")',
            "@per: 'team' has no count of its own; known are namespace, capability, agent",
        ),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(annotations: str, said: str) -> None:
    text = f'@id("x") {annotations} permit(principal, action == Action::"dispatch", resource);'
    assert problems(text) == (f"p0.cedar:1: {said}",)


@pytest.mark.parametrize("action", ["action", 'action == Action::"submit"', 'action in [Action::"dispatch"]'])
def test_a_limit_belongs_to_a_policy_about_dispatch_alone(action: str) -> None:
    text = f'@id("x") @obligation("limit") @concurrent("1") permit(principal, {action}, resource);'
    assert problems(text) == ('p0.cedar:1: @obligation("limit") needs action == Action::"dispatch"',)


@pytest.mark.parametrize(
    "action", ["action", 'action == Action::"submit"', 'action in [Action::"dispatch", Action::"call"]']
)
def test_redaction_belongs_to_policies_about_what_hands_payloads_on(action: str) -> None:
    text = f'@id("x") @obligation("redact") @fields("phone") permit(principal, {action}, resource);'
    said = '@obligation("redact") needs action in [Action::"dispatch", Action::"release"], or one of them'
    assert problems(text) == (f"p0.cedar:1: {said}",)


@pytest.mark.parametrize(
    "action",
    [
        'action == Action::"release"',
        'action in Action::"dispatch"',
        'action in [Action::"dispatch", Action::"release"]',
    ],
)
def test_redaction_where_payloads_are_handed_on_is_right(action: str) -> None:
    text = f'@id("x") @obligation("redact") @fields("phone") permit(principal, {action}, resource);'
    assert list(compile_bundle(PolicyBundle.of(1, [PolicyFile("a.cedar", text)])).by_id) == ["x"]


def test_an_obligation_on_a_forbid_is_refused() -> None:
    (problem,) = problems('@id("x") @obligation("log") forbid(principal, action, resource);')
    assert problem == "p0.cedar:1: @obligation belongs to a permit; a forbid leaves nothing to be done"


def test_a_role_nobody_can_have_is_refused() -> None:
    (problem,) = problems('\n@id("x") permit(principal in Role::"developr", action, resource);')
    assert problem.startswith("p0.cedar:2: ") and "developr" in problem


def test_every_policy_that_cannot_be_read_is_told_with_its_line() -> None:
    text = '@id("a") permit(principal action);\n' + GOOD + '\n@id("b;") permit(principal, "//" action);'
    assert [problem.split(": ")[0] for problem in problems(text)] == ["p0.cedar:1", "p0.cedar:5"]


def test_what_is_too_much_is_refused() -> None:
    policy = '@id("p{}") permit(principal, action, resource);\n'
    many = "".join(policy.format(number) for number in range(MAX_POLICIES + 1))
    assert problems(many) == (f"there are {MAX_POLICIES + 1} policies; {MAX_POLICIES} are the most",)
    with pytest.raises(PolicyError, match="files of policies; 32 are the most"):
        PolicyBundle.of(1, [PolicyFile(f"{number}.cedar", GOOD) for number in range(33)])
    with pytest.raises(PolicyError, match="larger than 1048576 bytes together"):
        PolicyBundle.of(1, [PolicyFile(f"{number}.cedar", " " * MAX_FILE_BYTES) for number in range(17)])
    with pytest.raises(PolicyError, match=r"a\.cedar: is there twice"):
        PolicyBundle.of(1, [PolicyFile("a.cedar", GOOD), PolicyFile("a.cedar", "")])


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"notes\.toml: is neither"):
        CedarPolicies(PolicyBundle.of(1, [PolicyFile("a.cedar", GOOD), PolicyFile("notes.toml", "")]))


def test_a_template_is_refused() -> None:
    text = GOOD + '@id("t") permit(principal == ?principal, action, resource);'
    assert problems(text) == ("p0.cedar:3: templates are not supported",)


def test_every_problem_of_every_file_is_told_at_once() -> None:
    found = problems(
        "permit(principal, action, resource);", "permit(", '@id("a") permit(principal is X, action, resource);'
    )
    assert {problem.split(":")[0] for problem in found} == {"p0.cedar", "p1.cedar", "p2.cedar"}


def test_a_folder_is_the_cedar_files_directly_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.cedar").write_text(GOOD)
    (tmp_path / "a.cedar").write_text(GOOD.replace("base", "other"))
    (tmp_path / "notes.txt").write_text("permit(")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "c.cedar").write_text("permit(")
    bundle = load_folder(tmp_path, epoch=3)
    assert [Path(file.name).name for file in bundle.files] == ["a.cedar", "b.cedar"]
    assert CedarPolicies(bundle).epoch == 3


def test_the_digest_is_of_the_policies_and_not_of_their_place(tmp_path: Path) -> None:
    for folder, text in (("one", GOOD), ("two", GOOD), ("three", GOOD + "\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.cedar").write_text(text)
    one, two, three = (load_folder(tmp_path / folder).digest for folder in ("one", "two", "three"))
    assert one == two != three


def test_a_folder_that_cannot_be_policies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"holds no \*\.cedar file"):
        load_folder(tmp_path)
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_folder(tmp_path / "missing")
    (tmp_path / "a.cedar").write_bytes(b"\xff")
    (tmp_path / "b.cedar").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    (tmp_path / "c.cedar").mkdir()
    with pytest.raises(PolicyError) as refused:
        load_folder(tmp_path)
    assert [problem.rsplit("/", 1)[1].split(": ", 1)[1][:10] for problem in refused.value.problems] == [
        "is not UTF",
        "is larger ",
        "cannot be ",
    ]


def test_an_epoch_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PolicyBundle.of(0, [])


def test_the_schema_covers_every_action_and_is_the_same_each_time() -> None:
    assert set(RESOURCES) == set(Action) >= set(CONTEXT)
    assert schema_json() == schema_json()
    for file in dev_profile().files[:1]:
        assert cedarpy.validate_policies(file.text, schema_json()).errors == []


def test_every_fact_has_a_value_for_questions_that_do_not_give_it() -> None:
    for action, facts in CONTEXT.items():
        assert [name for name, _ in facts_of(action, {})] == sorted(facts)


@pytest.mark.parametrize(
    ("action", "facts", "said"),
    [
        (Action.SUBMIT, {"colour": ["red"]}, "'colour' is no fact of submit; it has labels, priority"),
        (Action.SUBMIT, {"priority": ["high"]}, "'priority' is a number, not 'high'"),
        (Action.SUBMIT, {"priority": ["1", "2"]}, "'priority' takes one value, not 2"),
        (Action.DISPATCH, {"effect": ["foo"]}, "'effect' is one of pure, read, write, egress, not 'foo'"),
        (Action.READ_CONTEXT, {"scope": ["foo"]}, "'scope' is one of namespace, run, graph, not 'foo'"),
    ],
)
def test_a_fact_that_the_action_cannot_have_is_told(action: Action, facts: dict[str, list[str]], said: str) -> None:
    with pytest.raises(FactInvalid) as refused:
        facts_of(action, facts)
    assert str(refused.value) == said


def test_the_package_offers_what_it_says() -> None:
    assert sorted(policy.__all__) == policy.__all__
    assert all(hasattr(policy, name) for name in policy.__all__)
