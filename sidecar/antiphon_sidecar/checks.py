"""Is what an agent says within the contract's limits? Asked before it travels.

An orchestrator refuses a whole stream for one message that breaks a rule, and that stream carries every agent of the
sidecar. So an agent's mistake is caught here and hurts that agent or that attempt alone. The limits are those of
protos/antiphon/v1; a full validator would cost more memory than the rest of the sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from antiphon.v1 import agent_service_pb2, capability_pb2, failure_pb2, payload_pb2, registry_pb2

INLINE_LIMIT = 65_536
_LARGEST_DESCRIPTION = 2 << 20  # so that it fits a message with something to spare
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CAPABILITY = re.compile(r"[a-z][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,7}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}")
_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KINDS = frozenset(failure_pb2.FailureKind.values())
_EFFECTS = frozenset(capability_pb2.Effect.values())


def mistakes_in_description(description: registry_pb2.AgentDescription) -> Iterator[str]:
    """Every rule an announcement breaks, as `field: what to do`."""
    if not _NAME.fullmatch(description.name):
        yield "name: use 1-63 lower-case letters, digits and inner dashes"
    if len(description.version) > 64 or len(description.runtime) > 64:
        yield "version, runtime: use at most 64 characters"
    if not 1 <= len(description.capabilities) <= 100:
        yield "capabilities: announce 1 to 100"
    if not 1 <= description.concurrency <= 10_000:
        yield "concurrency: use 1 to 10000"
    if description.prefetch > 10_000:
        yield "prefetch: use at most 10000"
    if len(description.labels) > 16:
        yield "labels: use at most 16"
    for key, value in description.labels.items():
        if not 1 <= len(key) <= 64 or len(value) > 256:
            yield f"labels[{key[:64]}]: use at most 64 characters for the key and 256 for the value"
    if description.ByteSize() > _LARGEST_DESCRIPTION:
        yield f"capabilities: keep names, descriptions and schemas together within {_LARGEST_DESCRIPTION} bytes"
    for capability in description.capabilities:
        yield from _mistakes_in_capability(capability)


def _mistakes_in_capability(capability: capability_pb2.Capability) -> Iterator[str]:
    where = f"capabilities[{capability.name[:80]}]"
    if not _CAPABILITY.fullmatch(capability.name):
        yield f"{where}.name: use a dotted lower-case name such as text.summarize"
    if not _VERSION.fullmatch(capability.version):
        yield f"{where}.version: use 1, 1.2 or 1.2.3"
    if len(capability.description) > 2_048:
        yield f"{where}.description: use at most 2048 characters"
    if len(capability.input_schema) > 32_768 or len(capability.output_schema) > 32_768:
        yield f"{where}: use schemas of at most 32768 characters"
    if capability.effect not in _EFFECTS:
        yield f"{where}.effect: unknown"
    if len(capability.clearance) > 64 or any(len(key) > 64 for key in capability.clearance):
        yield f"{where}.clearance: use at most 64 keys of at most 64 characters"
    if not 0 <= capability.cost <= 1e9:
        yield f"{where}.cost: use 0 to 1000000000"


def size_of(payload: payload_pb2.Payload, limit: int = INLINE_LIMIT) -> int:
    """About how many bytes a payload is on the wire. Raises `ValueError` with what is wrong with it."""
    size = len(payload.inline)
    if size > limit:
        raise ValueError(f"the value has {size} bytes; at most {limit} fit")
    if len(payload.media_type) > 128 or len(payload.origin_attempt_id) > 512 or len(payload.schema) > 512:
        raise ValueError("media_type, origin_attempt_id or schema is too long")
    if payload.labels or payload.field_labels or payload.HasField("blob"):
        size += _checked_extras(payload)
    return size


def _checked_extras(payload: payload_pb2.Payload) -> int:
    if payload.HasField("blob") and not _DIGEST.fullmatch(payload.blob.digest):
        raise ValueError("blob.digest is not 64 hexadecimal digits")
    if len(payload.field_labels) > 256 or any(
        len(field.pointer) > 512 or len(field.labels) > 16 for field in payload.field_labels
    ):
        raise ValueError("field_labels exceed 256 fields, 512 characters or 16 labels a field")
    labels = [*payload.labels, *(label for field in payload.field_labels for label in field.labels)]
    if len(payload.labels) > 64:
        raise ValueError("there are more than 64 labels")
    for label in labels:
        if not _LABEL.fullmatch(label.key) or len(label.value) > 256 or len(label.asserted_by) > 256:
            raise ValueError(f"label {label.key[:64]!r} is not one: use a lower-case key and a value of at most 256")
    return payload.ByteSize() - len(payload.inline)


def mistake_in_call(call: agent_service_pb2.CallRequest, limit: int) -> str | None:
    """The first rule a call breaks, as `field: what to do`."""
    if not 1 <= len(call.call_id) <= 64:
        return "call_id: use 1 to 64 characters"
    if not 3 <= len(call.capability) <= 576:
        return "capability: name a capability and versions, such as text.summarize@1"
    try:
        size_of(call.input, limit)
    except ValueError as error:
        return f"input: {error}"
    return None


def tidy_failure(failure: failure_pb2.Failure) -> int:
    """Cut texts that are too long, since they are for people; the size in bytes, at most."""
    if failure.kind not in _KINDS:
        failure.kind = failure_pb2.FAILURE_KIND_UNSPECIFIED
    for field, most in (("message", 4_096), ("cause", 16_384), ("code", 128), ("field", 1_024)):
        text = getattr(failure, field)
        if len(text) > most:
            setattr(failure, field, text[:most])
    return 4 * (len(failure.message) + len(failure.cause)) + 2_048


def failed(
    kind: failure_pb2.FailureKind.ValueType, message: str, *, code: str = "", retryable: bool = False
) -> failure_pb2.Failure:
    """A failure made by the sidecar."""
    return failure_pb2.Failure(kind=kind, message=message[:4_096], code=code, retryable=retryable)


def checked_result(result: agent_service_pb2.Result, limit: int) -> int:
    """Bring a result within the contract, in place; its size in bytes. A value that does not fit becomes a failure."""
    kind = result.WhichOneof("outcome")
    if kind == "failure":
        return tidy_failure(result.failure)
    if kind is None:
        return 0
    try:
        return size_of(result.output, limit)
    except ValueError as error:
        result.failure.CopyFrom(
            failed(failure_pb2.FAILURE_KIND_INVALID_OUTPUT, f"the agent's output is refused: {error}")
        )
        return 2_048
