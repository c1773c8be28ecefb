"""The contracts as data, violations as paths, and page tokens."""

from __future__ import annotations

import pytest
from antiphon.mesh.v1 import mesh_service_pb2
from antiphon.v1 import error_pb2, graph_service_pb2, run_service_pb2
from antiphon_orchestrator.api.errors import ApiError, Violation
from antiphon_orchestrator.api.image import Image
from antiphon_orchestrator.api.paging import decode_token, encode_token
from antiphon_orchestrator.policy import Action
from google.protobuf.message import Message

IMAGE = Image.load()
SUBMIT = IMAGE.methods["/antiphon.v1.RunService/SubmitRun"]
ATTACH = IMAGE.methods["/antiphon.mesh.v1.MeshService/Attach"]


def violations(path: str, request: Message) -> tuple[Violation, ...]:
    with pytest.raises(ApiError) as caught:
        IMAGE.check(IMAGE.methods[path], request.SerializeToString())
    return caught.value.violations


def test_a_method_knows_what_the_contracts_say_of_it() -> None:
    assert (SUBMIT.service, SUBMIT.name, SUBMIT.unary, SUBMIT.action) == (
        "antiphon.v1.RunService",
        "SubmitRun",
        True,
        Action.SUBMIT,
    )
    assert error_pb2.ERROR_REASON_GRAPH_INVALID in SUBMIT.errors
    assert (ATTACH.request_streaming, ATTACH.response_streaming, ATTACH.action) == (True, True, None)


def test_every_method_states_how_a_repetition_behaves() -> None:
    assert all(method.idempotency for method in IMAGE.methods.values())


def test_a_violation_names_the_field_through_lists_and_maps() -> None:
    request = run_service_pb2.SubmitRunRequest(request_id="a", labels={"": "x"})
    for index in range(2):
        request.inline.tasks.add(id=f"t{index}", capability="a.b@1")
    request.inline.name = "g"
    request.inline.tasks[1].retry.add(max_attempts=0)
    found = {violation.field for violation in violations(SUBMIT.path, request)}
    assert found == {"inline.tasks[1].retry[0].kinds", "inline.tasks[1].retry[0].max_attempts", 'labels[""]'}


def test_a_missing_choice_is_named_by_its_group() -> None:
    request = run_service_pb2.SubmitRunRequest(request_id="a")
    assert [violation.field for violation in violations(SUBMIT.path, request)] == ["source"]


def test_a_violation_never_holds_the_value() -> None:
    request = mesh_service_pb2.AttachRequest()
    request.reports.add(attempt_id="x" * 600, shard=1).output.inline = b"secret" * 20_000
    assert "secret" not in str(violations(ATTACH.path, request))


def test_bytes_that_are_no_message_break_a_rule_too() -> None:
    with pytest.raises(ApiError) as caught:
        IMAGE.check(SUBMIT, b"\xff\xff")
    assert caught.value.violations[0].field == "request"


@pytest.mark.proves("version skew of one minor")
def test_unknown_fields_are_let_through() -> None:
    request = run_service_pb2.GetRunRequest(run_id="r").SerializeToString() + b"\xa2\x06\x01x"  # field 100
    IMAGE.check(IMAGE.methods["/antiphon.v1.RunService/GetRun"], request)


def test_a_page_token_gives_its_position_back_to_the_same_query_only() -> None:
    query = graph_service_pb2.ListGraphsRequest(name="a", page_size=2)
    token = encode_token(query, ("a", 7))
    same = graph_service_pb2.ListGraphsRequest(name="a", page_size=9, page_token=token)
    assert decode_token(same, str, int) == ["a", 7]
    assert decode_token(query, str, int) is None
    for name, wrong in (("b", token), ("a", token[:-3]), ("a", "%%%"), ("a", "W10"), ("a", "e30"), ("a", "é")):
        other = graph_service_pb2.ListGraphsRequest(name=name, page_token=wrong)
        with pytest.raises(ApiError, match="page token"):
            decode_token(other, str, int)
    with pytest.raises(ApiError, match="page token"):
        decode_token(same, int)


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(1, -1), (-1, 1), (0, 1_000_000_000), (1 << 62, 0), (-315_576_000_001, 0)]
)
def test_a_duration_that_is_none_breaks_the_contract_wherever_it_is(seconds: int, nanos: int) -> None:
    request = mesh_service_pb2.AttachRequest()
    request.calls.add(call_id="1", attempt_id="r/t/0/1", attempt_token=b"t", capability="a.b@1")
    last = request.calls.add(call_id="2", attempt_id="r/t/0/1", attempt_token=b"t", capability="a.b@1")
    last.timeout.seconds, last.timeout.nanos = seconds, nanos
    assert [found.field for found in violations(ATTACH.path, request)] == ["calls[1].timeout"]
    with pytest.raises(ApiError):
        IMAGE.parse(ATTACH, mesh_service_pb2.AttachRequest.FromString, request.SerializeToString())
    last.timeout.seconds, last.timeout.nanos = -5, -999_999_999
    IMAGE.parse(ATTACH, mesh_service_pb2.AttachRequest.FromString, request.SerializeToString())


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(0, -1), (0, 1_000_000_000), (253_402_300_800, 0), (-62_135_596_801, 0)]
)
def test_a_timestamp_that_is_none_breaks_the_contract(seconds: int, nanos: int) -> None:
    request = run_service_pb2.ListRunsRequest()
    request.created_after.seconds, request.created_after.nanos = seconds, nanos
    assert [found.field for found in violations("/antiphon.v1.RunService/ListRuns", request)] == ["created_after"]


def test_in_a_graph_that_holds_graphs_of_time_the_place_is_named() -> None:
    request = run_service_pb2.SubmitRunRequest(request_id="1")
    request.inline.name = "g"
    request.inline.tasks.add(id="a", capability="a.b@1")
    request.inline.tasks.add(id="b", capability="a.b@1").timeout.nanos = -(1 << 31)
    assert violations(SUBMIT.path, request)[0].field == "inline.tasks[1].timeout"
