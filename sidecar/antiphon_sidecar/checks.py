"""Is what an agent says within the contract's limits? Asked before it travels.

An orchestrator refuses a whole stream for one message that breaks a rule, and that stream carries every agent of the
sidecar. So an agent's mistake is caught here and hurts that agent or that attempt alone. The limits are those of
protos/antiphon/v1; a full validator would cost more memory than the rest of the sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from antiphon.partials import JSON_BYTES, TEXT_LENGTH
from antiphon.v1 import agent_service_pb2, capability_pb2, failure_pb2, payload_pb2, registry_pb2, run_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

INLINE_LIMIT = 65_536
GRAPH_LIMIT = 262_144
EXTRAS_LIMIT = 262_144
"""Bytes of all that comes with a value: labels, texts, and what a newer contract may add, which is passed on unread."""
_PIECE_BYTES = 32_768  # so that as many pieces as go into one message have room in it
_LARGEST_DESCRIPTION = 2 << 20  # so that it fits a message with something to spare
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CAPABILITY = re.compile(r"[a-z][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,7}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}")
_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DAY = 86_400
_LONGEST_DURATION = 315_576_000_000
_KINDS = frozenset(failure_pb2.FailureKind.values())


class Mistake(NamedTuple):
    """A rule that is broken: the path of the field, as the contract spells it, and what to do."""

    field: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.remedy}"


class UnfitPayload(ValueError):
    """A payload breaks a rule; `field` is the path of what is at fault, from the payload on."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def mistakes_in_description(description: registry_pb2.AgentDescription) -> Iterator[Mistake]:
    """Every rule an announcement breaks."""
    if not _NAME.fullmatch(description.name):
        yield Mistake("name", "use 1-63 lower-case letters, digits and inner dashes")
    for field in ("version", "runtime"):
        if len(getattr(description, field)) > 64:
            yield Mistake(field, "use at most 64 characters")
    if not 1 <= len(description.capabilities) <= 100:
        yield Mistake("capabilities", "announce 1 to 100")
    if not 1 <= description.concurrency <= 10_000:
        yield Mistake("concurrency", "use 1 to 10000")
    if description.prefetch > 10_000:
        yield Mistake("prefetch", "use at most 10000")
    if len(description.labels) > 16:
        yield Mistake("labels", "use at most 16")
    for key, value in description.labels.items():
        if not 1 <= len(key) <= 64 or len(value) > 256:
            yield Mistake(f'labels["{key[:256]}"]', "use at most 64 characters for the key and 256 for the value")
    if description.ByteSize() > _LARGEST_DESCRIPTION:
        yield Mistake(
            "capabilities", f"keep names, descriptions and schemas together within {_LARGEST_DESCRIPTION} bytes"
        )
    for index, capability in enumerate(description.capabilities):
        for field, remedy in _mistakes_in_capability(capability):
            yield Mistake(f"capabilities[{index}].{field}", remedy)


def _mistakes_in_capability(capability: capability_pb2.Capability) -> Iterator[tuple[str, str]]:
    # Effects are not looked at: one that is unknown here is something newer, and counts as the strictest.
    if not _CAPABILITY.fullmatch(capability.name):
        yield "name", f"{capability.name[:80]!r} is not a dotted lower-case name such as text.summarize"
    if not _VERSION.fullmatch(capability.version):
        yield "version", f"{capability.version[:80]!r} is not 1, 1.2 or 1.2.3"
    for field, most in (("description", 2_048), ("input_schema", 32_768), ("output_schema", 32_768)):
        if len(getattr(capability, field)) > most:
            yield field, f"use at most {most} characters"
    if len(capability.clearance) > 64:
        yield "clearance", "use at most 64 keys"
    for index, key in enumerate(capability.clearance):
        if len(key) > 64:
            yield f"clearance[{index}]", "use at most 64 characters"
    if not 0 <= capability.cost <= 1e9:
        yield "cost", "use 0 to 1000000000"
    latency = capability.expected_latency
    if not (is_duration(latency) and 0 <= latency.seconds * 1_000_000_000 + latency.nanos <= _DAY * 1_000_000_000):
        yield "expected_latency", "use 0 to a day"


