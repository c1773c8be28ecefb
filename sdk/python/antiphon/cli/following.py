"""Following a run to its end: as a live table on a terminal, as a line an event elsewhere.

The client resumes by itself after a broken stream, so an event is seen once and none is missed.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from .. import Client
from ..v1.run_pb2 import Run, RunEvent
from .watch_view import RunProgress

_REFRESH = 8  # a second


async def follow(client: Client, run_id: str, console: Console, line: Callable[[RunEvent], None] | None) -> Run:
    """The run as it ended. Shows its progress on `console` if that is a terminal, else calls `line` with each event."""
    await client.get_run(run_id)  # says at once that there is no such run, or no server; a watch is more patient
    if not console.is_terminal:
        shown = line is not None
        async for event in client.watch(run_id, include_progress=shown, include_partials=shown):
            if line is not None:
                line(event)
        return await client.get_run(run_id)
    progress = RunProgress(run_id)
    with Live(get_renderable=progress.render, console=console, refresh_per_second=_REFRESH, transient=False):
        async for event in client.watch(run_id, include_progress=True, include_partials=True):
            progress.apply(event)
    return await client.get_run(run_id)
