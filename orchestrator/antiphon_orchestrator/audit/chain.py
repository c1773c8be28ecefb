"""Writing a chain of audit records: content, hash, pages. What they are is said at `AuditRecord` in the contracts.

Hot path: two records a run, so content is put together as text. Every text goes through `_quote`, the escaping of
canonical JSON; names are in their order. The verifier is written apart from this and rebuilds the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from json import encoder

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import audit_pb2

START = bytes(32)
"""The hash before the first record."""

TEXT = 512
"""Characters of one text; what is longer is cut."""

HASH = 32

# Without the C accelerator the same function in Python.
_quote = encoder.encode_basestring


class Fact:
    """What one record says, without its place. `outcome`: a name of AuditOutcome without its prefix."""

    __slots__ = (
        "action",
        "decision_id",
        "details",
        "namespace",
        "outcome",
        "policy_epoch",
        "principal",
        "reason",
        "resource",
    )

    def __init__(
        self,
        action: str,
        namespace: str,
        principal: str,
        resource: str,
        outcome: str = "DONE",
        *,
        decision_id: str = "",
        policy_epoch: int = 0,
        reason: str = "",
        details: dict[str, str] | None = None,
    ) -> None:
        self.action = action
        self.namespace = namespace
        self.principal = principal
        self.resource = resource
        self.outcome = outcome
        self.decision_id = decision_id
        self.policy_epoch = policy_epoch
        self.reason = reason
        self.details = details or {}


class Chain:
    """The end of one chain as its only writer knows it, and what is not written yet.

    `add` is ahead of the store as the rest of a turn is; whoever is fenced drops the object.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._quoted = _quote(name)
        self.last_seq = 0
        self.last_hash = START
        self.trimmed_seq = 0
        self.trimmed_hash = b""

    def load(self, head: records.AuditHead) -> None:
        """Goes on from what the store says."""
        self.last_seq, self.last_hash = head.last_seq, head.last_hash or START
        self.trimmed_seq, self.trimmed_hash = head.trimmed_seq, head.trimmed_hash

    def head(self, writer: str) -> records.AuditHead:
        """What the store is to say."""
        return records.AuditHead(
            last_seq=self.last_seq,
            last_hash=self.last_hash,
            trimmed_seq=self.trimmed_seq,
            trimmed_hash=self.trimmed_hash,
            writer=writer,
        )

    def add(self, fact: Fact, time: int) -> bytes:
        """The record as it is stored, numbered and linked. `time`: microseconds since 1970."""
        self.last_seq += 1
        details = fact.details
        pairs = ",".join([f"{_quote(name)}:{_quote(details[name][:TEXT])}" for name in sorted(details)])
        content = (
            f'{{"action":{_quote(fact.action)},"chain":{self._quoted},"decision_id":{_quote(fact.decision_id)},'
            f'"details":{{{pairs}}},"namespace":{_quote(fact.namespace)},"outcome":{_quote(fact.outcome)},'
            f'"policy_epoch":{fact.policy_epoch},"principal":{_quote(fact.principal[:TEXT])},'
            f'"reason":{_quote(fact.reason[:TEXT])},"resource":{_quote(fact.resource[:TEXT])},'
            f'"seq":{self.last_seq},"time":{time}}}'
        ).encode()
        self.last_hash = follow(self.last_hash, content)
        return self.last_hash + content


def follow(prev_hash: bytes, content: bytes) -> bytes:
    """The hash of a record with this content behind a record with that hash."""
    return hashlib.sha256(prev_hash + hashlib.sha256(content).digest()).digest()


def signed_content(checkpoint: audit_pb2.AuditCheckpoint) -> bytes:
    """What the signature of a checkpoint is over."""
    heads = [
        {
            "chain": head.chain,
            "first_prev_hash": head.first_prev_hash,
            "first_seq": head.first_seq,
            "last_hash": head.last_hash,
            "last_seq": head.last_seq,
        }
        for head in checkpoint.heads
    ]
    statement = {"heads": heads, "time": checkpoint.time.ToMicroseconds()}
    return json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()


def page(raw: Sequence[bytes]) -> bytes:
    """Records of one commit, as their page in the store."""
    return records.AuditPage(records=raw).SerializeToString()
