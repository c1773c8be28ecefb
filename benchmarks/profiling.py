"""Where a process spends its time: py-spy on one of the measured processes, while the load is on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

SECONDS = 5


async def record(pid: int, output: Path) -> None:
    """Samples a process for a few seconds into a speedscope file, native frames left out. Raises OSError."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("py-spy")),
        "record",
        *("--pid", str(pid), "--duration", str(SECONDS), "--rate", "500", "--gil"),
        *("--format", "speedscope", "--output", str(output)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise OSError(f"py-spy failed: {printed.decode(errors='replace')[-500:]}")
