"""Transactions that wait while another one is under way go out together, as one transaction: a call costs both sides
more than what is in it.

Only what shards append is joined: puts of keys that no two of them name and that nobody watches, for they share a
revision. If the whole is refused, which says that one of them is, each is sent alone and finds out for itself. If its
outcome is unclear, so is that of each; whoever sends one of them again may find the whole committed, and a whole that
lands late finds what each has compared: its keys are there already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum

from ..port import MAX_OPERATIONS, CommitResult, InvalidTxn, Put, StoreError, StoreUnavailable, Txn

MOST_BYTES = 1024 * 1024
"""Of the values of one joined transaction."""


class _Turn(Enum):
    """What a transaction that waits is told, unless it was sent with others."""

    SEND = "send"  # with whatever else waits
    ALONE = "alone"


class _Waiting:
    __slots__ = ("told", "txn")

    def __init__(self, txn: Txn) -> None:
        self.txn = txn
        self.told: asyncio.Future[CommitResult | _Turn] = asyncio.get_running_loop().create_future()


class Groups:
    """Sends transactions by `send`, those of which all puts lie under `prefixes` one group after the other."""

    def __init__(self, send: Callable[[Txn], Awaitable[CommitResult]], prefixes: tuple[bytes, ...]) -> None:
        self._send = send
        self._prefixes = prefixes
        self._under_way = False
        self._waiting: deque[_Waiting] = deque()

    async def commit(self, txn: Txn) -> CommitResult:
        """What `send` answers, or raises, for this transaction."""
        if not self._joins(txn):
            return await self._send(txn)
        if self._under_way:
            waiting = _Waiting(txn)
            self._waiting.append(waiting)
            try:
                told = await waiting.told
            except asyncio.CancelledError:
                told_already = waiting.told.done() and not waiting.told.cancelled()
                if told_already and waiting.told.exception() is None and waiting.told.result() is _Turn.SEND:
                    self._go_on()
                raise
            if isinstance(told, CommitResult):
                return told
            if told is _Turn.ALONE:
                return await self._send(txn)
        self._under_way = True
        others = self._gather(txn)
        try:
            return await self._send_joined(txn, others)
        finally:
            # Nobody is left without an answer, unless ours was cancelled; then the whole may be committed.
            _tell(others, StoreUnavailable("the transaction may be under way"))
            self._go_on()

    async def _send_joined(self, txn: Txn, others: list[_Waiting]) -> CommitResult:
        if not others:
            return await self._send(txn)
        try:
            result = await self._send(_joined([txn, *(other.txn for other in others)]))
        except InvalidTxn:
            result = None  # too large together, with what etcd adds
        except StoreError as error:
            _tell(others, error)
            raise
        if result is not None and result.succeeded:
            _tell(others, result)
            return result
        _tell(others, _Turn.ALONE)
        return await self._send(txn)

    def _joins(self, txn: Txn) -> bool:
        return bool(txn.ops) and all(
            isinstance(op, Put) and not op.lease and op.key.startswith(self._prefixes) for op in txn.ops
        )

    def _gather(self, first: Txn) -> list[_Waiting]:
        """Takes those that may go together with the first: within the limits, and of no key that another one puts."""
        taken: list[_Waiting] = []
        counts, size = _counts(first), _size(first)
        put = {op.key for op in first.ops}
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.told.done():  # cancelled
                self._waiting.popleft()
                continue
            keys = {op.key for op in waiting.txn.ops}
            counts = [have + more for have, more in zip(counts, _counts(waiting.txn), strict=True)]
            size += _size(waiting.txn)
            if max(counts) > MAX_OPERATIONS or size > MOST_BYTES or not put.isdisjoint(keys):
                break
            put |= keys
            taken.append(self._waiting.popleft())
        return taken

    def _go_on(self) -> None:
        """Lets the next one send, if one waits."""
        self._under_way = False
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.told.done():
                self._under_way = True
                waiting.told.set_result(_Turn.SEND)
                return


def _tell(waiting: list[_Waiting], outcome: CommitResult | _Turn | StoreError) -> None:
    """Tells those that still want to know, and know nothing yet."""
    for one in waiting:
        if one.told.done():
            continue
        if isinstance(outcome, StoreError):
            one.told.set_exception(outcome)
        else:
            one.told.set_result(outcome)


def _joined(txns: list[Txn]) -> Txn:
    return Txn(
        tuple(compare for txn in txns for compare in txn.compares),
        tuple(op for txn in txns for op in txn.ops),
    )


def _counts(txn: Txn) -> list[int]:
    return [len(txn.compares), len(txn.ops)]


def _size(txn: Txn) -> int:
    return sum(len(op.value) for op in txn.ops if isinstance(op, Put))
