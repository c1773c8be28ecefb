"""Makes what was written to a file durable while the event loop goes on: the kernel's asynchronous fdatasync.

No thread waits for the disk, since it would have to win the interpreter lock back from a loop that is always busy
(DECISIONS.md, D111); the kernel tells the loop by an eventfd. Linux has this since 4.18, on what most machines are.
Elsewhere, and where a sandbox forbids it, there is none of these, and SQLite waits for the disk itself.

The system calls are made here: their ABI is fixed (linux/aio_abi.h, io_submit(2)), and a library for them loads 5 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import platform
import select
import sys
from collections.abc import Callable
from pathlib import Path

Done = Callable[[OSError | None], None]

_FDSYNC = 3  # IOCB_CMD_FDSYNC
_TELL_EVENTFD = 1  # IOCB_FLAG_RESFD
_GENERIC = {"io_setup": 0, "io_destroy": 1, "io_submit": 2, "io_getevents": 4}  # include/uapi/asm-generic/unistd.h
_NUMBERS = {
    "x86_64": {"io_setup": 206, "io_destroy": 207, "io_submit": 209, "io_getevents": 208},
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}
_FUSE = 0x65735546
"""f_type of file systems in programs (statfs(2)). Some sync what was written by one descriptor alone."""


class _Request(ctypes.Structure):
    """struct iocb, as it is on little-endian machines."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("file", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class DataSync:
    """Of one file, one sync at a time. Make it on the event loop. Raises OSError where the kernel does not do this."""

    def __init__(self, path: Path) -> None:
        numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
        if numbers is None or sys.byteorder != "little" or sys.maxsize < 1 << 32:
            raise OSError(f"not known on {sys.platform} {platform.machine()}")
        self._numbers = numbers
        library = ctypes.CDLL(None, use_errno=True)
        facts = (ctypes.c_long * 64)()  # struct statfs has 15 of them, f_type first
        if library.statfs(os.fsencode(path), facts) != 0:
            raise _error("statfs")
        if facts[0] == _FUSE:
            raise OSError("not relied on in a file system of a program (FUSE)")
        self._syscall = library.syscall
        self._syscall.restype = ctypes.c_long
        self._done: Done | None = None
        with contextlib.ExitStack() as opened:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, self._file)
            self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            opened.callback(os.close, self._told)
            self._context = ctypes.c_ulong(0)
            self._call("io_setup", ctypes.c_uint(1), ctypes.byref(self._context))
            opened.callback(self._call, "io_destroy", self._context)  # waits for what is under way
            self._request = _Request(opcode=_FDSYNC, file=self._file, flags=_TELL_EVENTFD, eventfd=self._told)
            self._requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(self._request))
            self._event = _Event()
            # Old kernels, and file systems that cannot, say so now.
            self._submit()
            select.select([self._told], [], [])
            self._take()
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._told, self._tell)
            opened.callback(self._loop.remove_reader, self._told)
            self._opened = opened.pop_all()

    def begin(self, done: Done) -> None:
        """Begins one; `done` is called on the loop, with None when all that was written before is durable. Raises
        OSError when that failed at once."""
        assert self._done is None, "one at a time"
        try:
            self._submit()
        except OSError:  # the kernel had no room for it, which says nothing of the disk
            os.fdatasync(self._file)
            self._loop.call_soon(self._end, None)
        self._done = done

    def close(self) -> None:
        """Waits for the one that is under way, whose `done` is not called any more."""
        self._done = None
        self._opened.close()

    def _tell(self) -> None:
        try:
            self._take()
        except OSError as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, failure: OSError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(failure)

    def _submit(self) -> None:
        self._one("io_submit", self._context, ctypes.c_long(1), self._requests)

    def _take(self) -> None:
        """Takes the outcome of the one that was told of. Raises OSError when it failed."""
        os.eventfd_read(self._told)
        self._one("io_getevents", self._context, ctypes.c_long(1), ctypes.c_long(1), ctypes.byref(self._event), None)
        if (result := self._event.result) < 0:
            raise OSError(-result, os.strerror(-result))

    def _one(self, name: str, *arguments: object) -> None:
        """Makes a call that is about one request. Raises OSError, also when it was about none."""
        if self._call(name, *arguments) != 1:
            raise OSError(errno.EIO, f"{name}: took none")

    def _call(self, name: str, *arguments: object) -> int:
        result = int(self._syscall(ctypes.c_long(self._numbers[name]), *arguments))
        if result < 0:
            raise _error(name)
        return result


def _error(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")
