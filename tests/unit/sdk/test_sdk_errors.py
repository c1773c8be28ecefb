"""The exception classes are the registry, and every status becomes the right one."""

from __future__ import annotations

from datetime import timedelta

import antiphon
import grpc
import pytest
from antiphon import _errors, _reasons
from antiphon._failures import CallFailed, failure_of
from antiphon.options.v1 import options_pb2
from antiphon.v1 import error_pb2, failure_pb2
from google.protobuf.duration_pb2 import Duration

from tests.fakes.agent_socket import status_of

REASONS = [value for value in error_pb2.ErrorReason.DESCRIPTOR.values if value.number]


def rpc_error(code: grpc.StatusCode, details: str = "", trailer: bytes | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([("grpc-status-details-bin", trailer)] if trailer is not None else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


@pytest.mark.parametrize("value", REASONS, ids=lambda value: value.name)
def test_every_reason_has_its_class_under_its_remedy(value: object) -> None:
    assert hasattr(value, "number")
    number = error_pb2.ErrorReason.ValueType(value.number)
    spec = value.GetOptions().Extensions[options_pb2.error]  # type: ignore[attr-defined]
    retry = 0.5 if spec.remedy == options_pb2.REMEDY_RETRY else None
    status = status_of(number, retry=retry)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    error = _errors.from_rpc_error(rpc_error(code, status.message, status.SerializeToString()))
    name = error_pb2.ErrorReason.Name(number).removeprefix("ERROR_REASON_")
    assert type(error).__name__ == "".join(word.capitalize() for word in name.split("_"))
    assert getattr(antiphon, type(error).__name__) is type(error)
    assert (error.reason, error.code, error.message) == (name, code, status.message)
    assert set(error.metadata) == set(spec.metadata)
    assert error.remedy == options_pb2.Remedy.Name(spec.remedy).removeprefix("REMEDY_")
    assert error.retry_after == (timedelta(seconds=0.5) if retry else None)
    assert isinstance(error, antiphon.RetryableError) is (retry is not None)


def test_there_is_no_class_without_a_reason() -> None:
    made = [one for one in vars(_reasons).values() if isinstance(one, type) and one.__module__ == _reasons.__name__]
    assert len(made) == len(REASONS)
    assert "no run {run_id}" in (antiphon.RunNotFound.__doc__ or "")


def test_a_class_that_contradicts_the_registry_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="must derive from RequestError"):
        type("RunNotFound", (_errors.Reason, _errors.RetryableError), {})
    with pytest.raises(KeyError):
        type("NeverHeardOf", (_errors.Reason, _errors.RequestError), {})
    assert antiphon.RunNotFound is _reasons.RunNotFound


def test_transport_errors_are_errors_without_a_reason_of_ours() -> None:
    lost = _errors.from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert type(lost) is antiphon.Unavailable and lost.reason == "" and "connection refused" in str(lost)
    assert isinstance(lost, antiphon.RetryableError)
    late = _errors.from_rpc_error(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED))
    assert type(late) is antiphon.DeadlineExceeded
    other = _errors.from_rpc_error(rpc_error(grpc.StatusCode.UNIMPLEMENTED, "what?"))
    assert type(other) is antiphon.AntiphonError and other.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("trailer", [b"", b"\xff\xff\xff", b"\x12\x05hello"])
def test_foreign_details_are_judged_by_the_code(trailer: bytes) -> None:
    error = _errors.from_rpc_error(rpc_error(grpc.StatusCode.DATA_LOSS, "oops", trailer))
    assert type(error) is antiphon.AntiphonError and "DATA_LOSS: oops" in str(error)


def test_a_reason_of_a_newer_server_keeps_what_it_came_with() -> None:
    made = _errors.error_of("BRAND_NEW", "text", metadata={"a": "b"})
    assert type(made) is antiphon.AntiphonError and (made.reason, made.metadata) == ("BRAND_NEW", {"a": "b"})
    later = _errors.error_of("BRAND_NEW", "text", retry_after=timedelta(seconds=1))
    assert type(later) is antiphon.RetryableError
    message = error_pb2.Error(reason=error_pb2.ErrorReason.ValueType(9999), message="text")
    assert _errors.from_error_message(message).reason == "9999"


