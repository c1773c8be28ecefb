"""The rules of shared context: what is visible, what conflicts, what a write is made from. Pure.

- An entry that has expired is not there, whether it was collected yet or not: it has revision 0 for everybody.
- A write that expects a revision is made only if the entry has it; one that names a claim only while the claim is its
  writer's. Both are compared again by the transaction itself, so that nothing comes in between.
- What an attempt writes carries the labels of its input and of every entry it has read, beside its own.
- A claim's fence is the revision of the store that gave it. It grows, and a later holder has a greater one.

Times are microseconds since 1970; 0 means never.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import context_pb2, context_request_pb2, payload_pb2

from ..shards.payloads import assert_labels
from ..store import keys
from ..store.port import KeyValue

MOST_SOURCES = 64
MOST_LABELS = 64


@dataclass(frozen=True, slots=True)
class Quota:
    """What one namespace may hold. `bytes` counts values kept in the store, with keys and provenance; a value by
    reference counts as its reference."""

    entries: int = 10_000
    """Most entries at once."""
    bytes: int = 64 << 20
    """Most bytes of all entries together."""
    claims: int = 1_000
    """Most claims that are held at once."""


@dataclass(frozen=True, slots=True)
class Standing:
    """On whose behalf something is asked. For a client the fields from `agent` on are empty.

    `run_id` is the attempt's own run, `root_run_id` the outermost one whose calls led to it, `graph` that one's graph.
    `incarnation` is that of the sidecar that the attempt is out to.
    `labels` are those of the attempt's input.
    """

    principal: str
    principal_kind: str
    namespace: str
    agent: str = ""
    attempt_id: str = ""
    task_id: str = ""
    run_id: str = ""
    root_run_id: str = ""
    graph: str = ""
    input_digest: str = ""
    incarnation: str = ""
    labels: tuple[payload_pb2.Label, ...] = ()
    reads: context_request_pb2.ContextReads = field(default_factory=context_request_pb2.ContextReads)

    @property
    def caller(self) -> str:
        """Within which a request id is unique: a task, whatever the attempt; its idempotency key is thus one write."""
        return self.attempt_id.rpartition("/")[0] or self.principal


class ScopeUnnamed(Exception):
    """Only a task can leave the name of its run or graph out. `field` is the one to fill in."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Scope(NamedTuple):
    """`kind` is namespace, run or graph; `name` that of the run or graph."""

    kind: str
    name: str = ""

    @classmethod
    def of(cls, scope: context_pb2.ContextScope, who: Standing) -> Scope:
        """Raises ScopeUnnamed."""
        if (named := cls.named(scope)) is not None:
            return named
        kind = scope.WhichOneof("kind") or ""
        own = who.root_run_id if kind == "run_id" else who.graph
        if not own:
            raise ScopeUnnamed(kind)
        return cls("run" if kind == "run_id" else "graph", own)

    @classmethod
    def named(cls, scope: context_pb2.ContextScope) -> Scope | None:
        """The scope, if it says which; what a sidecar tells of reads may not."""
        kind = scope.WhichOneof("kind")
        if kind is None:
            return cls("namespace")
        name = getattr(scope, kind)
        return cls("run" if kind == "run_id" else "graph", name) if name else None

    @classmethod
    def read(cls, text: str) -> Scope:
        """The scope that `text` spells in a key of the store."""
        kind, _, name = text.partition(":")
        return cls(kind, name)

    @property
    def text(self) -> str:
        """As it stands in a key of the store, and in messages."""
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def resource(self) -> str:
        """As policy sees it: runs are not told apart."""
        return self.kind if self.kind == "run" else self.text

    def message(self) -> context_pb2.ContextScope:
        """As it travels."""
        scope = context_pb2.ContextScope()
        if self.kind == "run":
            scope.run_id = self.name
        elif self.kind == "graph":
            scope.graph = self.name
        return scope

    def own(self, who: Standing) -> bool:
        """False when a task reaches for another run or graph than it works for."""
        if not who.attempt_id or self.kind == "namespace":
            return True
        return self.name in ((who.run_id, who.root_run_id) if self.kind == "run" else (who.graph,))


