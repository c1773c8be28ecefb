"""Verifying audit records: pure functions over records and what a checkpoint says of their chain.

The rules of content and hash stand at `AuditRecord` in the contracts. This is written from them and shares no code
with what writes the chain. Nothing here trusts a record's own `digest` where there is content to compute it from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Any

from .v1.audit_pb2 import AuditCheckpoint, AuditHead, AuditOutcome, AuditRecord
from .v1.audit_service_pb2 import GetProofResponse

START = "0" * 64
"""The hash before the first record of a chain."""

_PREFIX = "AUDIT_OUTCOME_"
_MOST = 100


@unique
class Tampering(StrEnum):
    """What was done to a chain."""

    EDITED = "EDITED"  # a record says something else than when it was written, or stands in for another
    DELETED = "DELETED"  # records are missing in the middle
    INSERTED = "INSERTED"  # a record is there that was never written
    REORDERED = "REORDERED"  # a record is not in its place
    TRUNCATED = "TRUNCATED"  # records at the end are missing
    REWRITTEN = "REWRITTEN"  # the chain is whole and not the one that was: it has another hash
    FORGED = "FORGED"  # a checkpoint is not signed by an orchestrator of the mesh
    RUN_CHANGED = "RUN_CHANGED"  # the history of a run is not the one that was recorded


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One breach and its place: the number of the record, or of the first of those that are missing."""

    kind: Tampering
    chain: str
    seq: int
    message: str

    def __str__(self) -> str:
        return f"{self.chain}/{self.seq}: {self.kind}: {self.message}"


def canonical(value: Any) -> bytes:
    """JSON of RFC 8785, for texts, whole numbers below 2**53, lists and objects with ASCII names."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def content_of(record: AuditRecord) -> bytes:
    """What a record's digest is computed from. Raises `ValueError` for one whose fields no writer could have set."""
    return canonical(
        {
            "action": record.action,
            "chain": record.chain,
            "decision_id": record.decision_id,
            "details": dict(record.details),
            "namespace": record.namespace,
            "outcome": AuditOutcome.Name(record.outcome).removeprefix(_PREFIX),
            "policy_epoch": record.policy_epoch,
            "principal": record.principal,
            "reason": record.reason,
            "resource": record.resource,
            "seq": record.seq,
            "time": record.time.ToMicroseconds(),
        }
    )


def digest_of(record: AuditRecord) -> str:
    """The digest of what a record says; of a hidden one, what it says it is."""
    return record.digest if record.hidden else hashlib.sha256(content_of(record)).hexdigest()


def link(prev_hash: str, digest: str) -> str:
    """The hash of the chain after one more record. Raises `ValueError` for what is not hexadecimal."""
    return hashlib.sha256(bytes.fromhex(prev_hash) + bytes.fromhex(digest)).hexdigest()


class ChainVerifier:
    """Takes the records of one chain in the order in which they stand; `end` says what was found.

    `head` says where the chain begins, and where it must end. After a breach it goes on from what is there, so that one
    breach is a finding or two; at most 100 are kept, since a chain that is not one at all would give a finding each.
    """

    def __init__(self, head: AuditHead) -> None:
        self._head = head
        self._expected = head.first_seq
        self._before = self._hash = head.first_prev_hash
        self._known = True
        self._begun = False
        # First and last number of what has not come (yet), in order.
        self._gaps: list[tuple[int, int]] = []
        self._findings: list[AuditFinding] = []
        self.removed: tuple[int, int] | None = None
        """First and last number of what was removed by age since `head`, by the word of later checkpoints."""

    def begin_later(self, later: AuditHead) -> bool:
        """Takes the word of a checkpoint that was made since: what age has removed is not expected, and the rest
        follows from it. False, and without effect, where it removes nothing, and once a record is here: age leaves no
        gaps."""
        head = self._head
        if self._begun or later.first_seq <= self._expected or self._expected > head.last_seq:
            return False
        self._expected = min(later.first_seq, head.last_seq + 1)
        self.removed = head.first_seq, self._expected - 1
        # A chain that begins even later has nothing left to follow from anything.
        self._before = self._hash = later.first_prev_hash if later.first_seq == self._expected else head.last_hash
        return True

    def take(self, record: AuditRecord) -> None:
        """Looks at the next record."""
        self._begun = True
        if record.chain != self._head.chain:
            self._found(Tampering.INSERTED, record.seq, f"a record of chain {record.chain!r} stands here")
        elif record.seq > self._head.last_seq:
            self._found(Tampering.INSERTED, record.seq, f"the checkpoint ends at {self._head.last_seq}")
        elif record.seq < self._expected:
            self._take_late(record)
        else:
            if record.seq > self._expected:
                self._gaps.append((self._expected, record.seq - 1))
                self._known = False
            self._check(record)
            self._before, self._hash, self._known = self._hash, record.hash, True
            self._expected = record.seq + 1

    def _take_late(self, record: AuditRecord) -> None:
        if self._fills_gap(record.seq):
            self._found(Tampering.REORDERED, record.seq, f"it stands behind record {self._expected - 1}")
        elif record.seq == self._expected - 1 and self._replaces_last(record):
            # The one that came with this number before is the stranger.
            self._findings = [found for found in self._findings if not _edited(found, record.seq)]
            self._found(Tampering.INSERTED, record.seq, "a record that was never written stands before this one")
            self._hash = record.hash
        else:
            self._found(Tampering.INSERTED, record.seq, "a second record has this number")

    def _replaces_last(self, record: AuditRecord) -> bool:
        """Whether this one follows where the last one, of the same number, was another or did not."""
        doubtful = record.hash != self._hash or any(_edited(found, record.seq) for found in self._findings)
        return doubtful and self._follows(record, self._before)

    def _fills_gap(self, seq: int) -> bool:
        for place, (first, last) in enumerate(self._gaps[-_MOST:], max(0, len(self._gaps) - _MOST)):
            if first <= seq <= last:
                self._gaps[place : place + 1] = [gap for gap in ((first, seq - 1), (seq + 1, last)) if gap[0] <= gap[1]]
                return True
        return False

    def _check(self, record: AuditRecord) -> None:
        """Its content against its digest, and its hash against the one before."""
        if not self._sound(record):
            self._found(Tampering.EDITED, record.seq, "it does not say what it said when it was written")
        elif self._known and not self._follows(record, self._hash):
            what = f"its hash does not follow from record {record.seq - 1}; this one or that one was replaced"
            self._found(Tampering.EDITED, record.seq, what)

    def _sound(self, record: AuditRecord) -> bool:
        try:
            return digest_of(record) == record.digest
        except ValueError:
            return False

    def _follows(self, record: AuditRecord, prev_hash: str) -> bool:
        try:
            return link(prev_hash, digest_of(record)) == record.hash
        except ValueError:
            return False

    def end(self) -> list[AuditFinding]:
        """All findings, once every record was taken."""
        head = self._head
        for first, last in self._gaps[:_MOST]:
            text = "it is missing" if first == last else f"it and all up to {last} are missing"
            self._found(Tampering.DELETED, first, text)
        if self._expected <= head.last_seq:
            count = head.last_seq - self._expected + 1
            text = f"the last {count} of {head.last_seq} records are missing"
            self._found(Tampering.TRUNCATED, self._expected, text)
        elif self._hash != head.last_hash and not self._findings:
            self._found(Tampering.REWRITTEN, head.last_seq, "its hash is not that of the checkpoint")
        return self._findings

    def _found(self, kind: Tampering, seq: int, message: str) -> None:
        if len(self._findings) < _MOST:
            self._findings.append(AuditFinding(kind, self._head.chain, seq, message))


