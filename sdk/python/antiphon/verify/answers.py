"""What the verifier's shared context answers: nothing is there, and every write succeeds."""

from __future__ import annotations

import time

from antiphon.v1 import context_request_pb2, error_pb2

_REVISION = 1
_CLAIM = 3_600 * 10**9  # nanoseconds; no case lasts as long


def answer_of_context(request: context_request_pb2.ContextRequest) -> context_request_pb2.ContextResponse:
    """The answer to one request."""
    response = context_request_pb2.ContextResponse(request_id=request.request_id, attempt_id=request.attempt_id)
    match request.WhichOneof("kind"):
        case "put":
            response.put.revision = _REVISION
        case "delete":
            response.delete.SetInParent()
        case "list":
            response.list.SetInParent()
        case "acquire":
            held = response.acquire.claim
            held.claim.name, held.claim.fence = request.acquire.name, _REVISION
            held.attempt_id = request.attempt_id
            held.expire_time.FromNanoseconds(time.time_ns() + _CLAIM)
        case "renew":
            response.renew.claim.claim.CopyFrom(request.renew.claim)
            response.renew.claim.expire_time.FromNanoseconds(time.time_ns() + _CLAIM)
        case "release":
            response.release.SetInParent()
        case _:
            response.error.reason = error_pb2.ERROR_REASON_ENTRY_NOT_FOUND
            response.error.message = "the verifier's shared context is empty"
    return response
