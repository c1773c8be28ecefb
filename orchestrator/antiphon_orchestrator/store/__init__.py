"""The store: the etcd-shaped port, the keys kept in it, and its embedded backend.

Everything else in the orchestrator depends on the port and `keys` only; `app.py` chooses the backend. See README.md.
"""

from . import keys
from .port import (
    MAX_OPERATIONS,
    MAX_TXN_BYTES,
    UP_TO_LAST,
    CommitResult,
    Compacted,
    Compare,
    Delete,
    EventType,
    InvalidTxn,
    KeyValue,
    LeaseNotFound,
    Operator,
    Put,
    RangeResult,
    Store,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Target,
    Txn,
    UnwatchedPrefix,
    WatchBatch,
    WatchEvent,
    prefix_end,
)
from .sqlite import SqliteStore

__all__ = [
    "MAX_OPERATIONS",
    "MAX_TXN_BYTES",
    "UP_TO_LAST",
    "CommitResult",
    "Compacted",
    "Compare",
    "Delete",
    "EventType",
    "InvalidTxn",
    "KeyValue",
    "LeaseNotFound",
    "Operator",
    "Put",
    "RangeResult",
    "SqliteStore",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreUnavailable",
    "Target",
    "Txn",
    "UnwatchedPrefix",
    "WatchBatch",
    "WatchEvent",
    "keys",
    "prefix_end",
]