def _edited(finding: AuditFinding, seq: int) -> bool:
    return finding.kind is Tampering.EDITED and finding.seq == seq


def verify_audit(records: Iterable[AuditRecord], head: AuditHead, later: AuditHead | None = None) -> list[AuditFinding]:
    """Everything that is wrong with the records of one chain; nothing when they are what was written.

    `head` is that of a checkpoint made before they were read, `later` that of one which the service made after that:
    what age has removed by then is not looked at, and all from `later.first_seq` on must be there. Give no other one:
    what it says was removed is not missed.
    """
    verifier = ChainVerifier(head)
    first = 0
    if later is not None and verifier.begin_later(later):
        first = later.first_seq
    for record in records:
        if record.seq >= first:
            verifier.take(record)
    return verifier.end()


def compare_checkpoints(
    former: AuditCheckpoint, present: AuditCheckpoint, hashes: Mapping[tuple[str, int], str]
) -> list[AuditFinding]:
    """What has happened since a checkpoint that was kept elsewhere.

    `hashes`: by chain and number, the hashes of records that were verified against `present`; those of the last records
    of `former` are looked for. A chain that was trimmed past the former checkpoint cannot be compared with it, and that
    is a finding as well.
    """
    findings = []
    now = {head.chain: head for head in present.heads}
    for old in former.heads:
        head = now.get(old.chain)
        if old.last_seq == 0:
            continue
        if head is None or head.last_seq < old.last_seq:
            ends = head.last_seq if head is not None else 0
            text = f"the chain ended at {old.last_seq} when the checkpoint was made, and at {ends} now"
            findings.append(AuditFinding(Tampering.TRUNCATED, old.chain, ends + 1, text))
            continue
        there = head.first_prev_hash if head.first_seq == old.last_seq + 1 else hashes.get((old.chain, old.last_seq))
        if there is None:
            text = "the checkpoint is older than what was kept; compare with a later one"
            findings.append(AuditFinding(Tampering.DELETED, old.chain, old.last_seq, text))
        elif there != old.last_hash:
            text = "its hash is not that of the earlier checkpoint"
            findings.append(AuditFinding(Tampering.REWRITTEN, old.chain, old.last_seq, text))
    return findings


def verify_audit_proof(proof: GetProofResponse) -> str:
    """The hash that a proof leads to, to be compared with that of a checkpoint at `proof.last_seq`.

    Raises `ValueError` for a proof that contradicts itself.
    """
    record = proof.record
    digest = digest_of(record)
    reached = link(proof.prev_hash, digest)
    if digest != record.digest or reached != record.hash:
        raise ValueError(f"record {record.seq} of chain {record.chain} is not what its hash stands for")
    for following in proof.digests:
        reached = link(reached, following)
    if proof.last_seq != record.seq + len(proof.digests) or reached != proof.last_hash:
        raise ValueError(f"the proof of record {record.seq} does not lead to record {proof.last_seq}")
    return reached


def signed_content(checkpoint: AuditCheckpoint) -> bytes:
    """The bytes under a checkpoint's signature."""
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
    return canonical({"heads": heads, "time": checkpoint.time.ToMicroseconds()})
