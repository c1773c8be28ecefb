"""Errors on the wire: a status with one ErrorInfo, built from the registry in antiphon/v1/error.proto.

A call that is refused is an error; work that did not succeed is a failure, and never comes here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, cast

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.options.v1 import options_pb2
from antiphon.v1 import agent_service_pb2, error_pb2, failure_pb2
from google.rpc import error_details_pb2, status_pb2

log = logging.getLogger(__name__)

_PREFIX = "ERROR_REASON_"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS = "grpc-status-details-bin"
_DOMAIN = "antiphon.v1"


class Revoked(Exception):
    """This sidecar's certificate was revoked: nothing but a new token helps. The message is the orchestrator's."""


class Refused(Exception):
    """A call that is refused; the servicer's edge turns it into a status.

    `variables` fill the reason's message. A variable that the registry demands and that is not known here is empty.
    `violations` are pairs of field path and what is wrong with it.
    """

    def __init__(
        self,
        reason: error_pb2.ErrorReason.ValueType,
        message: str | None = None,
        *,
        violations: Sequence[tuple[str, str]] = (),
        **variables: str,
    ) -> None:
        spec = error_pb2.ErrorReason.DESCRIPTOR.values_by_number[reason].GetOptions().Extensions[options_pb2.error]
        self.reason = reason
        self.violations = violations
        self.remedy: int = spec.remedy
        self.variables = {**dict.fromkeys(spec.metadata, ""), **variables}
        self.code = _CODES[spec.code]
        super().__init__(message or spec.message.format(**self.variables))

    def status(self) -> status_pb2.Status:
        """The google.rpc.Status."""
        info = error_details_pb2.ErrorInfo(
            reason=error_pb2.ErrorReason.Name(self.reason).removeprefix(_PREFIX),
            domain=_DOMAIN,
            metadata=self.variables,
        )
        status = status_pb2.Status(code=self.code.value[0], message=str(self))
        status.details.add().Pack(info)
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for field, description in self.violations:
                bad.field_violations.add(field=field, description=description)
            status.details.add().Pack(bad)
        if self.remedy == options_pb2.REMEDY_RETRY:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(random.randint(500, 1_500))
            status.details.add().Pack(retry)
        return status


def refusal_of(agent: mesh.AgentRefusal) -> Refused:
    """The refusal of an agent that an orchestrator sent. A reason from a newer one counts as not granted."""
    known = agent.reason in error_pb2.ErrorReason.values() and agent.reason != error_pb2.ERROR_REASON_UNSPECIFIED
    reason = agent.reason if known else error_pb2.ERROR_REASON_NOT_GRANTED
    return Refused(reason, agent.message or None)


def refusal_of_call(request: agent_service_pb2.CallRequest, response: agent_service_pb2.CallResponse) -> Refused | None:
    """The refusal that an orchestrator's answer to a call means, or None when the call was made.

    On a stream a refused call is answered with a failure whose code is the reason; a unary caller gets an error.
    """
    reason = _REFUSED_CALLS.get(response.failure.code)
    if reason is None or response.WhichOneof("outcome") != "failure":
        return None
    spec = error_pb2.ErrorReason.DESCRIPTOR.values_by_number[reason].GetOptions().Extensions[options_pb2.error]
    known = {"request_id": request.call_id, "attempt_id": request.attempt_id}
    variables: Any = {key: value for key, value in known.items() if key in spec.metadata}
    return Refused(reason, response.failure.message or None, **variables)


_REFUSED_CALLS = {
    "REQUEST_ID_REUSED": error_pb2.ERROR_REASON_REQUEST_ID_REUSED,
    "CALL_TOO_DEEP": error_pb2.ERROR_REASON_CALL_TOO_DEEP,
    "CALL_REPEATED": error_pb2.ERROR_REASON_CALL_REPEATED,
    "TOO_MUCH_BENEATH": error_pb2.ERROR_REASON_TOO_MUCH_BENEATH,
    "ATTEMPT_NOT_FOUND": error_pb2.ERROR_REASON_ATTEMPT_NOT_FOUND,
    "ATTEMPT_TOKEN_INVALID": error_pb2.ERROR_REASON_ATTEMPT_TOKEN_INVALID,
}


def not_moved(failure: failure_pb2.Failure) -> Refused:
    """The refusal of a request whose value could be neither kept nor fetched; the failure's code is the reason."""
    known: dict[str, error_pb2.ErrorReason.ValueType] = dict(error_pb2.ErrorReason.items())
    reason = known.get(_PREFIX + failure.code, error_pb2.ERROR_REASON_PAYLOADS_UNAVAILABLE)
    return Refused(reason, failure.message)


class _RefuseUnknown(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """The last handler of a server: whatever no other one knows is refused as the registry says."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await abort(context, Refused(error_pb2.ERROR_REASON_METHOD_UNKNOWN, method=handler_call_details.method))

        # As a stream both ways: that fits every kind of call, and reads nothing before it refuses.
        return grpc.stream_stream_rpc_method_handler(refuse)


REFUSE_UNKNOWN = _RefuseUnknown()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """End a call with the status of `error`; anything but `Refused` is a bug, logged, and leaves as INTERNAL."""
    if not isinstance(error, Refused):
        trace_id = secrets.token_hex(16)
        log.error("internal error", exc_info=error, extra={"trace_id": trace_id})
        error = Refused(error_pb2.ERROR_REASON_INTERNAL, trace_id=trace_id)
    details = ((_DETAILS, error.status().SerializeToString()),)
    await context.abort(error.code, str(error), details)
    raise asyncio.CancelledError  # not reached: abort raises


def check_revoked(error: grpc.aio.AioRpcError) -> None:
    """Raise `Revoked` if that is why a call was refused."""
    if reason_of(error) == "CERTIFICATE_REVOKED":
        raise Revoked(error.details() or "the certificate was revoked") from error


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The ErrorReason of a refused call, without its prefix; empty when the status did not come from Antiphon."""
    metadata = dict(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
    details = metadata.get(_DETAILS)
    if isinstance(details, bytes):
        info = error_details_pb2.ErrorInfo()
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Unpack(info):
                return str(info.reason)
    return ""
