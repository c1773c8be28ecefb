"""One child process of the demo, with a log file. What is started here is stopped here, whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from antiphon.cli.problems import Problem

_POLL = 0.05
_TAIL = 4096


class Child:
    """A process in a session of its own, so that Ctrl-C reaches the demo alone, which then stops it in good order."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], *, log: Path, folder: Path, environ: Mapping[str, str] | None = None
    ) -> Child:
        """Start it; its output goes to the end of `log`, both streams."""
        with _end_of(log) as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        """Wait for a condition that the process brings about. Raises `Problem` when it ends first, or after seconds."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    if self._process.returncode is not None:
                        raise Problem(f"the {self.name} ended at once: {self._last_words()}", f"its log: {self.log}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise Problem(f"the {self.name} is not ready after {within:.0f} s", f"its log: {self.log}") from None

    async def ended(self) -> None:
        """Return when it has ended, for whatever reason."""
        await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def stop(self, grace: float) -> None:
        """SIGTERM, after `grace` seconds SIGKILL to it and to whatever it has started."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self._process.wait()
            except TimeoutError:
                os.killpg(self.pid, signal.SIGKILL)  # it leads its session, and it is not reaped yet: the id is its own
        await self._process.wait()

    def _last_words(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def _end_of(log: Path) -> BinaryIO:
    """A log that is new is its user's alone."""
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