def is_duration(duration: Duration) -> bool:
    """Whether it can be converted at all: an orchestrator refuses one that cannot."""
    seconds, nanos = duration.seconds, duration.nanos
    return abs(seconds) <= _LONGEST_DURATION and abs(nanos) < 1_000_000_000 and seconds * nanos >= 0


def check_payload(payload: payload_pb2.Payload, limit: int) -> None:
    """Raises `UnfitPayload` with what is wrong with a payload. What all of it takes, `check_size` looks at."""
    size = len(payload.inline)
    if size > limit:
        raise UnfitPayload("inline", f"the value has {size} bytes; at most {limit} fit")
    if len(payload.media_type) > 128:
        raise UnfitPayload("media_type", "media_type is longer than 128 characters")
    if len(payload.origin_attempt_id) > 512:
        raise UnfitPayload("origin_attempt_id", "origin_attempt_id is longer than 512 characters")
    if len(payload.schema) > 512:
        raise UnfitPayload("schema", "schema is longer than 512 characters")
    if payload.labels or payload.field_labels or payload.HasField("blob"):
        _check_extras(payload)


def check_size(message: Message, limit: int) -> int:
    """The size of a message in bytes. Raises `UnfitPayload` when that exceeds what its parts may have together."""
    size = message.ByteSize()
    if size > limit + EXTRAS_LIMIT:
        raise UnfitPayload("", f"all together are {size} bytes; at most {limit + EXTRAS_LIMIT} fit")
    return size


def _check_extras(payload: payload_pb2.Payload) -> None:
    if payload.HasField("blob") and not _DIGEST.fullmatch(payload.blob.digest):
        raise UnfitPayload("blob.digest", "blob.digest is not 64 hexadecimal digits")
    if len(payload.labels) > 64:
        raise UnfitPayload("labels", "there are more than 64 labels")
    if len(payload.field_labels) > 256:
        raise UnfitPayload("field_labels", "there are labels of more than 256 fields")
    _check_labels(payload.labels, "labels")
    for index, field in enumerate(payload.field_labels):
        where = f"field_labels[{index}]"
        if len(field.pointer) > 512:
            raise UnfitPayload(f"{where}.pointer", "a pointer is longer than 512 characters")
        if len(field.labels) > 16:
            raise UnfitPayload(f"{where}.labels", "a field has more than 16 labels")
        _check_labels(field.labels, f"{where}.labels")


def _check_labels(labels: Iterable[payload_pb2.Label], where: str) -> None:
    for index, label in enumerate(labels):
        if not _LABEL.fullmatch(label.key):
            raise UnfitPayload(f"{where}[{index}].key", f"label {label.key[:64]!r} is not one: use a lower-case key")
        for field in ("value", "asserted_by"):
            if len(getattr(label, field)) > 256:
                raise UnfitPayload(f"{where}[{index}].{field}", f"{field} of a label is longer than 256 characters")


def mistake_in_call(call: agent_service_pb2.CallRequest, limit: int) -> Mistake | None:
    """The first rule a call breaks."""
    if not 1 <= len(call.call_id) <= 64:
        return Mistake("call_id", "use 1 to 64 characters")
    if mistake := _mistake_in_token(call.attempt_id, call.attempt_token):
        return mistake
    if not 3 <= len(call.capability) <= 576:
        return Mistake("capability", "name a capability and versions, such as text.summarize@1")
    if not is_duration(call.timeout):
        return Mistake("timeout", "use a duration of at most 10,000 years")
    try:
        check_payload(call.input, limit)
    except UnfitPayload as error:
        return Mistake(f"input.{error.field}", str(error))
    try:
        check_size(call, limit)
    except UnfitPayload as error:
        return Mistake("input", str(error))
    return None


def mistake_in_progress(request: agent_service_pb2.ReportProgressRequest) -> Mistake | None:
    """The first rule a unary report of progress breaks; on a stream progress is tidied instead."""
    update = request.update
    if not request.HasField("update"):
        return Mistake("update", "is required")
    if mistake := _mistake_in_token(update.attempt_id, request.attempt_token):
        return mistake if mistake.field == "attempt_token" else Mistake(f"update.{mistake.field}", mistake.remedy)
    if not 0.0 <= update.progress.fraction <= 1.0:
        return Mistake("update.progress.fraction", "use 0 to 1")
    if len(update.progress.message) > 1_024:
        return Mistake("update.progress.message", "use at most 1024 characters")
    return None


