"""The store port: an etcd-shaped, revisioned key-value contract that every backend keeps whole.

Keys and values are bytes. Each commit that changes something makes exactly one new revision; all its changes carry
it. Reads are linearizable. Backends enforce etcd's limits, so that the embedded one cannot accept what a cluster
would refuse.

    StoreError
    ├── InvalidTxn        the transaction can never succeed; the caller has a bug
    ├── StoreUnavailable  the outcome is UNCLEAR: send the identical transaction again until the answer is definite
    ├── StoreFull         no space, and as UNCLEAR: send the identical one again; one that only deletes goes through
    ├── Compacted         the history asked for is gone: list again, then watch from the list's revision + 1
    ├── UnwatchedPrefix   this store keeps no history for the prefix
    ├── LeaseNotFound     the lease ended: grant a new one
    ├── StoreLocked       another process has the embedded store open
    └── StoreRefused      the store will not have us: its version, our credentials or the address are wrong
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

MAX_OPERATIONS = 128
"""Operations, compares and `otherwise_get` keys in one transaction, each (etcd's --max-txn-ops)."""

MAX_TXN_BYTES = 1_572_864
"""Bytes of one transaction with its framing (etcd's --max-request-bytes, 1.5 MiB)."""

_FRAMING = 32
"""Upper estimate of what etcd's encoding adds to one compare, operation or read."""

PROGRESS = 5.0
"""Seconds after which a watch of what does not change tells how far it has come."""

UP_TO_LAST = b"\0"
"""As a range end: every key from the start on."""


class StoreError(Exception):
    """Root of everything a store raises."""


class InvalidTxn(StoreError):
    """The transaction breaks a limit or names a key twice; nothing was changed and repeating it is pointless."""


class StoreUnavailable(StoreError):
    """The outcome is unclear: the transaction may be committed, now or later. Send the identical one again."""


class StoreFull(StoreError):
    """There is no space. Send the identical transaction again, after trimming; deletes are still accepted.

    It may be committed all the same: etcd looks at its quota once more where it applies a transaction, and then applies
    it and refuses it (etcd-io/etcd#16659).
    """


class Compacted(StoreError):
    """The history asked for is gone. `revision` is the lowest one that can still be watched."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted: list again, then watch from there")
        self.revision = revision


class UnwatchedPrefix(StoreError):
    """The store was told to keep no history for (a part of) this prefix, so watching it would miss changes."""


class LeaseNotFound(StoreError):
    """The lease does not exist or has expired. A commit that put a key under it changed nothing."""


class StoreLocked(StoreError):
    """Another process has the embedded store open."""


class StoreRefused(StoreError):
    """Something must be set right before this store can be used; the text says what. Nothing was changed."""


class Target(Enum):
    """The attribute of a key that a compare looks at. A key that is absent has version and revisions 0."""

    VERSION = "version"
    CREATE_REVISION = "create_revision"
    MOD_REVISION = "mod_revision"
    VALUE = "value"


class Operator(Enum):
    """How the attribute (left) must relate to the compare's value (right)."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(slots=True)
class Compare:
    """A condition on one key. `value` is bytes for `Target.VALUE`, else an int. VALUE never holds on an absent key."""

    key: bytes
    target: Target
    value: int | bytes
    op: Operator

    def __init__(self, key: bytes, target: Target, value: int | bytes, op: Operator = Operator.EQUAL) -> None:
        self.key = key
        self.target = target
        self.value = value
        self.op = op


@dataclass(slots=True)
class Put:
    """Sets one key. `lease` 0: no lease ends it, and a former lease of the key no longer does."""

    key: bytes
    value: bytes
    lease: int

    def __init__(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.key = key
        self.value = value
        self.lease = lease


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes one key or, with `range_end`, those in [key, range_end). End `UP_TO_LAST`: every key from `key` on."""

    key: bytes
    range_end: bytes = b""


@dataclass(slots=True)
class Txn:
    """All of `ops` if all `compares` hold; otherwise only the reading of `otherwise_get`, at the same instant.

    `spare`: it is small and comes before a deletion, so that it may use the last room of a full store, if there is any.
    """

    compares: tuple[Compare, ...]
    ops: tuple[Put | Delete, ...]
    otherwise_get: tuple[bytes, ...]
    spare: bool

    def __init__(
        self,
        compares: tuple[Compare, ...] = (),
        ops: tuple[Put | Delete, ...] = (),
        otherwise_get: tuple[bytes, ...] = (),
        spare: bool = False,
    ) -> None:
        self.compares = compares
        self.ops = ops
        self.otherwise_get = otherwise_get
        self.spare = spare


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands. `version` counts its puts since creation. In a delete event: value b"", version 0."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class CommitResult:
    """`revision`: of the store after the transaction. `observed`: the `otherwise_get` keys, when it did not succeed."""

    succeeded: bool
    revision: int
    observed: dict[bytes, KeyValue | None]


@dataclass(frozen=True, slots=True)
class RangeResult:
    """`kvs` in key order, at store revision `revision`. `more`: cut by the limit; go on at `kvs[-1].key + b"\\0"`."""

    kvs: tuple[KeyValue, ...]
    revision: int
    more: bool


class EventType(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key; its revision is `kv.mod_revision`, also for a delete. `before`: the value until then, for
    a watch that asks for it; None when the key was absent."""

    type: EventType
    kv: KeyValue
    before: bytes | None = None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Whole revisions, in order. The watch is complete to `revision`: resume from `revision + 1`.

    Without `events` nothing has changed up to there, which is told now and then, where a store can tell: whoever
    resumed a quiet watch from its last event would find history compacted, although it has missed nothing.
    """

    events: tuple[WatchEvent, ...]
    revision: int


class Store(Protocol):
    """What every backend offers. Each method may raise StoreUnavailable."""

    max_bytes: int | None
    """Bytes that `size` may reach; None: as far as there is room."""
    shared: bool
    """Whether other processes may use it at the same time, and take what belonged to one whose lease has ended."""

    async def commit(self, txn: Txn) -> CommitResult:
        """Applies a transaction atomically and durably. Raises InvalidTxn, StoreFull, LeaseNotFound."""

    def under_way(self) -> Awaitable[object] | None:
        """What to wait for, at once, before working out what is to be appended next, since it could not leave before:
        until then more comes that goes along. None: nothing is gained by waiting."""

    async def range(self, start: bytes, end: bytes = b"", *, limit: int = 0) -> RangeResult:
        """Reads one key (no `end`) or the keys in [start, end), at most `limit` (0: all), newest committed state."""

    def watch(self, prefix: bytes, from_revision: int = 0, *, before: bool = False) -> AsyncGenerator[WatchBatch, None]:
        """Yields every change under `prefix` from `from_revision` on (0: from now on, counted at this call), with no
        loss and no repeat, until closed. `before`: each with the value that was there until then. Raises
        UnwatchedPrefix at once, Compacted while iterating."""

    async def grant(self, ttl_seconds: int) -> int:
        """Makes a lease that ends its keys `ttl_seconds` (> 0) after its last keep-alive. Returns its id (> 0).
        Raises StoreFull."""

    async def keep_alive(self, lease: int) -> None:
        """Starts the lease's time anew. Raises LeaseNotFound."""

    async def revoke(self, lease: int) -> None:
        """Ends a lease now, deleting its keys. Raises LeaseNotFound."""

    async def compact(self, revision: int) -> None:
        """Forgets history before `revision`. Nothing to do is no error; a revision in the future is a ValueError."""

    async def size(self) -> int:
        """Bytes in use, without what freed pages could take."""

    async def run(self) -> None:
        """Does what the store needs beside its callers; for the task group. Returns when it is closed, and raises
        StoreUnavailable when it can serve nobody any more."""

    async def close(self) -> None:
        """Settles what was accepted, then stops. Calls after it raise StoreUnavailable."""


def prefix_end(prefix: bytes) -> bytes:
    """The range end that, with `prefix` as start, covers exactly the keys beginning with it (etcd's convention)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else UP_TO_LAST


def check(txn: Txn) -> int:
    """Raises InvalidTxn for what etcd would refuse, before any backend sees it. Returns the transaction's bytes."""
    for name, items in (("operations", txn.ops), ("compares", txn.compares), ("otherwise_get keys", txn.otherwise_get)):
        if len(items) > MAX_OPERATIONS:
            raise InvalidTxn(f"{len(items)} {name} in one transaction; at most {MAX_OPERATIONS}")
    size = sum(len(key) + _FRAMING for key in txn.otherwise_get)
    if b"" in txn.otherwise_get:
        raise InvalidTxn("an empty key in otherwise_get")
    for compare in txn.compares:
        size += len(compare.key) + _FRAMING
        if (compare.target is Target.VALUE) is not isinstance(compare.value, bytes):
            raise InvalidTxn(f"compare of {compare.key!r}: {compare.target.value} with {type(compare.value).__name__}")
        if isinstance(compare.value, bytes):
            size += len(compare.value)
        if not compare.key:
            raise InvalidTxn("a compare with an empty key")
    put: set[bytes] = set()
    deletes: list[Delete] = []
    for op in txn.ops:
        size += len(op.key) + _FRAMING
        if not op.key:
            raise InvalidTxn("an operation with an empty key")
        if isinstance(op, Delete):
            size += len(op.range_end)
            deletes.append(op)
            continue
        size += len(op.value)
        if op.key in put:
            raise InvalidTxn(f"key {op.key!r} is put twice")
        put.add(op.key)
    for delete in deletes:
        if any(covers(delete, key) for key in put):
            raise InvalidTxn(f"a key is put and also deleted by {delete.key!r}")
    if size > MAX_TXN_BYTES:
        raise InvalidTxn(f"the transaction has {size} bytes; at most {MAX_TXN_BYTES}")
    return size


def covers(delete: Delete, key: bytes) -> bool:
    """Whether `delete` names `key`, alone or in its range."""
    if not delete.range_end:
        return key == delete.key
    return delete.key <= key and (delete.range_end == UP_TO_LAST or key < delete.range_end)