class Place(NamedTuple):
    """Where an entry stands."""

    namespace: str
    scope: Scope
    key: str

    @classmethod
    def read(cls, key: bytes) -> Place:
        """The place that a key of the store spells."""
        _, namespace, scope, name = keys.parts(key)
        return cls(namespace, Scope.read(scope), name)

    @property
    def store_key(self) -> bytes:
        return keys.context(self.namespace, self.scope.text, self.key)

    def reference(self, revision: int) -> context_pb2.EntryReference:
        return context_pb2.EntryReference(scope=self.scope.message(), key=self.key, revision=revision)


def visible(expire_time: int, now: int) -> bool:
    """Whether what expires then is there now."""
    return not expire_time or now < expire_time


def conflict(expected: int | None, revision: int) -> bool:
    """Whether an entry of this revision (0: not there) is not the one that was expected."""
    return expected is not None and expected != revision


def label_keys(payload: payload_pb2.Payload) -> frozenset[str]:
    """The labels of a value and its parts, as policy sees them."""
    names = {label.key for label in payload.labels}
    return frozenset(names.union(label.key for part in payload.field_labels for label in part.labels))


def labelled(value: payload_pb2.Payload, who: Standing) -> payload_pb2.Payload | None:
    """The value as it is kept: its labels asserted by the writer, with those of all that the writer knew.

    None when there would be more than a payload can carry: leaving one out would say less than is known.
    """
    kept = payload_pb2.Payload()
    kept.CopyFrom(value)
    kept.origin_attempt_id = who.attempt_id
    assert_labels(kept, who.principal)
    join_labels(kept, (*who.labels, *who.reads.labels))
    return kept if len(kept.labels) <= MOST_LABELS else None


def join_labels(payload: payload_pb2.Payload, labels: Iterable[payload_pb2.Label]) -> None:
    """Adds the labels that are not there."""
    present = {(label.key, label.value) for label in payload.labels}
    for label in labels:
        if (label.key, label.value) not in present:
            present.add((label.key, label.value))
            payload.labels.append(label)


def provenance(who: Standing, decision_id: str) -> context_pb2.Provenance:
    """Where what `who` writes now comes from."""
    return context_pb2.Provenance(
        principal=who.principal,
        agent=who.agent,
        run_id=who.run_id,
        task_id=who.task_id,
        attempt_id=who.attempt_id,
        input_digest=who.input_digest,
        sources=who.reads.entries[:MOST_SOURCES],
        more_sources=who.reads.more,
        policy_decision_id=decision_id,
    )


def entry_message(place: Place, kv: KeyValue, record: records.EntryRecord) -> context_pb2.Entry:
    """An entry as it travels."""
    entry = context_pb2.Entry(
        scope=place.scope.message(),
        key=place.key,
        revision=kv.mod_revision,
        value=record.value,
        provenance=record.provenance,
    )
    entry.create_time.FromMicroseconds(record.create_time)
    entry.update_time.FromMicroseconds(record.update_time)
    if record.expire_time:
        entry.expire_time.FromMicroseconds(record.expire_time)
    return entry


def fence_of(kv: KeyValue, record: records.ClaimRecord) -> int:
    """The fence of a claim. The record that gave it could not know its own revision yet."""
    return record.fence or kv.mod_revision


def holds(who: Standing, record: records.ClaimRecord, now: int) -> bool:
    """Whether a claim is this caller's, and has not ended."""
    return record.principal == who.principal and record.attempt_id == who.attempt_id and now < record.expire_time


def claim_message(scope: Scope, name: str, fence: int, record: records.ClaimRecord) -> context_pb2.Claim:
    """A claim as it travels."""
    claim = context_pb2.Claim(principal=record.principal, attempt_id=record.attempt_id)
    claim.claim.scope.CopyFrom(scope.message())
    claim.claim.name, claim.claim.fence = name, fence
    claim.acquire_time.FromMicroseconds(record.acquire_time)
    claim.expire_time.FromMicroseconds(record.expire_time)
    return claim
