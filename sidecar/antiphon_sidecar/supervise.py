"""Keeps an agent's process running: starts it, starts it again with growing pauses when it ends, stops it at the end.

The process gets a process group of its own, so that Ctrl-C reaches the sidecar alone, which then drains, and so that
whatever the agent has started is stopped with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL when the sidecar ends; it has drained by then."""
_PAUSE_FIRST, _PAUSE_MOST = 0.1, 5.0
_STEADY = 10.0  # seconds after which a process counts as well started
_TOKEN = frozenset(("ANTIPHON_TOKEN", "ANTIPHON_TOKEN_FILE"))
_LEASH = Path(__file__).with_name("leash.py")


def leashed(command: Sequence[str]) -> tuple[str, ...]:
    """The command, as one that does not outlive this process."""
    # Without site packages the leash takes some 10 ms; the command itself has its own environment.
    return (sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *command)


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a program gets: this process's environment without the join token, and `own`.

    A sidecar that has its certificate leaves the token unspent, and whoever has it could join in the sidecar's place.
    """
    return {name: value for name, value in os.environ.items() if name not in _TOKEN} | dict(own)


class Supervisor:
    """One agent's process. `own`: variables that it gets besides this process's."""

    def __init__(self, name: str, command: Sequence[str], own: Mapping[str, str]) -> None:
        self._name = name
        self._command = tuple(command)
        self._environment = environment(own)
        self._process: asyncio.subprocess.Process | None = None
        self.stopping = False
        """True: it is not started again."""

    async def run(self) -> None:
        """Keep it running until cancelled; it is gone when this returns."""
        failures = 0
        try:
            while True:
                began = time.monotonic()
                self._process = process = await asyncio.create_subprocess_exec(
                    *leashed(self._command), env=self._environment, start_new_session=True
                )
                log.info("agent started", extra={"agent": self._name, "pid": process.pid})
                code = await process.wait()
                self.kill()  # what it has left behind
                if self.stopping:
                    return
                failures = 0 if time.monotonic() - began >= _STEADY else failures + 1
                pause = min(_PAUSE_FIRST * (1 << min(failures, 10)), _PAUSE_MOST) * (0.5 + 0.5 * random.random())
                log.warning("agent ended", extra={"agent": self._name, "exit_code": code, "pause": round(pause, 2)})
                await asyncio.sleep(pause)
        finally:
            await self._stop()

    def kill(self) -> None:
        """SIGKILL to all that is left of it."""
        if self._process:
            _signal(self._process.pid, signal.SIGKILL)

    async def death(self, limit: float) -> str:
        """How its process ended, as the end of a sentence; empty when it has not within `limit` seconds."""
        if self._process is None:
            return ""
        try:
            async with asyncio.timeout(limit):
                code = await self._process.wait()
        except TimeoutError:
            return ""
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            log.warning("agent killed", extra={"agent": self._name, "cause": "it did not end after SIGTERM"})
        finally:
            self.kill()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # the group is gone; its number may be someone else's by now
        os.killpg(group, number)