def mistake_in_partial(request: agent_service_pb2.ReportPartialRequest) -> Mistake | None:
    """The first rule a unary piece of output breaks."""
    update = request.update
    if not request.HasField("update"):
        return Mistake("update", "is required")
    if mistake := _mistake_in_token(update.attempt_id, request.attempt_token):
        return mistake if mistake.field == "attempt_token" else Mistake(f"update.{mistake.field}", mistake.remedy)
    if not update.HasField("partial"):
        return Mistake("update.partial", "is required")
    if mistake := mistake_in_piece(update.partial):
        return Mistake(f"update.partial.{mistake.field}", mistake.remedy)
    return None


def mistake_in_piece(piece: run_pb2.PartialOutput) -> Mistake | None:
    """The first rule a piece of output breaks."""
    if len(piece.text) > TEXT_LENGTH:
        return Mistake("text", f"use at most {TEXT_LENGTH} characters")
    if len(piece.json) > JSON_BYTES:
        return Mistake("json", f"use at most {JSON_BYTES} bytes")
    if len(piece.withheld) > 4_096:
        return Mistake("withheld", "leave it out; the server sets it")
    if len(piece.labels) > 64:
        return Mistake("labels", "use at most 64")
    try:
        _check_labels(piece.labels, "labels")
    except UnfitPayload as error:
        return Mistake(error.field, str(error))
    if piece.ByteSize() > _PIECE_BYTES:
        return Mistake("labels", f"use at most {_PIECE_BYTES} bytes for a piece with all its labels")
    return None


def _mistake_in_token(attempt_id: str, token: bytes) -> Mistake | None:
    if not 1 <= len(attempt_id) <= 512:
        return Mistake("attempt_id", "use that of the assignment")
    if not 1 <= len(token) <= 256:
        return Mistake("attempt_token", "use that of the assignment")
    return None


def _tidy_failure(failure: failure_pb2.Failure) -> None:
    """Cut texts that are too long, since they are for people."""
    if failure.kind not in _KINDS:
        failure.kind = failure_pb2.FAILURE_KIND_UNSPECIFIED
    for field, most in (("message", 4_096), ("cause", 16_384), ("code", 128), ("field", 1_024)):
        text = getattr(failure, field)
        if len(text) > most:
            setattr(failure, field, text[:most])


def failed(
    kind: failure_pb2.FailureKind.ValueType, message: str, *, code: str = "", retryable: bool = False
) -> failure_pb2.Failure:
    """A failure made by the sidecar."""
    return failure_pb2.Failure(kind=kind, message=message[:4_096], code=code, retryable=retryable)


def _check_subgraph(given: agent_service_pb2.Subgraph, limit: int) -> None:
    """What is wrong inside of a graph the orchestrator says."""
    size = given.graph.ByteSize()
    if size > GRAPH_LIMIT:
        raise UnfitPayload("graph", f"the graph has {size} bytes; at most {GRAPH_LIMIT} fit")
    check_payload(given.input, limit)


def checked_result(result: agent_service_pb2.Result, limit: int) -> int:
    """Bring a result within the contract, in place; its size in bytes. A value that does not fit becomes a failure."""
    kind = result.WhichOneof("outcome")
    try:
        if kind == "failure":
            _tidy_failure(result.failure)
        elif kind == "subgraph":
            _check_subgraph(result.subgraph, limit)
        elif kind == "output":
            check_payload(result.output, limit)
        return check_size(result, limit + (GRAPH_LIMIT if kind == "subgraph" else 0))
    except UnfitPayload as error:
        if kind != "failure":
            refusal = f"the agent's output is refused: {error}"
            result.failure.CopyFrom(failed(failure_pb2.FAILURE_KIND_INVALID_OUTPUT, refusal))
        result.DiscardUnknownFields()
        return result.ByteSize()
