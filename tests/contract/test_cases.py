"""The generator of cases against the validator itself: what is called valid is, what is broken is so exactly once."""

from __future__ import annotations

import re

import protovalidate
import pytest
from antiphon_orchestrator.api.image import Image
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.cases import Case, Cases, Kind, sensitive_values
from tests.contract.contract import Contract
from tests.contract.values import MARK, UnknownRule, Values, sample

CONTRACT = Contract()
IMAGE = Image.load()
CASES = Cases(CONTRACT, {})
VALIDATOR = protovalidate.Validator()
METHODS = pytest.mark.parametrize("path", CONTRACT.methods)


def violated(path: str, data: bytes) -> list[str]:
    """Paths of the fields at fault, as the validator sees them."""
    message = CONTRACT.message(CONTRACT.methods[path].request, data)
    return [
        "".join(
            f".{element.field_name}" + ("" if element.subscript is None else f'["{element.subscript.value}"]')
            for element in violation.proto.field.elements
        )
        for violation in VALIDATOR.collect_violations(message)
    ]


def plain(path: str) -> str:
    """A path without the difference between an index and a key."""
    return re.sub(r"\[(\d+)\]", r'["\1"]', f".{path}")


@METHODS
def test_what_is_said_to_be_valid_is(path: str) -> None:
    method = CONTRACT.methods[path]
    for kind in (Kind.VALID, Kind.REPEATED, Kind.REUSED, Kind.UNKNOWN):
        for case in CASES.of(method, kind):
            assert [violated(path, call.data) for call in case.calls] == [[]] * len(case.calls), case.name


@METHODS
def test_what_breaks_a_rule_breaks_it_where_it_says_and_nowhere_else(path: str) -> None:
    for case in CASES.of(CONTRACT.methods[path], Kind.RULE):
        assert set(violated(path, case.calls[0].data)) == {plain(case.path)}, case.name


@METHODS
def test_the_servers_quick_look_at_a_message_agrees(path: str) -> None:
    method = IMAGE.methods[path]

    def keeps(case: Case) -> set[bool]:
        return {method.shape.keeps(method.request_class.FromString(call.data)) for call in case.calls}

    for kind in (Kind.VALID, Kind.REPEATED, Kind.REUSED, Kind.UNKNOWN):
        assert [case.name for case in CASES.of(CONTRACT.methods[path], kind) if keeps(case) != {True}] == []
    assert [case.name for case in CASES.of(CONTRACT.methods[path], Kind.RULE) if keeps(case) != {False}] == []


def test_every_rule_that_a_caller_can_break_is_broken() -> None:
    broken = {(case.method.path, case.path) for case in all_of(Kind.RULE)}
    for method in CONTRACT.methods.values():
        for field in method.request.fields:
            rules = CONTRACT.rules(field)
            if rules.required or rules.WhichOneof("type") in ("string", "bytes", "int32"):
                assert (method.path, field.name) in broken, field.full_name


def test_every_method_has_cases_of_every_kind_that_applies() -> None:
    for method in CONTRACT.methods.values():
        kinds = {kind for kind in Kind if CASES.of(method, kind)}
        assert {Kind.VALID, Kind.ACCESS, Kind.SIZE, Kind.UNKNOWN} <= kinds
        assert (Kind.DEADLINE in kinds) == method.unary
        assert (Kind.CERTIFICATE in kinds) == (method.listener == "mutual_tls")
        assert (Kind.REUSED in kinds) == (method.idempotency == "request_id")


def test_a_new_rule_field_or_access_option_changes_the_cases_by_itself() -> None:
    changed = Contract(with_a_new_field())
    path = next(iter(changed.methods))
    before = {case.name for case in CASES.of(CONTRACT.methods[path], Kind.RULE)}
    after = {case.name for case in Cases(changed, {}).of(changed.methods[path], Kind.RULE)}
    assert after - before == {"added: max_len"}


def test_a_rule_that_cannot_be_broken_is_never_passed_over() -> None:
    contract = Contract(with_a_new_field(cel=True))
    with pytest.raises(UnknownRule):
        Cases(contract, {}).of(next(iter(contract.methods.values())), Kind.RULE)


def test_sensitive_fields_are_sent_with_a_mark_and_found_again() -> None:
    sent = {
        value
        for case in all_of(Kind.VALID)
        for call in case.calls
        for value in sensitive_values(CONTRACT, CONTRACT.message(case.method.request, call.data))
    }
    assert len(sent) > 5
    assert all(MARK.encode() in value for value in sent)


def test_facts_are_used_where_they_keep_the_rules_of_the_field() -> None:
    method = next(method for method in CONTRACT.methods.values() if "run_id" in method.request.fields_by_name)
    assert Values(CONTRACT, {"run_id": "r1"}, "").valid(method.request).run_id == "r1"
    assert len(Values(CONTRACT, {"run_id": "r" * 1000}, "").valid(method.request).run_id) <= 64
    assert Values(CONTRACT, {"run_id": lambda tag: tag}, "own").valid(method.request).run_id == "own"


@given(st.lists(st.sampled_from(["a", "[b-d]", "[0-9]{2,3}", "(x|yz)", "e?", "(f[g-h])*", "\\."]), max_size=6))
def test_a_sample_of_a_pattern_matches_it(parts: list[str]) -> None:
    pattern = f"^{''.join(parts)}$"
    for last in (False, True):
        assert re.fullmatch(pattern, sample(pattern, last=last))


def all_of(kind: Kind) -> list[Case]:
    return [case for method in CONTRACT.methods.values() for case in CASES.of(method, kind)]


def with_a_new_field(*, cel: bool = False) -> bytes:
    """The image with one more field in the request of its first method."""
    image = Contract().files
    request = next(iter(CONTRACT.methods.values())).request
    file = next(file for file in image.file if file.name == request.file.name)
    message = next(message for message in file.message_type if message.name == request.name)
    field = message.field.add(name="added", number=99, type="TYPE_STRING", label="LABEL_OPTIONAL")
    field.options.MergeFromString(rules_of(cel))
    return image.SerializeToString()


def rules_of(cel: bool) -> bytes:
    extension = CONTRACT.pool.FindExtensionByName("buf.validate.field")
    options = CONTRACT.message(extension.containing_type)
    if cel:
        options.Extensions[extension].cel.add(id="never", expression="false")
    else:
        options.Extensions[extension].string.max_len = 5
    return options.SerializeToString()
