"""What passes between an agent and shared context: is a request within the contract, and what has the attempt read?

What an attempt reads goes into what it makes, and so does what its calls answer. So the sidecar, which the orchestrator
believes and which outlives it, keeps the entries an attempt has read, their labels and those of answers, adds the first
to each of its requests, and the labels to its output and to the input of its calls. An agent can add labels, but take
none away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from antiphon.v1 import (
    agent_service_pb2,
    context_pb2,
    context_request_pb2,
    context_service_pb2,
    error_pb2,
    failure_pb2,
    payload_pb2,
    run_pb2,
)
from google.protobuf.duration_pb2 import Duration

from .attempts import Attempt
from .checks import UnfitPayload, check_payload, check_size, failed, is_duration
from .errors import Refused

MOST_SOURCES = 64
MOST_LABELS = 64
TOO_MANY_LABELS = f"together with what was read before, the labels are more than {MOST_LABELS}"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9._/-]{0,255}", re.ASCII)
_YEAR = 31_622_400 * 1_000_000
_HOUR = 3_600 * 1_000_000


def mistake_in_ask(request: context_request_pb2.ContextRequest, limit: int) -> str | None:
    """The first rule a request breaks, as `field: what to do`."""
    kind = request.WhichOneof("kind")
    if kind is None:
        return "kind: ask for something"
    if not 1 <= len(request.request_id) <= 64:
        return "request_id: use 1 to 64 characters"
    asked = getattr(request, kind)
    names = asked.DESCRIPTOR.fields_by_name
    claim = asked.claim if "claim" in names and asked.HasField("claim") else None
    for scope in (asked.scope if "scope" in names else None, claim.scope if claim else None):
        if scope is not None and (len(scope.run_id) > 64 or len(scope.graph) > 511):
            return f"{kind}.scope: use at most 64 characters for a run and 511 for a graph"
    if "request_id" in names and not 1 <= len(asked.request_id) <= 64:
        return f"{kind}.request_id: use 1 to 64 characters"
    if claim and (claim.fence < 1 or not _KEY.fullmatch(claim.name)):
        return f"{kind}.claim: give the claim as it was acquired"
    if mistake := _RULES[kind](asked, limit):
        return mistake
    try:
        check_size(request, limit)
    except UnfitPayload as error:
        return f"{kind}: {error}"
    return None


def _key(request: Any, limit: int) -> str | None:
    name = request.name if hasattr(request, "name") else request.key
    return None if _KEY.fullmatch(name) else "key: use 1 to 255 letters, digits, dots, dashes, underscores and slashes"


def _put(request: context_service_pb2.PutEntryRequest, limit: int) -> str | None:
    if not request.HasField("value"):
        return "value: is required"
    try:
        check_payload(request.value, limit)
    except UnfitPayload as error:
        return f"value: {error}"
    if request.HasField("ttl") and not 1_000 <= _microseconds(request.ttl) <= _YEAR:
        return "ttl: use 1 ms to a year"
    return _delete(request, limit)


def _delete(
    request: context_service_pb2.PutEntryRequest | context_service_pb2.DeleteEntryRequest, limit: int
) -> str | None:
    return "expected_revision: use 0 or more" if request.expected_revision < 0 else _key(request, limit)


def _list(request: context_service_pb2.ListEntriesRequest, limit: int) -> str | None:
    if not 0 <= request.page_size <= 500 or len(request.page_token) > 1_024:
        return "page_size: use 0 to 500, and the token of the page before"
    return _prefix(request)


def _watch(request: context_service_pb2.WatchEntriesRequest, limit: int) -> str | None:
    return "from_revision: use 0 or more" if request.from_revision < 0 else _prefix(request)


def _prefix(request: context_service_pb2.ListEntriesRequest | context_service_pb2.WatchEntriesRequest) -> str | None:
    return None if _PREFIX.fullmatch(request.prefix) else "prefix: use at most 255 of the characters of keys"


def _acquire(request: context_service_pb2.AcquireClaimRequest, limit: int) -> str | None:
    return _ttl(request) or _key(request, limit)


def _renew(request: context_service_pb2.RenewClaimRequest, limit: int) -> str | None:
    return _ttl(request) or _claimed(request, limit)


def _claimed(
    request: context_service_pb2.RenewClaimRequest | context_service_pb2.ReleaseClaimRequest, limit: int
) -> str | None:
    return None if request.HasField("claim") else "claim: is required"


def _ttl(request: context_service_pb2.AcquireClaimRequest | context_service_pb2.RenewClaimRequest) -> str | None:
    given = request.HasField("ttl")
    return "ttl: use 1 s to an hour" if given and not 1_000_000 <= _microseconds(request.ttl) <= _HOUR else None


def _microseconds(duration: Duration) -> float:
    # Not its own conversion, which raises for what no duration may be.
    return duration.seconds * 1e6 + duration.nanos / 1e3 if is_duration(duration) else -1


_RULES: dict[str, Callable[[Any, int], str | None]] = {
    "get": _key,
    "put": _put,
    "delete": _delete,
    "list": _list,
    "watch": _watch,
    "lineage": _key,
    "acquire": _acquire,
    "renew": _renew,
    "release": _claimed,
}


def refused(request: context_request_pb2.ContextRequest, refusal: Refused) -> context_request_pb2.ContextResponse:
    """The answer to a request that goes no further."""
    error = error_pb2.Error(reason=refusal.reason, message=str(refusal), metadata=refusal.variables)
    for field, message in refusal.violations:
        error.violations.add(field=field, message=message)
    response = context_request_pb2.ContextResponse(
        request_id=request.request_id[:64], attempt_id=request.attempt_id[:512]
    )
    response.error.CopyFrom(error)
    return response


def note_reads(attempt: Attempt, response: context_request_pb2.ContextResponse) -> bool:
    """Keeps what an attempt has read by this answer. False: there are more labels than can be kept, so it must not
    have it, and nothing of it is kept."""
    kind = response.WhichOneof("outcome")
    entries: list[context_pb2.Entry] = []
    if kind == "get":
        entries = [response.get.entry]
    elif kind == "list":
        entries = list(response.list.entries)
    elif kind == "watch":
        entries = [event.put for event in response.watch.events if event.HasField("put")]
    if not entries:
        return True
    reads = _reads_so_far(attempt)
    for entry in entries:
        join(reads.labels, _labels_of(entry.value))
        reference = context_pb2.EntryReference(scope=entry.scope, key=entry.key, revision=entry.revision)
        if reference not in reads.entries:
            if len(reads.entries) < MOST_SOURCES:
                reads.entries.append(reference)
            else:
                reads.more += 1
    return _keep(attempt, reads)


def note_answer(attempt: Attempt, response: agent_service_pb2.CallResponse) -> agent_service_pb2.CallResponse:
    """Keeps the labels of what a call has answered an attempt. Returns what it is given: a failure instead, when there
    are more labels than can be kept."""
    labels = _labels_of(response.output)
    if not labels or _note(attempt, labels):
        return response
    failure = failed(failure_pb2.FAILURE_KIND_POLICY, TOO_MANY_LABELS)
    return agent_service_pb2.CallResponse(call_id=response.call_id, attempt_id=response.attempt_id, failure=failure)


def note_piece(attempt: Attempt, piece: run_pb2.PartialOutput) -> bool:
    """The same of a piece of what a call is making. False: it must not have the piece."""
    return not piece.labels or _note(attempt, piece.labels)


def _note(attempt: Attempt, labels: Iterable[payload_pb2.Label]) -> bool:
    reads = _reads_so_far(attempt)
    join(reads.labels, labels)
    return _keep(attempt, reads)


def _reads_so_far(attempt: Attempt) -> context_request_pb2.ContextReads:
    """A copy of what an attempt has read."""
    reads = context_request_pb2.ContextReads()
    if attempt.reads is not None:
        reads.CopyFrom(attempt.reads)
    return reads


def _keep(attempt: Attempt, reads: context_request_pb2.ContextReads) -> bool:
    if len(reads.labels) > MOST_LABELS:
        return False
    attempt.reads = reads
    return True


def _labels_of(value: payload_pb2.Payload) -> list[payload_pb2.Label]:
    """Those of its parts included."""
    return [*value.labels, *(label for part in value.field_labels for label in part.labels)]


def inherit(attempt: Attempt | None, payload: payload_pb2.Payload | run_pb2.PartialOutput) -> None:
    """Adds the labels of all that an attempt has read, or was answered, to what it made."""
    if attempt is not None and attempt.reads is not None and attempt.reads.labels:
        join(payload.labels, attempt.reads.labels)


def join(into: Any, labels: Iterable[payload_pb2.Label]) -> None:
    """Adds the labels that are not there."""
    present = {(label.key, label.value) for label in into}
    for label in labels:
        if (label.key, label.value) not in present:
            present.add((label.key, label.value))
            into.append(label)
