"""Labels of serialised payloads, and the keys of requests and of work."""

from __future__ import annotations

import hashlib

from antiphon.v1 import payload_pb2


def inherit_labels(source: bytes, target: bytes) -> bytes:
    """`target` with the labels of `source` added: what was made of a value is as sensitive as the value."""
    message = payload_pb2.Payload.FromString(source)
    labels = [*message.labels, *(label for f in message.field_labels for label in f.labels)]
    result = payload_pb2.Payload.FromString(target)
    present = {(label.key, label.value) for label in result.labels}
    for label in labels:
        if (label.key, label.value) not in present:
            present.add((label.key, label.value))
            result.labels.append(label)
    return result.SerializeToString()


def assert_labels(payload: payload_pb2.Payload, principal: str) -> None:
    """Sets who says so on every label, those of parts included: nobody speaks for another."""
    for label in payload.labels:
        label.asserted_by = principal
    for part in payload.field_labels:
        for label in part.labels:
            label.asserted_by = principal


def work_key(name: str, payload: bytes) -> bytes:
    """16 bytes that stand for a capability or graph at work on an input, whatever its labels."""
    message = payload_pb2.Payload.FromString(payload)
    content = message.blob.digest.encode() if message.HasField("blob") else message.inline
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    digest.update(b"\0" + content)
    return digest.digest()


def request_key(principal: str, request_id: str) -> bytes:
    """16 bytes that stand for a caller's request id."""
    return hashlib.blake2b(f"{principal}\0{request_id}".encode(), digest_size=16).digest()
