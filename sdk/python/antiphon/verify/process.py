"""The agent's program: started with the socket in its environment, watched, ended with everything it has started."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

_TAIL = 4_000  # bytes of its output that a complaint may quote
_LINES = 15  # of them, of a program that has ended: what ended it is rarely the last


class Process:
    """One life of the program, in a process group of its own. Its output is kept in a file, for complaints."""

    def __init__(self, command: Sequence[str], socket: str) -> None:
        self._command = tuple(command)
        self._environment = {**os.environ, "ANTIPHON_SOCKET": socket}
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. Raises `OSError` when there is no such program."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    @property
    def code(self) -> int | None:
        """Its exit code; negative for a signal, None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None, "start it first"
        return await self._process.wait()

    def terminate(self) -> None:
        """SIGTERM to it and to whatever it has started, as a sidecar sends it."""
        if self._process is not None and self._process.returncode is None:
            _signal(self._process.pid, signal.SIGTERM)

    async def stop(self) -> None:
        """SIGKILL to it and to whatever it has started; gone when this returns."""
        if self._process is not None:
            _signal(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        self._output.close()

    def said(self) -> str:
        """The end of what it has written."""
        if self._output.closed:
            return ""
        size = os.fstat(self._output.fileno()).st_size
        # Read by position: the offset is shared with the program, which writes there.
        return os.pread(self._output.fileno(), _TAIL, max(0, size - _TAIL)).decode("utf-8", "replace").strip()

    def state(self) -> str:
        """For complaints: whether it runs, and the last line it wrote, or several when it has ended."""
        code = self.code
        lines = [line[:300] for line in self.said().splitlines()[-_LINES:]]
        if code is None:
            return f"the program runs{f'; it wrote last: {lines[-1]}' if lines else ''}"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        quoted = " " + lines[0] if len(lines) == 1 else "".join(f"\n{line}" for line in lines)
        return f"the program {how}{f'; it wrote last:{quoted}' if lines else ''}"


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # the group is gone; its number may be someone else's by now
        os.killpg(group, number)
