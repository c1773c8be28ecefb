"""Outcomes on disk until their verdict, so that they outlive the sidecar: what it leaves, its next life reports.

Written when they come, those of one turn of the event loop together, and before anybody is told of them; forced to the
disk once a second, beside the loop. A process that is killed loses nothing that was written; a machine that loses its
power may lose the last second, of which most have a verdict by then.

Nothing waits for the spool. When it is full, or its disk is, outcomes are in memory alone, as they would be without it,
and the log says so. Each life has files of its own, which it holds a lock on: what nobody holds a former one has left.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from antiphon.mesh.v1 import spool_pb2
from google.protobuf.message import DecodeError

from .attempts import Attempt, State
from .checks import INLINE_LIMIT, checked_result

if TYPE_CHECKING:
    from .inflight import Inflight

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""Bytes of all files together; what comes beyond is not kept."""
SEGMENT_BYTES = 1 << 20
"""Bytes at which a file is followed by another: it goes as a whole, when all that is in it has its verdict."""
REWIND_BYTES = 64 << 10
"""Bytes at which a file is emptied in which nothing is left without a verdict."""
OLDEST = 24 * 3600.0
"""Seconds after its last word at which a file is not read any more: its runs have long gone on without it."""
PAUSE = 30.0
"""Seconds before a disk is tried again that took nothing."""
SYNC = 1.0
"""Seconds between two times that what was written is forced to the disk."""
_FIRST_LINE = b"antiphon spool 1\n"
_FRAME = struct.Struct("<II")


class Segment:
    """One file. `open` counts the outcomes in it that have no verdict."""

    __slots__ = ("descriptor", "dirty", "open", "path", "size")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = 0
        self.open = 0
        self.dirty = False


