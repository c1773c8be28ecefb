"""Results of pure capabilities, to be used again for the same input: a bounded memory; the least recently used go.

A key says all that a result depends on: namespace, version and schemas of the capability, the clearance it declares,
and the input as it was handed on, with its labels. Who may have a result is no part of it: policy is asked each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from antiphon.v1.payload_pb2 import Label, Payload

from .candidates import Offered

MOST = 16_384
"""Results that are kept, and"""
MOST_BYTES = 64 * 1024 * 1024
"""the bytes of all of them."""


class Kept(NamedTuple):
    """A result: the serialised Payload with the labels of what it was made of, and the attempt that gave it. Times in
    microseconds since 1970."""

    output: bytes
    origin_attempt_id: str
    keep_time: int
    expire_time: int


class Results:
    """`hits`: uses so far; `misses`: tasks that asked and found nothing."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: dict[bytes, Kept] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: int, ttl: int) -> Kept | None:
        """What is kept under a key and is younger than `ttl` microseconds."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if now >= kept.expire_time:
            self.bytes -= len(kept.output)
            return None
        self._kept[key] = kept  # behind those that were used before it
        return kept if now - kept.keep_time < ttl else None

    def keep(self, key: bytes, kept: Kept) -> None:
        """Keeps a result in the place of an older one; of too many the least recently used go."""
        former = self._kept.pop(key, None)
        self.bytes += len(kept.output) - (len(former.output) if former is not None else 0)
        self._kept[key] = kept
        while len(self._kept) > self._most or self.bytes > self._most_bytes:
            oldest = next(iter(self._kept))
            self.bytes -= len(self._kept.pop(oldest).output)


def key_of(namespace: str, offered: Offered, output_schema: str, handed_on: bytes) -> bytes:
    """The key of a result of one version of a capability for an input, a serialised Payload, as it is handed on."""
    payload = Payload.FromString(handed_on)
    parts = [
        namespace,
        offered.label,
        offered.input_schema,
        output_schema,
        *sorted(offered.clearance),
        "",
        payload.media_type,
        payload.schema,
        *_labels(payload.labels),
    ]
    for field in sorted(payload.field_labels, key=lambda field: field.pointer):
        parts += ["", field.pointer, *_labels(field.labels)]
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:%b" % (len(encoded), encoded))
    digest.update(payload.blob.digest.encode() if payload.WhichOneof("content") == "blob" else b"=" + payload.inline)
    return digest.digest()


def _labels(labels: Iterable[Label]) -> list[str]:
    return sorted(f"{label.key}={label.value}" for label in labels)
