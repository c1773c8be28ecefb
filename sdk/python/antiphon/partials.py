"""Pieces of output that wait for their way on: in agents, in sidecars, and for whoever watches a run.

They are worth little, and only in time. So what waits is bounded, and what finds no room is left out; offsets, which
are set before, show the gap. Text that follows text is joined, so that many small pieces become one larger one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from antiphon.v1.run_pb2 import PartialOutput

Maker = TypeVar("Maker", bound=Hashable)

TEXT_LENGTH = 4_096
"""Most characters of text in one piece."""
JSON_BYTES = 16_384
"""Most bytes of a JSON value in one piece."""
MAKER_BYTES = 65_536
"""Most bytes that may wait of one maker."""
ALL_BYTES = 1 << 20
"""Most bytes that may wait of all."""
MESSAGE_PIECES = 64
"""Most pieces in one message."""
MESSAGE_BYTES = 256 * 1024
"""About the most bytes of pieces in one message: what counts travels in the same messages."""

_OVERHEAD = 64  # of a piece besides its content, near enough for bounds


def content_bytes(piece: PartialOutput) -> int:
    """Bytes of what a piece holds, by which offsets count."""
    return len(piece.text.encode()) if piece.HasField("text") else len(piece.json)


class Pieces(Generic[Maker]):
    """Pieces by who makes them: those of one maker leave in the order they came in."""

    def __init__(self, maker_bytes: int = MAKER_BYTES, all_bytes: int = ALL_BYTES) -> None:
        self._maker_bytes = maker_bytes
        self._all_bytes = all_bytes
        self._waiting: dict[Maker, deque[PartialOutput]] = {}
        self._bytes: dict[Maker, int] = {}
        self._all = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, maker: Maker, piece: PartialOutput) -> bool:
        """Take a piece, which is this box's own from now on. False: there is no room, and it is left out."""
        waiting = self._waiting.get(maker)
        more = _more(waiting[-1], piece) if waiting else None
        size = _size(piece) if more is None else more
        if self._bytes.get(maker, 0) + size > self._maker_bytes or self._all + size > self._all_bytes:
            return False
        if waiting is None:
            waiting = self._waiting[maker] = deque()
            self._bytes[maker] = 0
        if more is None:
            waiting.append(piece)
        elif more:
            waiting[-1].text += piece.text
        self._bytes[maker] += size
        self._all += size
        return True

    def take(self, count: int = MESSAGE_PIECES, room: int = MESSAGE_BYTES) -> list[tuple[Maker, PartialOutput]]:
        """What goes into the next message: at most `count` pieces and about `room` bytes. Makers take turns."""
        taken: list[tuple[Maker, PartialOutput]] = []
        while self._waiting and len(taken) < count and room > 0:
            maker = next(iter(self._waiting))
            waiting = self._waiting.pop(maker)
            piece = waiting.popleft()
            size = _size(piece)
            taken.append((maker, piece))
            room -= size
            self._all -= size
            self._bytes[maker] -= size
            if waiting:
                self._waiting[maker] = waiting  # behind the others
            else:
                del self._bytes[maker]
        return taken

    def drop(self, maker: Maker) -> None:
        """Forget what waits of a maker."""
        if self._waiting.pop(maker, None) is not None:
            self._all -= self._bytes.pop(maker)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._bytes.clear()
        self._all = 0


def _size(piece: PartialOutput) -> int:
    return content_bytes(piece) + len(piece.withheld) + _OVERHEAD


def _more(before: PartialOutput, piece: PartialOutput) -> int | None:
    """Bytes by which `before` grows when `piece` is joined to it; None when it cannot be."""
    if before.attempt != piece.attempt:
        return None
    if before.withheld or piece.withheld:
        return 0 if before.withheld == piece.withheld else None  # to say it once is enough
    if not (before.HasField("text") and piece.HasField("text")):
        return None
    length, more = len(before.text.encode()), len(piece.text.encode())
    if before.offset + length != piece.offset or len(before.text) + len(piece.text) > TEXT_LENGTH:
        return None
    return more if list(before.labels) == list(piece.labels) else None
