"""Transactions that wait while another one is under way go out together, as one transaction: a call costs both sides
more than what is in it.

Only what nobody watches is joined, since it shares a revision: logs, what is kept and trimmed beside them, the pages of
the audit. Of what one of them changes, no other changes or compares anything, so that it is as if they came one after
the other. If the whole is refused, which says that one of them is, each is sent alone and finds out for itself. If its
outcome is unclear, so is that of each; whoever sends one of them again may find the whole committed, and a whole that
lands late finds what each has compared, as each alone would.

Who appends works out less often, and more at a time, when it waits for what is under way before it does so, and not
afterwards (`under_way`).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum

from ..port import (
    MAX_OPERATIONS,
    CommitResult,
    Delete,
    InvalidTxn,
    Put,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Txn,
    covers,
)

MOST_BYTES = 1024 * 1024
"""Of the values of one joined transaction."""

MOST_GATHERING = 0.010
"""Seconds for which those that waited work out what goes out together, one after the other, before the rest of them
has to wait for the next."""

MOST_WAITING = 0.050
"""Seconds for which what is under way is waited for: when the store is slow, work that appends nothing goes on."""

_NEVER = math.inf


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
    """Sends transactions by `send`, those that change nothing but what lies under `prefixes` one group after the
    other."""

    def __init__(self, send: Callable[[Txn], Awaitable[CommitResult]], prefixes: tuple[bytes, ...]) -> None:
        self._send = send
        self._prefixes = prefixes
        self._leads = False
        """Whether somebody gathers, or has sent."""
        self._shut = _NEVER
        """The time from which on whoever asks is not to work."""
        self._opened = asyncio.Event()
        """Set for a moment."""
        self._waiting: deque[_Waiting] = deque()

    def under_way(self) -> Awaitable[object] | None:
        """See `Store.under_way`."""
        return self._opened.wait() if asyncio.get_running_loop().time() >= self._shut else None

    async def commit(self, txn: Txn) -> CommitResult:
        """What `send` answers, or raises, for this transaction."""
        if not self._joins(txn):
            return await self._send(txn)
        if self._leads:
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
        self._lead()
        others: list[_Waiting] = []
        too_long: asyncio.TimerHandle | None = None
        try:
            await asyncio.sleep(0)  # those that were let in with this one come along
            others = self._gather(txn)
            self._shut = 0.0
            too_long = asyncio.get_running_loop().call_later(MOST_WAITING, self._open)
            return await self._send_joined(txn, others)
        finally:
            if too_long is not None:
                too_long.cancel()
            # Nobody is left without an answer, unless ours was cancelled; then the whole may be committed.
            _tell(others, StoreUnavailable("the transaction may be under way"))
            self._go_on()

    async def _send_joined(self, txn: Txn, others: list[_Waiting]) -> CommitResult:
        if not others:
            return await self._send(txn)
        try:
            result = await self._send(_joined([txn, *(other.txn for other in others)]))
        except (InvalidTxn, StoreFull):
            result = None  # too large together, with what etcd adds; or some may still delete
        except StoreError as error:
            _tell(others, error)
            raise
        if result is not None and result.succeeded:
            _tell(others, result)
            return result
        _tell(others, _Turn.ALONE)
        return await self._send(txn)

    def _joins(self, txn: Txn) -> bool:
        return bool(txn.ops) and all(lies_under(op, self._prefixes) for op in txn.ops)

    def _gather(self, first: Txn) -> list[_Waiting]:
        """Takes those that may go together with the first: within the limits, and as long as none meets another."""
        taken: list[_Waiting] = []
        whole = _Whole()
        whole.add(first)
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.told.done():  # cancelled
                self._waiting.popleft()
                continue
            if not whole.takes(waiting.txn):
                break
            whole.add(waiting.txn)
            taken.append(self._waiting.popleft())
        return taken

    def _go_on(self) -> None:
        """Lets the next one send, if one waits."""
        self._leads = False
        self._open()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.told.done():
                self._lead()
                waiting.told.set_result(_Turn.SEND)
                return

    def _lead(self) -> None:
        self._leads = True
        self._shut = asyncio.get_running_loop().time() + MOST_GATHERING

    def _open(self) -> None:
        self._shut = _NEVER
        self._opened.set()
        self._opened.clear()


def lies_under(op: Put | Delete, prefixes: tuple[bytes, ...]) -> bool:
    """Whether it changes nothing but what is below one of the prefixes, nor will the end of a lease."""
    prefix = next((prefix for prefix in prefixes if op.key.startswith(prefix)), None)
    if prefix is None:
        return False
    if isinstance(op, Put):
        return not op.lease
    return not op.range_end or op.range_end.startswith(prefix)


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


class _Whole:
    """What transactions that go together name."""

    def __init__(self) -> None:
        self._compares = 0
        self._ops = 0
        self._size = 0
        self._puts: set[bytes] = set()
        self._compared: set[bytes] = set()
        self._deletes: list[Delete] = []

    def add(self, txn: Txn) -> None:
        self._compares += len(txn.compares)
        self._ops += len(txn.ops)
        self._size += _size(txn)
        self._puts |= _puts(txn)
        self._compared |= _compared(txn)
        self._deletes += _deletes(txn)

    def takes(self, txn: Txn) -> bool:
        """Whether it fits, and changes nothing that another one changes or compares, nor the other way round."""
        if (
            self._compares + len(txn.compares) > MAX_OPERATIONS
            or self._ops + len(txn.ops) > MAX_OPERATIONS
            or self._size + _size(txn) > MOST_BYTES
        ):
            return False
        puts, compared = _puts(txn), _compared(txn)
        return (
            self._puts.isdisjoint(puts | compared)
            and self._compared.isdisjoint(puts)
            and not _any_covered(self._deletes, puts | compared)
            and not _any_covered(_deletes(txn), self._puts | self._compared)
        )


def _any_covered(deletes: list[Delete], names: set[bytes]) -> bool:
    return any(covers(delete, name) for delete in deletes for name in names)


def _puts(txn: Txn) -> set[bytes]:
    return {op.key for op in txn.ops if isinstance(op, Put)}


def _compared(txn: Txn) -> set[bytes]:
    return {compare.key for compare in txn.compares}


def _deletes(txn: Txn) -> list[Delete]:
    return [op for op in txn.ops if isinstance(op, Delete)]


def _size(txn: Txn) -> int:
    return sum(len(op.value) for op in txn.ops if isinstance(op, Put))
