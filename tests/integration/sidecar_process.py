"""A sidecar as a real process, for tests: started with a state folder or a token, stopped by signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

WAIT = 20.0
RAW_AGENT = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "raw_agent.py"))


class SidecarProcess:
    """One `python -m antiphon_sidecar run …`; its log is kept."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT):
            return await self.process.wait()

    async def logged(self, event: str) -> None:
        """Wait for a log entry."""
        await eventually(lambda: f'"event": "{event}"' in self.log)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what tells nobody that it has changed: a file, a process, a thread."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def sidecar(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[SidecarProcess]:
    """Run it; it is gone afterwards, whatever happened. `folder` gets log and run folder."""
    log = folder / "sidecar.log"
    words = list(arguments)
    place = words.index("--") if "--" in words else len(words)
    words[place:place] = ["--run-folder", str(folder / "run")]
    with log.open("a") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "antiphon_sidecar", "run", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
            env={**os.environ, "ANTIPHON_HOME": str(folder / "home"), **(environ or {})},
        )  # fmt: skip
    running = SidecarProcess(process, log)
    try:
        yield running
    except BaseException:
        print(running.log)  # pytest shows it with the failure
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
