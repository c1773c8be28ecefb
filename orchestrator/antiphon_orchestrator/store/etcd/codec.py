"""The port's transactions and keys as etcd's messages, and back. Pure.

Every key is put below the prefix on its way out and taken from below it on its way in; range ends stay within it.
"""

from __future__ import annotations

from collections.abc import Iterable

from antiphon.etcd.v3 import kv_pb2, rpc_pb2

from ..port import (
    MAX_TXN_BYTES,
    UP_TO_LAST,
    CommitResult,
    Compare,
    Delete,
    EventType,
    InvalidTxn,
    KeyValue,
    Operator,
    Put,
    Target,
    Txn,
    WatchEvent,
    prefix_end,
)

_ENVELOPE = 256
"""What etcd itself adds to a transaction before it measures it, its users' names included."""

_RESULT = {
    Operator.EQUAL: rpc_pb2.Compare.EQUAL,
    Operator.NOT_EQUAL: rpc_pb2.Compare.NOT_EQUAL,
    Operator.GREATER: rpc_pb2.Compare.GREATER,
    Operator.LESS: rpc_pb2.Compare.LESS,
}
_TARGET = {
    Target.VERSION: (rpc_pb2.Compare.VERSION, "version"),
    Target.CREATE_REVISION: (rpc_pb2.Compare.CREATE, "create_revision"),
    Target.MOD_REVISION: (rpc_pb2.Compare.MOD, "mod_revision"),
    Target.VALUE: (rpc_pb2.Compare.VALUE, "value"),
}


class Keyspace:
    """Everything below one prefix."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._end = prefix_end(prefix)

    def key(self, key: bytes) -> bytes:
        """A key as etcd has it."""
        return self._prefix + key

    def end(self, end: bytes) -> bytes:
        """A range end as etcd has it; empty stays empty."""
        if not end:
            return b""
        return self._end if end == UP_TO_LAST else self._prefix + end

    def txn(self, txn: Txn) -> rpc_pb2.TxnRequest:
        """A transaction that the port's `check` has passed. Raises InvalidTxn when the prefix makes it too large."""
        request = rpc_pb2.TxnRequest(
            compare=map(self._compare, txn.compares),
            success=self._operations(txn.ops),
            failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=self.key(k))) for k in txn.otherwise_get],
        )
        if not request.success and not request.failure:
            # etcd calls a transaction without operations serializable, and answers it from a member that may be behind.
            anything = rpc_pb2.RangeRequest(key=self._prefix, count_only=True)
            request.success.add(request_range=anything)
            request.failure.add(request_range=anything)
        if (size := request.ByteSize() + _ENVELOPE) > MAX_TXN_BYTES:
            raise InvalidTxn(f"the transaction has {size} bytes with its prefix; at most {MAX_TXN_BYTES}")
        return request

    def result(self, txn: Txn, response: rpc_pb2.TxnResponse) -> CommitResult:
        """What a transaction did."""
        observed: dict[bytes, KeyValue | None] = {}
        if not response.succeeded:
            for key, answer in zip(txn.otherwise_get, response.responses, strict=bool(txn.otherwise_get)):
                found = answer.response_range.kvs
                observed[key] = self.key_value(found[0]) if found else None
        return CommitResult(response.succeeded, response.header.revision, observed)

    def key_value(self, kv: kv_pb2.KeyValue) -> KeyValue:
        """A key as it stands."""
        key = kv.key[len(self._prefix) :]
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def event(self, event: kv_pb2.Event) -> WatchEvent:
        """A change."""
        kind = EventType.DELETE if event.type == kv_pb2.Event.DELETE else EventType.PUT
        before = event.prev_kv.value if event.HasField("prev_kv") else None
        return WatchEvent(kind, self.key_value(event.kv), before)

    def _compare(self, compare: Compare) -> rpc_pb2.Compare:
        target, field = _TARGET[compare.target]
        made = rpc_pb2.Compare(result=_RESULT[compare.op], target=target, key=self.key(compare.key))
        setattr(made, field, compare.value)
        return made

    def _operations(self, operations: Iterable[Put | Delete]) -> list[rpc_pb2.RequestOp]:
        made: list[rpc_pb2.RequestOp] = []
        for op in operations:
            if isinstance(op, Put):
                put = rpc_pb2.PutRequest(key=self.key(op.key), value=op.value, lease=op.lease)
                made.append(rpc_pb2.RequestOp(request_put=put))
            elif not op.range_end or op.range_end == UP_TO_LAST or op.key < op.range_end:
                # Else it names no key; etcd has no rule for an end before its beginning.
                delete = rpc_pb2.DeleteRangeRequest(key=self.key(op.key), range_end=self.end(op.range_end))
                made.append(rpc_pb2.RequestOp(request_delete_range=delete))
        return made