def test_stream_items_become_the_same_errors() -> None:
    message = error_pb2.Error(
        reason=error_pb2.ERROR_REASON_OVERLOADED,
        message="inbox is full",
        metadata={"queue": "inbox"},
        violations=[error_pb2.FieldViolation(field="a", message="b")],
        retry_delay=Duration(seconds=2),
    )
    error = _errors.from_error_message(message)
    assert isinstance(error, antiphon.Overloaded) and error.retry_after == timedelta(seconds=2)
    assert str(error) == "inbox is full; a: b"


def test_a_violation_that_the_message_tells_is_not_told_twice() -> None:
    told, more = (
        antiphon.FieldViolation("input/name", "is no string"),
        antiphon.FieldViolation("input/age", "is no number"),
    )
    error = antiphon.AntiphonError("the input does not fit at input/name: is no string", violations=[told, more])
    assert str(error) == "the input does not fit at input/name: is no string; input/age: is no number"


def test_failures_are_cut_to_the_limits_of_the_contract() -> None:
    made = failure_of(antiphon.PermanentFailure("x" * 9999, "y" * 999, field="/" + "z" * 9999))
    assert (len(made.message), len(made.code), len(made.field)) == (4096, 128, 1024)
    assert len(failure_of(RuntimeError("x" * 99_999)).cause) == 16384
    assert failure_of(RuntimeError()).message == "RuntimeError"
    made = failure_of(antiphon.PermanentFailure("no \ud800", "C\udfff", field="/\ud800"))
    assert (made.message, made.code, made.field) == ("no \\ud800", "C\\udfff", "/\\ud800")
    assert failure_of(ValueError("no \ud800")).message == "ValueError: no \\ud800"


class Unspeakable(Exception):
    def __str__(self) -> str:
        return str(self.detail)  # type: ignore[attr-defined]  # which is the mistake


class Terse(antiphon.InvalidInput):
    def __init__(self) -> None:
        """Without that of its base."""


def test_there_is_a_failure_of_whatever_is_raised() -> None:
    made = failure_of(antiphon.PermanentFailure(ValueError("no number"), 429, field=7))  # type: ignore[arg-type]
    assert (made.kind, made.message, made.code, made.field) == (
        failure_pb2.FAILURE_KIND_PERMANENT,
        "no number",
        "429",
        "7",
    )
    assert antiphon.PermanentFailure(ValueError("no number")).message == "no number"  # type: ignore[arg-type]
    made = failure_of(Unspeakable())
    assert made.message == "Unspeakable" and "Unspeakable" in made.cause
    assert failure_of(antiphon.TransientFailure(Unspeakable())).message == "Unspeakable"  # type: ignore[arg-type]
    assert failure_of(Terse()).kind == failure_pb2.FAILURE_KIND_INVALID_INPUT


def test_what_caused_a_failure_is_told() -> None:
    try:
        raise antiphon.TransientFailure("later") from OSError("disk")
    except antiphon.TransientFailure as error:
        assert "OSError: disk" in failure_of(error).cause


@pytest.mark.parametrize(
    ("kind", "retryable", "becomes"),
    [
        (failure_pb2.FAILURE_KIND_TRANSIENT, True, failure_pb2.FAILURE_KIND_TRANSIENT),
        (failure_pb2.FAILURE_KIND_LOST, True, failure_pb2.FAILURE_KIND_TRANSIENT),
        (failure_pb2.FAILURE_KIND_TRANSIENT, False, failure_pb2.FAILURE_KIND_PERMANENT),
        (failure_pb2.FAILURE_KIND_INVALID_INPUT, False, failure_pb2.FAILURE_KIND_PERMANENT),
    ],
)
def test_a_failed_call_is_worth_a_retry_when_its_failure_was(
    kind: failure_pb2.FailureKind.ValueType, retryable: bool, becomes: failure_pb2.FailureKind.ValueType
) -> None:
    failure = failure_pb2.Failure(kind=kind, message="m", retryable=retryable, field="/a")
    made = failure_of(CallFailed("a.b@1", failure))
    assert (made.kind, made.retryable, made.field) == (becomes, retryable, "")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
def test_what_grpc_says_of_a_broken_connection_may_be_tried_again(code: grpc.StatusCode) -> None:
    error = _errors.from_rpc_error(rpc_error(code, "Internal error from Core", b""))
    assert type(error) is antiphon.Unavailable
