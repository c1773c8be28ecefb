"""Errors: a call was refused. (Work that ran and did not succeed is a failure: `_failures`.)

    AntiphonError
    ├── RequestError      FIX_REQUEST: the request is wrong and stays wrong; change it
    │   ├── SetupError    this process lacks what it needs to connect; never on the wire
    │   └── RunNotFound, GraphInvalid, InputInvalid, …
    ├── RetryableError    RETRY: send the same again after `retry_after`
    │   ├── Unavailable   no server could be reached; never on the wire
    │   └── Overloaded, RateLimited, DeadlineExceeded, …
    ├── StaleError        REREAD: the caller's view is old; read again, then decide
    │   └── CursorInvalid, StreamReplaced, …
    └── OperatorError     ASK_OPERATOR: only a person with other rights can help
        └── AccessDenied, PolicyDenied, NotGranted, …

There is one class per reason of the registry (`antiphon.v1.ErrorReason`), listed in `_reasons`. Its reason, code,
remedy and docs come from the generated descriptor, and a class whose base contradicts the registry cannot be imported.
A reason of a newer server becomes `RetryableError` when it says when to retry, else plain `AntiphonError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import cast

import grpc

from antiphon.options.v1 import options_pb2
from antiphon.v1 import error_pb2

_PREFIX = "ERROR_REASON_"
_DOMAIN = "antiphon.v1"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


class Remedy(StrEnum):
    """What code should do about an error."""

    FIX_REQUEST = "FIX_REQUEST"
    RETRY = "RETRY"
    REREAD = "REREAD"
    ASK_OPERATOR = "ASK_OPERATOR"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault: its path, such as `graph.tasks[3].when`, and what is wrong with it."""

    field: str
    message: str


class AntiphonError(Exception):
    """A call was refused. `str()` is one line for people; the attributes are for code."""

    reason: str = ""
    """Name of the reason in the registry, such as RUN_NOT_FOUND; empty when no server of ours said it."""
    remedy: Remedy | None = None
    """What to do; None when the reason is unknown here."""
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The gRPC status code."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.code = code or type(self).code
        self.metadata: dict[str, str] = dict(metadata or {})
        """The variables of the message."""
        self.violations = tuple(violations)
        """The fields at fault, for errors about content."""
        self.retry_after = retry_after
        """How long to wait before sending the same again; only with the remedy RETRY, and not even always then."""

    def __str__(self) -> str:
        more = (f"{one.field}: {one.message}" for one in self.violations)
        return "; ".join((self.message, *(text for text in more if text not in self.message)))


class RequestError(AntiphonError):
    """The request is wrong and stays wrong: change it."""

    remedy = Remedy.FIX_REQUEST


class RetryableError(AntiphonError):
    """Send the same again, after `retry_after` where given."""

    remedy = Remedy.RETRY


class StaleError(AntiphonError):
    """The caller's view is old: read again, then decide."""

    remedy = Remedy.REREAD


class OperatorError(AntiphonError):
    """Only a person with other rights can help."""

    remedy = Remedy.ASK_OPERATOR


class SetupError(RequestError):
    """This process lacks what it needs to connect: a socket, a profile, a certificate. The message names the remedy."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unavailable(RetryableError):
    """No server could be reached, or the connection broke before the answer. The call may have had its effect."""

    code = grpc.StatusCode.UNAVAILABLE


_BY_REMEDY: dict[int, type[AntiphonError]] = {
    options_pb2.REMEDY_FIX_REQUEST: RequestError,
    options_pb2.REMEDY_RETRY: RetryableError,
    options_pb2.REMEDY_REREAD: StaleError,
    options_pb2.REMEDY_ASK_OPERATOR: OperatorError,
}
_BY_REASON: dict[str, type[AntiphonError]] = {}


class Reason:
    """Mixed into the class of one reason: takes everything from the registry's row with the class's name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        reason = _WORD.sub("_", cls.__name__).upper()
        value = error_pb2.ErrorReason.DESCRIPTOR.values_by_name[_PREFIX + reason]
        spec = value.GetOptions().Extensions[options_pb2.error]
        if not issubclass(cls, AntiphonError) or not issubclass(cls, _BY_REMEDY[spec.remedy]):
            raise TypeError(f"{cls.__name__} must derive from {_BY_REMEDY[spec.remedy].__name__}")
        cls.reason, cls.code = reason, _CODES[spec.code]
        cls.__doc__ = f"{spec.message}\n\nMetadata: {', '.join(spec.metadata) or 'none'}."
        _BY_REASON[reason] = cls


def error_of(
    reason: str,
    message: str,
    *,
    code: grpc.StatusCode | None = None,
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[FieldViolation] = (),
    retry_after: timedelta | None = None,
) -> AntiphonError:
    """The exception for a reason of the registry; unknown reasons keep all they came with."""
    from . import _reasons  # noqa: F401  fills the table; it imports this module, hence not at the top

    kind = _BY_REASON.get(reason)
    if kind is None:
        kind = RetryableError if retry_after is not None else AntiphonError
    return kind(message, reason=reason, code=code, metadata=metadata, violations=violations, retry_after=retry_after)


def from_error_message(error: error_pb2.Error) -> AntiphonError:
    """The exception for an `antiphon.v1.Error`, as streams answer item by item."""
    try:
        reason = error_pb2.ErrorReason.Name(error.reason).removeprefix(_PREFIX)
    except ValueError:
        reason = str(error.reason)  # a newer server's
    return error_of(
        reason,
        error.message,
        metadata=error.metadata,
        violations=[FieldViolation(one.field, one.message) for one in error.violations],
        retry_after=error.retry_delay.ToTimedelta() if error.HasField("retry_delay") else None,
    )


# What gRPC itself says of a connection that broke: INTERNAL is "Internal error from Core", seen when the server is
# killed while a stream is written. A server of ours never sends one of these without its ErrorInfo.
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})


def from_rpc_error(error: grpc.aio.AioRpcError) -> AntiphonError:
    """The exception for a failed call: by its ErrorInfo, or by its code when no server of ours answered."""
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    code, text = error.code(), error.details() or ""
    trailing = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    details = next((value for key, value in trailing if key == "grpc-status-details-bin"), b"")
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after: timedelta | None = None
    try:
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(bad.DESCRIPTOR):
                detail.Unpack(bad)
            elif detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
                retry_after = retry.retry_delay.ToTimedelta()
    except (DecodeError, ValueError):
        info.Clear()  # somebody else's bytes under gRPC's name: judge by the code alone
    if info.domain == _DOMAIN:
        violations = [FieldViolation(one.field, one.description) for one in bad.field_violations]
        return error_of(
            info.reason, text, code=code, metadata=info.metadata, violations=violations, retry_after=retry_after
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return error_of("DEADLINE_EXCEEDED", "the deadline of the call passed; no answer came", code=code)
    if code in _BROKEN:
        return Unavailable(f"no answer from the server: {text or code.name.lower()}", code=code)
    return AntiphonError(f"the call failed with {code.name}: {text}", code=code)