class Spool:
    """The spool of one life. `soon` calls a function once the present turn of the event loop is over."""

    def __init__(
        self,
        folder: Path,
        incarnation: str,
        soon: Callable[[Callable[[], None]], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._incarnation = incarnation
        self._soon = soon
        self._now = now
        self._segments: list[Segment] = []
        self._current: Segment | None = None
        self._bytes = 0
        self._made = 0
        self._waiting: list[Attempt] = []
        self._closed_until = 0.0

    # What was left.

    def former(self) -> Iterator[tuple[spool_pb2.SpooledOutcome, Segment]]:
        """What former lives have left: perhaps some that have a verdict, which their owner knows.

        Raises OSError when the folder cannot be used.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for path in sorted(self._folder.glob("*.spool")):
            segment = Segment(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            try:
                fcntl.flock(segment.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(segment.descriptor)  # of a sidecar that lives
                continue
            self._add(segment, os.fstat(segment.descriptor).st_size)
            found = list(self._read(segment))
            segment.open = len(found)
            if not found:
                self._remove(segment)
            for outcome in found:
                yield outcome, segment

    def _read(self, segment: Segment) -> Iterator[spool_pb2.SpooledOutcome]:
        age = time.time() - os.fstat(segment.descriptor).st_mtime
        if age > OLDEST or self._bytes > MOST_BYTES:
            log.warning(
                "spool dropped", extra={"path": str(segment.path), "cause": "it is too old, or there is too much"}
            )
            return
        data = os.pread(segment.descriptor, min(segment.size, MOST_BYTES), 0)
        if not data.startswith(_FIRST_LINE):
            return
        place = len(_FIRST_LINE)
        while place + _FRAME.size <= len(data):
            length, checksum = _FRAME.unpack_from(data, place)
            place += _FRAME.size
            raw = data[place : place + length]
            place += length
            if len(raw) < length or zlib.crc32(raw) != checksum:
                log.warning("spool ends early", extra={"path": str(segment.path), "cause": "it was being written"})
                return
            try:
                yield spool_pb2.SpooledOutcome.FromString(raw)
            except DecodeError:
                log.warning("spool ends early", extra={"path": str(segment.path), "cause": "it is of another version"})
                return

    # What comes.

    def keep(self, attempt: Attempt) -> None:
        """An agent has answered."""
        self._waiting.append(attempt)
        if len(self._waiting) == 1:
            self._soon(self.write)

    def write(self) -> None:
        """Write what has come and has no verdict yet."""
        attempts = [attempt for attempt in self._waiting if attempt.state is State.REPORTED]
        self._waiting.clear()
        if not attempts or self._now() < self._closed_until:
            return
        frames = []
        for attempt in attempts:
            outcome = spool_pb2.SpooledOutcome()
            outcome.shard, outcome.agent, outcome.busy = attempt.shard, attempt.seat_name, int(attempt.busy * 1e6)
            outcome.result.CopyFrom(attempt.result)
            raw = outcome.SerializeToString()
            frames.append(_FRAME.pack(len(raw), zlib.crc32(raw)))
            frames.append(raw)
        data = b"".join(frames)
        if self._bytes + len(data) > MOST_BYTES:
            self._pause(f"outcomes without a verdict take {MOST_BYTES} bytes")
            return
        try:
            segment = self._place()
            self._append(segment, data)
        except OSError as error:
            broken, self._current = self._current, None  # what follows a piece of an outcome could not be read
            if broken is not None and not broken.open:
                self._remove(broken)
            self._pause(f"{error.strerror}: {self._folder}")
            return
        for attempt in attempts:
            attempt.spooled = segment
        segment.open += len(attempts)

    def forget(self, attempt: Attempt) -> None:
        """An outcome has its verdict."""
        segment: Segment | None = attempt.spooled
        attempt.spooled = None
        if segment is not None:
            self.let_go(segment)

    def let_go(self, segment: Segment) -> None:
        """One of the outcomes in a file is not needed any more."""
        segment.open -= 1
        if segment.open:
            return
        if segment is not self._current:
            self._remove(segment)
        elif segment.size >= REWIND_BYTES:
            try:
                os.ftruncate(segment.descriptor, len(_FIRST_LINE))
            except OSError as error:
                self._current = None  # the next one has a file of its own
                self._remove(segment)
                self._pause(f"{error.strerror}: {self._folder}")
                return
            self._bytes -= segment.size - len(_FIRST_LINE)
            segment.size = len(_FIRST_LINE)

    def unsynced(self) -> list[int]:
        """Descriptors of their own of what is to be forced to the disk; the caller closes them."""
        dirty = [segment for segment in self._segments if segment.dirty and segment.open]
        for segment in dirty:
            segment.dirty = False
        return [os.dup(segment.descriptor) for segment in dirty]

    def close(self) -> None:
        """The life is over: what has no verdict stays for the next one."""
        self.write()
        self._current = None
        for segment in list(self._segments):
            if segment.open:
                os.close(segment.descriptor)
            else:
                self._remove(segment)
        self._segments.clear()

    # Inside.

    def _place(self) -> Segment:
        segment = self._current
        if segment is None or segment.size >= SEGMENT_BYTES:
            self._made += 1
            path = self._folder / f"{self._incarnation}-{self._made}.spool"
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            segment = Segment(path, os.open(path, flags, 0o600))
            self._add(segment, 0)
            try:
                fcntl.flock(segment.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._append(segment, _FIRST_LINE)
            except OSError:
                self._remove(segment)
                raise
            self._current = segment
        return segment

    def _append(self, segment: Segment, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = os.write(segment.descriptor, left)
            left = left[count:]
            segment.size += count
            self._bytes += count
        segment.dirty = True

    def _add(self, segment: Segment, size: int) -> None:
        segment.size = size
        self._bytes += size
        self._segments.append(segment)

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self._bytes -= segment.size
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:  # the next life reads it again, and its owners know what is in it
            log.warning("spool is left", extra={"path": str(segment.path), "cause": error.strerror})
        os.close(segment.descriptor)

    def _pause(self, cause: str) -> None:
        self._closed_until = self._now() + PAUSE
        log.warning("outcomes are not kept on disk", extra={"cause": cause, "pause": PAUSE})


def take_up(spool: Spool, inflight: Inflight) -> int:
    """Has the outcomes that former lives have left reported again; how many there are. Raises OSError."""
    count = 0
    for outcome, segment in spool.former():
        result = outcome.result
        size = checked_result(result, INLINE_LIMIT)  # a former life may have been of another version
        attempt = inflight.found(result.attempt_id, outcome.shard, outcome.agent, result, size, outcome.busy / 1e6)
        if attempt is None:
            spool.let_go(segment)
        else:
            attempt.spooled = segment
            count += 1
    return count


def sync(descriptors: list[int]) -> None:
    """Force files to the disk, and close these descriptors of theirs. Blocks; not for the event loop.

    Raises OSError."""
    try:
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
